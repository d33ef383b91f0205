"""`Steering`: the one document that every job obeys. Changed by whole replacement, so that one of two deciders wins.

What was decided and is not in the audit log yet is `owed`: it is part of the same swap, so no decision gets lost
between the two, whoever dies. It may then stand in the log twice, under one `id`.
"""

from __future__ import annotations

import msgspec

from penstock.engine.audit import Kind
from penstock.engine.errors import SpecError
from penstock.engine.steering.rollout import Rollout, Told, What, Word, back_to, said
from penstock.engine.steering.words import bounded


class Owed(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry that the audit log is to get."""

    id: str
    at: float
    actor: str
    kind: Kind
    model: str = ""
    facts: msgspec.Raw = msgspec.Raw(b"{}")


class Stopped(msgspec.Struct, frozen=True):
    """An experiment that takes no new units: they get the first arm."""

    at: float
    by: str
    why: str = ""


class Steering(msgspec.Struct, frozen=True, omit_defaults=True):
    number: int = 0
    """Grows by one with each change."""
    live: dict[str, str] = {}
    """Model → version that every job uses, whatever its catalogue says is live."""
    rollouts: dict[str, Rollout] = {}
    """The latest of each model."""
    experiments: dict[str, Stopped] = {}
    """`job/experiment`."""
    owed: tuple[Owed, ...] = ()


class _Facts(msgspec.Struct, frozen=True):
    """What the audit log says of a decision."""

    id: str
    rollout: str
    model: str
    what: What
    state: str
    baseline: str
    candidate: str
    stage: int
    share: float
    why: str
    guards: tuple[Told, ...]


_KINDS: dict[What, Kind] = {
    "started": "rollout_started",
    "promoted": "rollout_ended",
    "rolled_back": "rollback",
    "passed": "rollout_ended",
}
"""Everything else is told as `stage`."""


def with_rollout(steering: Steering, rollout: Rollout) -> Steering:
    """The document after the rollout's last decision: versions moved, and its entry owed to the audit log."""
    live = dict(steering.live)
    last = rollout.decisions[-1]
    if last.what in ("promoted", "watching"):
        live[rollout.model] = rollout.candidate
    elif last.what in ("started", "rolled_back"):
        live[rollout.model] = rollout.baseline
    return msgspec.structs.replace(
        steering,
        number=steering.number + 1,
        live=live,
        rollouts={**steering.rollouts, rollout.model: rollout},
        owed=(*steering.owed, _owed(rollout)),
    )


def started(steering: Steering, rollout: Rollout) -> Steering:
    """With a new rollout. Raises `SpecError` where its model has one already."""
    there = steering.rollouts.get(rollout.model)
    if there is not None and there.active:
        raise SpecError(
            f"{rollout.model} has a rollout already ({there.id}, {there.state}): "
            f"end it first: penstock rollback {rollout.model}, or penstock rollout promote {rollout.model}"
        )
    return with_rollout(steering, msgspec.structs.replace(rollout, began=_began(there)))


def put_back(steering: Steering, model: str, versions: tuple[str, str], by: str, now: float, why: str) -> Steering:
    """`versions`: (the one to go back to, the one that the catalogue says is live). A rollout under way is taken back
    first. Raises `SpecError`."""
    to, own = versions
    there = steering.rollouts.get(model)
    if there is not None and there.active:
        steering = with_rollout(steering, said(there, "rollback", by, now, why))
        if steering.live[model] == to:
            return steering
    made = back_to(model, (to, steering.live.get(model, own)), by, now, why)
    return with_rollout(steering, msgspec.structs.replace(made, began=_began(steering.rollouts.get(model))))


def _began(before: Rollout | None) -> dict[str, float]:
    """Only a model's latest rollout stands here, and what an older one's version answered may have to be sent again."""
    if before is None:
        return {}
    return before.began if before.since is None else {**before.began, before.candidate: before.since}


def spoken(
    steering: Steering, model: str, word: Word, by: str, now: float, why: str = "", share: float | None = None
) -> Steering:
    """A person's word on a model's rollout. `share`: as `said` has it. Raises `SpecError`."""
    rollout = steering.rollouts.get(model)
    if rollout is None:
        known = ", ".join(sorted(steering.rollouts)) or "none yet"
        raise SpecError(f"{model} never had a rollout here; models that had one: {known}")
    return with_rollout(steering, said(rollout, word, by, now, why, share))


def with_experiment(steering: Steering, name: str, stopped: Stopped) -> Steering:
    """`name`: `job/experiment`. Raises `SpecError` where it was stopped before."""
    if name in steering.experiments:
        raise SpecError(f"experiment {name} was stopped already, by {steering.experiments[name].by}")
    stopped = msgspec.structs.replace(stopped, why=bounded(stopped.why))
    facts = msgspec.json.encode({"experiment": name, "what": "stopped", "why": stopped.why})
    entry = Owed(f"{name}:stopped", stopped.at, stopped.by, "rollout_ended", "", msgspec.Raw(facts))
    return msgspec.structs.replace(
        steering,
        number=steering.number + 1,
        experiments={**steering.experiments, name: stopped},
        owed=(*steering.owed, entry),
    )


def settled(steering: Steering, written: frozenset[str]) -> Steering:
    """These entries are in the audit log."""
    left = tuple(each for each in steering.owed if each.id not in written)
    return msgspec.structs.replace(steering, owed=left)


def _owed(rollout: Rollout) -> Owed:
    last = rollout.decisions[-1]
    number = f"{rollout.id}:{len(rollout.decisions)}"
    facts = _Facts(
        number,
        rollout.id,
        rollout.model,
        last.what,
        rollout.state,
        rollout.baseline,
        rollout.candidate,
        rollout.stage + 1,
        last.share,
        last.why,
        last.told,
    )
    kind = _KINDS.get(last.what, "stage")
    return Owed(number, last.at, last.by, kind, rollout.model, msgspec.Raw(msgspec.json.encode(facts)))
