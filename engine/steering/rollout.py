"""A rollout: one model's traffic moves from a baseline version to a candidate, stage by stage, or goes back.

    begin ─▶ running ──(all guards pass)──▶ next stage … ──▶ [watching ──▶] promoted ──(rollback)──▶ rolled_back
              │   ▲ └─(a guard fails)─▶ rolled_back ◀──(a guard fails)──┘                      ▲
              │   └─resume── paused / waiting ──────────────(rollback)─────────────────────┘
              └─(manual: a stage passed or failed; a shadow stage's money is spent, or errors show in it)─▶ waiting

The first stage may be a shadow (`SHADOW`): the candidate answers a share of the baseline's items beside it, and nothing
of it is a result. Where no other stage follows, a rollout that passes it has passed, and changes nothing.

After the last stage a few units may keep the baseline for a while (`watch`), and the candidate is live for all others.
The watch goes in rounds: each is judged by its own items alone, so that a version that gets worse late shows nearly as
soon as one that was worse from the start. There are at most `ROUNDS`, which share the watch's alarm rate.

Pure: verdicts or a person's word in, the next `Rollout` out; its last decision is what is to be logged. Every decision
grows `decisions` by one and keeps all before it, so a compare-and-swap on the whole lets one decider win.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import isclose
from typing import Literal, NamedTuple

import msgspec

from penstock.engine.errors import SpecError
from penstock.engine.items import NANO_PER_USD
from penstock.engine.measure.guards import Decision as Finding
from penstock.engine.measure.guards import Guard
from penstock.engine.steering.words import bounded

State = Literal["running", "waiting", "paused", "promoted", "rolled_back", "passed", "watching"]
Word = Literal["pause", "resume", "promote", "rollback"]
"""What a person may say."""
What = Literal["started", "stage", "waits", "paused", "resumed", "promoted", "rolled_back", "passed", "watching"]
Unit = Literal["unit", "item"]
"""What sticks to an arm: the item's `unit` attribute (its own id where it has none), or each item by itself."""

ACTIVE: frozenset[State] = frozenset({"running", "waiting", "paused", "watching"})
MAX_STAGES = 20
MAX_DECISIONS = 200
"""A person who pauses and resumes for ever is stopped here."""
PENSTOCK = "penstock"
"""Who decides where nobody does."""
BASELINE, CANDIDATE = "baseline", "candidate"
SHADOW = -1
"""The stage before the first one, in which the candidate answers and nothing of it is a result."""
ROUNDS = 10
"""Of a watch. Each has arms of its own in the cells, of which a lane keeps a bounded number."""
UNPAIRED = frozenset({"error_rate", "refusals"})
"""Guards that a shadow stage can't decide, for the candidate is asked for no item that the baseline failed."""
UNPAID = 20
"""Items without money for their shadow that end the stage: a single long one may find none while others still do."""
SILENT = 100
"""Items more without an answer of the candidate than with one that end a shadow stage: it would never fill its pairs. A
guess; one that answers every second item or more is for the guards."""


class Silent(NamedTuple):
    """Items that a candidate left without an answer in its shadow stage, less those that it answered."""

    faults: int = 0
    """By its own fault."""
    whole: int = 0
    """And for a limit or an outage."""


ANSWERED = Silent()


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one guard said, as it goes into the log."""

    guard: str
    """With the scorer it is about: `quality exact`."""
    decision: Finding
    items: int
    """Of the smaller arm, in this stage; what they count for, where units bring several."""
    mean: float | None
    """Candidate less baseline: of scores, of shares of good calls, of logarithms."""
    worst: float | None
    """That can't be ruled out. None: nothing is known."""
    why: str
    informs: bool = False
    """It decides nothing: its scorer is a judge that was not calibrated (`judges.py`), or has few scores in this stage,
    or a shadow stage can't decide it (`UNPAIRED`)."""


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """`stage` and `share` are those that follow from it."""

    at: float
    by: str
    what: What
    stage: int
    share: float
    why: str = ""
    told: tuple[Told, ...] = ()


class Shadowing(msgspec.Struct, frozen=True):
    """How a rollout's shadow stage is gone about."""

    share: float
    """Of the baseline's items, by a stable hash of their ids."""
    limit_nano: int
    """What it may cost in all jobs together, judges of its answers included."""
    pairs: int = 1_000
    """Scored ones, after which it ends if nothing was shown: 5 points are mostly found in as many (docs/quality.md)."""


class How(msgspec.Struct, frozen=True):
    """See `Rollout`."""

    auto: bool = True
    unit: Unit = "unit"
    shadow: Shadowing | None = None
    watch: float = 0.0


class Rollout(msgspec.Struct, frozen=True):
    id: str
    model: str
    baseline: str
    candidate: str
    stages: tuple[float, ...]
    """Shares of the units that the candidate gets, rising, below 1. After the last one it gets all: it is promoted."""
    guards: tuple[Guard, ...]
    decisions: tuple[Decision, ...]
    """The first says how it began. Never empty, never cut."""
    stage: int = 0
    state: State = "running"
    auto: bool = True
    """False: a stage that passed or failed waits for a person."""
    unit: Unit = "unit"
    shadow: Shadowing | None = None
    """None: it begins with its first stage."""
    watch: float = 0.0
    """Share of the units that keep the baseline after the last stage, to be compared with; 0: none does."""
    began: dict[str, float] = {}
    """Version → when a rollout sent it its first items: of the model's rollouts before this one, as far as is known."""

    @property
    def since(self) -> float | None:
        """When the candidate's answers begin. None: no rollout that is known brought it."""
        first = self.decisions[0]
        return first.at if first.what == "started" else self.began.get(self.candidate)

    @property
    def round(self) -> int:
        """Of the watch, from 1; 0: it has not come to that."""
        return max(0, self.stage - len(self.stages) + 1)

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def shadows(self) -> bool:
        """It is in its shadow stage, and the candidate is asked."""
        return self.stage == SHADOW and self.state in ("running", "paused")

    @property
    def share(self) -> float:
        """Of the units that the candidate gets now."""
        if self.active:
            return 0.0 if self.stage == SHADOW else 1.0 - self.watch if self.round else self.stages[self.stage]
        return 1.0 if self.state == "promoted" else 0.0

    @property
    def where(self) -> str:
        """The stage, for people."""
        if self.stage == SHADOW:
            asked = self.shadow.share if self.shadow is not None else 0.0
            return f"shadow stage, {asked * 100:g} % of the items are answered by {self.candidate} as well"
        if self.round:
            kept = f"{self.watch * 100:g} % of the units keep {self.baseline}"
            return f"watch, round {self.round} of at most {ROUNDS}, {kept}"
        return f"stage {self.stage + 1} of {len(self.stages)}, {self.share * 100:g} % of the units"

    def arm(self, side: str) -> str:
        """As records and cells name it."""
        return f"{side}-{self.stage + 1}"


def arm_of(arm: str) -> tuple[str, int] | None:
    """(side, stage) of what `Rollout.arm` made."""
    side, _, stage = arm.rpartition("-")
    return (side, int(stage) - 1) if side in (BASELINE, CANDIDATE) and stage.isdigit() else None


def begin(
    model: str,
    versions: tuple[str, str],
    stages: Sequence[float],
    guards: Sequence[Guard],
    *,
    by: str,
    now: float,
    how: How | None = None,
) -> Rollout:
    """`versions`: (baseline, candidate). A last stage of 1 is left out: it is the promotion. Raises `SpecError`."""
    how = how or How()
    baseline, candidate = versions
    if baseline == candidate:
        raise SpecError(f"{model} has {candidate} already: name another version")
    below = tuple(stages[:-1] if stages and stages[-1] == 1.0 else stages)
    if how.shadow is None or stages:
        _check_stages(stages, below)
    if how.shadow is not None:
        _check_shadow(how.shadow)
    if how.watch and not (below and below[-1] < 1.0 - how.watch < 1.0):
        raise SpecError(
            f"a watch keeps more than 0 % of the units on {baseline}, and fewer than the last stage does; "
            f"not {how.watch * 100:g} %"
        )
    if not guards:
        raise SpecError("a rollout needs a guard, or nothing would ever end a stage")
    if how.shadow is not None and all(guard.name in UNPAIRED for guard in guards):
        raise SpecError(
            "a shadow stage can't decide about error_rate and refusals, for only items that the live version answered "
            "are asked; add quality, cost or latency to --guard"
        )
    why = f"from {baseline} to {candidate}; guards: {', '.join(guard.name for guard in guards)}"
    begins, share = (0, below[0]) if how.shadow is None else (SHADOW, 0.0)
    first = Decision(now, by, "started", begins, share, why)
    return Rollout(
        _id(model, versions, now),
        model,
        baseline,
        candidate,
        below,
        tuple(guards),
        (first,),
        begins,
        auto=how.auto,
        unit=how.unit,
        shadow=how.shadow,
        watch=how.watch,
    )


def back_to(model: str, versions: tuple[str, str], by: str, now: float, why: str) -> Rollout:
    """Straight back to a version that no rollout leads back to: one that ended as it began. `versions`: (the one to go
    back to, the one that is live now)."""
    if versions[0] == versions[1]:
        raise SpecError(f"{versions[0]} of {model} is live already")
    decision = Decision(now, by, "rolled_back", 0, 0.0, bounded(why))
    return Rollout(_id(model, versions, now), model, *versions, (), (), (decision,), state="rolled_back")


def _id(model: str, versions: tuple[str, str], now: float) -> str:
    baseline, candidate = versions
    digest = blake2b(f"{model}\0{baseline}\0{candidate}\0{now!r}".encode(), digest_size=3).hexdigest()
    return f"{model}-{candidate}-{digest}"


def _check_stages(stages: Sequence[float], below: tuple[float, ...]) -> None:
    if not below or len(below) > MAX_STAGES or list(below) != sorted(set(below)) or not 0.0 < below[0] <= below[-1] < 1:
        raise SpecError(
            f"stages are 1 to {MAX_STAGES} rising percentages below 100 (100 at the end is the promotion), such as "
            f"1,5,25,100, with shadow in front or alone; not {','.join(f'{share * 100:g}' for share in stages)}"
        )


def _check_shadow(shadow: Shadowing) -> None:
    if not 0.0 < shadow.share <= 1.0:
        raise SpecError(f"a shadow answers more than 0 and at most 100 % of the items, not {shadow.share * 100:g}")
    if shadow.limit_nano <= 0:
        raise SpecError("a shadow stage needs money: more than $0")


def see(
    rollout: Rollout, told: Sequence[Told], now: float, unpaid: int = 0, silent: Silent = ANSWERED
) -> Rollout | None:
    """The guards were asked. `unpaid`: items whose shadow found no money. None: nothing is to be decided."""
    deciding = [each for each in told if not each.informs]
    if rollout.state not in ("running", "watching") or not deciding:
        return None
    failed = [each for each in deciding if each.decision == "fail"]
    if failed:
        return _failed(rollout, "; ".join(each.why for each in failed), now, told)
    if rollout.stage == SHADOW and silent.whole >= SILENT:
        return _silent(rollout, silent, now, told)
    if rollout.stage == SHADOW and any(each.decision == "fail" and each.guard in UNPAIRED for each in told):
        return _doubtful(rollout, now, told)
    if any(each.decision != "pass" for each in deciding):
        return _spent(rollout, now, told) if rollout.stage == SHADOW and unpaid >= UNPAID else None
    if rollout.round:
        return _watched(rollout, now, told)
    why = "every guard passed" if deciding == list(told) else "every guard that may decide passed"
    if rollout.auto:
        return _forward(rollout, PENSTOCK, now, why, told)
    return _next(rollout, "waiting", "waits", rollout.stage, PENSTOCK, now, why, told)


def said(rollout: Rollout, word: Word, by: str, now: float, why: str = "", share: float | None = None) -> Rollout:
    """A person's word. `share`: of the units that got the candidate when they looked; a step that was made meanwhile
    has changed what they speak of. Raises `SpecError` where it can't be obeyed."""
    allowed = ACTIVE if word != "rollback" else ACTIVE | {"promoted"}
    if rollout.state not in allowed:
        way = f"; penstock rollback {rollout.model} --to VERSION goes to any version" if word == "rollback" else ""
        raise SpecError(f"the rollout {rollout.id} is {rollout.state}: it can't {word} any more{way}")
    if share is not None and not isclose(share, rollout.share, abs_tol=1e-6):
        raise SpecError(
            f"the rollout {rollout.id} has moved: {rollout.share * 100:g} % of the units get {rollout.candidate} now, "
            f"not {share * 100:g} %; nothing was done. penstock rollout show {rollout.model} tells why"
        )
    if len(rollout.decisions) >= MAX_DECISIONS and word in ("pause", "resume"):
        raise SpecError(f"the rollout {rollout.id} was paused and resumed too often: promote it or roll it back")
    stage = rollout.stage
    match word:
        case "pause":
            return _next(rollout, "paused", "paused", stage, by, now, why)
        case "resume":
            return _next(rollout, "watching" if rollout.round else "running", "resumed", stage, by, now, why)
        case "promote":
            return _forward(rollout, by, now, why)
        case "rollback":
            return _next(rollout, "rolled_back", "rolled_back", stage, by, now, why)


def _watched(rollout: Rollout, now: float, told: Sequence[Told]) -> Rollout:
    """A round is over, and nothing was shown in it."""
    why = f"nothing was shown in round {rollout.round} of the watch"
    if rollout.round < ROUNDS:
        return _next(rollout, "watching", "watching", rollout.stage + 1, PENSTOCK, now, why, told)
    return _next(rollout, "promoted", "promoted", rollout.stage, PENSTOCK, now, f"{why}, its last", told)


def _failed(rollout: Rollout, why: str, now: float, told: Sequence[Told]) -> Rollout:
    if rollout.auto:
        return _next(rollout, "rolled_back", "rolled_back", rollout.stage, PENSTOCK, now, why, told)
    return _next(rollout, "waiting", "waits", rollout.stage, PENSTOCK, now, f"failed: {why}", told)


def _silent(rollout: Rollout, silent: Silent, now: float, told: Sequence[Told]) -> Rollout:
    """Nothing is there to be compared, and more of the same would follow. A limit or an outage is no fault of its own:
    a person has to say what follows."""
    if silent.faults >= SILENT:
        why = f"{rollout.candidate} failed on {silent.faults:,} more items of its shadow stage than it answered"
        return _failed(rollout, why, now, told)
    why = (
        f"{silent.whole:,} more items have no answer of {rollout.candidate} than have one, for limits or an outage: "
        "promote it, or roll it back and begin anew when it can be asked"
    )
    return _next(rollout, "waiting", "waits", rollout.stage, PENSTOCK, now, why, told)


def _doubtful(rollout: Rollout, now: float, told: Sequence[Told]) -> Rollout:
    """More errors, or refusals, than the baseline has: of other items, so a person has to say what follows."""
    why = "; ".join(each.why for each in told if each.decision == "fail" and each.guard in UNPAIRED)
    return _next(rollout, "waiting", "waits", rollout.stage, PENSTOCK, now, f"{why}: promote it, or roll it back", told)


def _spent(rollout: Rollout, now: float, told: Sequence[Told]) -> Rollout:
    """Too little was compared to pass, and nothing was shown: a person has to say what follows."""
    usd = rollout.shadow.limit_nano / NANO_PER_USD if rollout.shadow is not None else 0.0
    why = f"the shadow's money (${usd:g}) is spent, and its guards are not decided: promote it, or roll it back"
    return _next(rollout, "waiting", "waits", rollout.stage, PENSTOCK, now, why, told)


def _forward(rollout: Rollout, by: str, now: float, why: str, told: Sequence[Told] = ()) -> Rollout:
    """One stage further; after the last one it is promoted, unless that was a shadow."""
    if rollout.stage + 1 < len(rollout.stages):
        return _next(rollout, "running", "stage", rollout.stage + 1, by, now, why, told)
    if rollout.stage == SHADOW:
        return _next(rollout, "passed", "passed", rollout.stage, by, now, why, told)
    if rollout.watch and not rollout.round:
        return _next(rollout, "watching", "watching", rollout.stage + 1, by, now, why, told)
    return _next(rollout, "promoted", "promoted", rollout.stage, by, now, why, told)


def _next(
    rollout: Rollout,
    state: State,
    what: What,
    stage: int,
    by: str,
    now: float,
    why: str,
    told: Sequence[Told] = (),
) -> Rollout:
    moved = msgspec.structs.replace(rollout, state=state, stage=stage)
    decision = Decision(now, by, what, stage, moved.share, bounded(why), tuple(told))
    return msgspec.structs.replace(moved, decisions=(*rollout.decisions, decision))


def check(before: Rollout, after: Rollout) -> None:
    """A step's invariants: the past stays, one decision was made, no stage was skipped or done again."""
    assert after.decisions[:-1] == before.decisions, "the past was changed"
    assert (after.id, after.stages) == (before.id, before.stages), "it became another rollout"
    last = after.decisions[-1]
    assert after.stage - before.stage == (last.what in ("stage", "watching")), "a stage was lost, repeated or skipped"
    assert last.what != "watching" or after.round, "a watch before the last stage"
    assert last.what != "promoted" or 0 <= len(after.stages) - 1 <= after.stage, "a stage was skipped"
    assert last.what != "promoted" or after.round or not after.watch, "the watch was skipped"
    assert last.what != "passed" or not after.stages, "a stage was skipped"
    first = 0 if after.shadow is None else SHADOW
    assert first <= after.stage < len(after.stages) + (ROUNDS if after.watch else 0), "there is no such stage"
    assert before.active or (before.state == "promoted" and after.state == "rolled_back"), "an end was not the end"
    assert (last.stage, last.share) == (after.stage, after.share), "the log says something else"
