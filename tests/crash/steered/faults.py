"""What must not happen to whatever steers a fleet while processes are killed: an arm that is switched, a stage that is
lost or repeated, a label that is lost, a table that says something else. All pure; `test_steered_checker.py` plants
each fault.

Nothing here asks the run how it went: records come from the committed files, stages from the state and its audit log,
labels from what a person saw accepted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from penstock.engine.policy import Experiment
from penstock.engine.steering.arms import Draw
from penstock.engine.steering.rollout import BASELINE, CANDIDATE, Decision, Rollout, arm_of
from penstock.engine.steering.turn import gate_of
from penstock.jobs.people.labels import Label


class Fault(NamedTuple):
    kind: str
    what: str


class Record(msgspec.Struct, frozen=True):
    """What a result says of how it was answered."""

    item_id: str
    unit: str
    model_version: str
    prompt_version: str = ""
    experiment: str | None = None
    arm: str | None = None
    propensity: float | None = None
    asked_at: float = 0.0
    """When its last call was sent; 0: not told."""


class Logged(msgspec.Struct, frozen=True):
    """The facts of a decision, as the audit log tells them. `stage` counts from 1."""

    id: str
    rollout: str = ""
    what: str = ""
    stage: int = 0
    share: float = 0.0


# ---- rollouts

HEARD_S = 5.0
"""After a decision, until when calls by the one before it may be sent: lanes hear of it within two seconds, and their
workers hold some calls."""


def rollout_faults(records: Iterable[Record], at: Rollout, heirs: int = 0) -> Iterator[Fault]:
    """Of records of one job, all of it read after the rollout began. `heirs`: answers that lanes which were killed can
    have left to their next owners. Such a one counts in no arm where its unit gets another version by now."""
    sides: defaultdict[str, dict[int, set[str]]] = defaultdict(dict)
    left = heirs
    for record in records:
        if record.arm is None:
            outlived = left > 0 and _outlived(record, at)
            left -= outlived
            yield from () if outlived else _outside(record, at)
            continue
        side, stage = arm_of(record.arm) or ("", -1)
        if record.experiment != at.id or not 0 <= stage <= at.stage:
            yield Fault("strange arm", f"{record.item_id} is in {record.arm} of {record.experiment}")
            continue
        sides[record.unit].setdefault(stage, set()).add(side)
        yield from _inside(record, at, side, stage)
    for unit, stages in sides.items():
        yield from _switched(unit, stages)


def _outside(record: Record, at: Rollout) -> Iterator[Fault]:
    """No arm: the rollout is over, and all get one version."""
    right = {"promoted": at.candidate, "rolled_back": at.baseline}.get(at.state)
    if right is None:
        yield Fault("no arm", f"{record.item_id}, though the rollout goes on")
    elif record.model_version != right:
        yield Fault("wrong version", f"{record.item_id} got {record.model_version} after it was {at.state}")


def _outlived(record: Record, at: Rollout) -> bool:
    """It was asked before a decision gave its unit another version, and that was not the last one's."""
    unit = record.unit.encode()
    until = [*(decision.at for decision in at.decisions[1:]), float("inf")]
    given = [_given(at, decision, unit) for decision in at.decisions]
    asked = record.asked_at
    then = {
        version
        for version, decision, end in zip(given, at.decisions, until, strict=True)
        if decision.at <= asked < end + HEARD_S
    }
    return record.model_version in then and record.model_version != given[-1]


def _given(at: Rollout, decision: Decision, unit: bytes) -> str:
    """The version that the unit gets from this decision on."""
    match decision.what:
        case "promoted":
            return at.candidate
        case "rolled_back":
            return at.baseline
        case _:
            there = msgspec.structs.replace(at, stage=decision.stage, state="running")
            return at.candidate if gate_of(there).lets(unit) else at.baseline


def _inside(record: Record, at: Rollout, side: str, stage: int) -> Iterator[Fault]:
    share = at.stages[stage]
    if record.model_version != {BASELINE: at.baseline, CANDIDATE: at.candidate}[side]:
        yield Fault("wrong version", f"{record.item_id} got {record.model_version} in {record.arm}")
    if abs((record.propensity or 0.0) - (share if side == CANDIDATE else 1.0 - share)) > 1e-9:
        yield Fault("wrong propensity", f"{record.item_id}: {record.propensity} in {record.arm}")
    let = gate_of(msgspec.structs.replace(at, stage=stage, state="running")).lets(record.unit.encode())
    if let != (side == CANDIDATE):
        yield Fault("arm switched", f"unit {record.unit} is in {record.arm}, and its hash says otherwise")


def _switched(unit: str, stages: Mapping[int, set[str]]) -> Iterator[Fault]:
    """One arm in each stage; who has the candidate keeps it in a larger stage."""
    in_order = [stages[stage] for stage in sorted(stages)]
    if any(len(sides) > 1 for sides in in_order):
        yield Fault("arm switched", f"unit {unit} has both versions in one stage")
    first = next((n for n, sides in enumerate(in_order) if CANDIDATE in sides), len(in_order))
    if any(BASELINE in sides for sides in in_order[first + 1 :]):
        yield Fault("arm switched", f"unit {unit} lost the candidate in a larger stage")


def decision_faults(at: Rollout, logged: Sequence[Logged], owed: Iterable[str]) -> Iterator[Fault]:
    """Each stage once and in order; each decision in the audit log, or owed to it, and nothing else there."""
    yield from _chain(at)
    mine = [entry for entry in logged if entry.rollout == at.id]
    told: dict[str, Logged] = {}
    for entry in mine:
        if told.setdefault(entry.id, entry) != entry:
            yield Fault("told twice", f"{entry.id} stands in the audit log with other facts")
    due = set(owed)
    for number, decision in enumerate(at.decisions, 1):
        name = f"{at.id}:{number}"
        entry = told.pop(name, None)
        if entry is None and name not in due:
            yield Fault("decision lost", f"{name} ({decision.what}) is not in the audit log")
        elif entry is not None and (entry.what, entry.stage - 1) != (decision.what, decision.stage):
            yield Fault("told otherwise", f"{name} is {decision.what}, and {entry.what} in the audit log")
    for name, entry in told.items():
        yield Fault("decision undone", f"{name} ({entry.what}) is in the audit log, and not in the state")


def _chain(at: Rollout) -> Iterator[Fault]:
    first = at.decisions[0]
    if (first.what, first.stage) != ("started", 0):
        yield Fault("stage lost", f"it began with {first.what} at stage {first.stage + 1}")
    stage, over = 0, False
    for decision in at.decisions[1:]:
        step = decision.stage - stage
        if step != (decision.what == "stage"):
            kind = "stage repeated" if step < 1 else "stage lost"
            yield Fault(kind, f"{decision.what} leads from stage {stage + 1} to {decision.stage + 1}")
        if decision.what == "promoted" and decision.stage != len(at.stages) - 1:
            yield Fault("stage lost", f"promoted from stage {decision.stage + 1} of {len(at.stages)}")
        if over and decision.what != "rolled_back":
            yield Fault("stage repeated", f"{decision.what} after the end")
        stage, over = decision.stage, over or decision.what in ("promoted", "rolled_back")
    ends = Counter(decision.what for decision in at.decisions)
    for what in ("started", "promoted", "rolled_back"):
        if ends[what] > 1:
            yield Fault("stage repeated", f"{what} {ends[what]} times")
    if at.stage != stage:
        yield Fault("stage lost", f"it is at stage {at.stage + 1}, and its decisions lead to {stage + 1}")


# ---- experiments


def experiment_faults(records: Iterable[Record], experiment: Experiment, *, stopped: bool) -> Iterator[Fault]:
    """Each unit in the arm that its hash says, with that arm's prompt and chance; no arm only once it was stopped."""
    draw = Draw(experiment)
    whole = sum(arm.weight for arm in experiment.arms)
    prompts: defaultdict[str | None, set[str]] = defaultdict(set)
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        prompts[record.arm].add(record.prompt_version)
        if record.arm is None:
            if not stopped:
                yield Fault("no arm", f"{record.item_id}, though the experiment goes on")
            continue
        seen[record.unit].add(record.arm)
        arm = experiment.arms[draw.place(record.unit)]
        if (record.experiment, record.arm) != (experiment.key, arm.name):
            yield Fault("arm switched", f"unit {record.unit} is in {record.arm}, and its hash says {arm.name}")
        elif abs((record.propensity or 0.0) - arm.weight / whole) > 1e-9:
            yield Fault("wrong propensity", f"{record.item_id}: {record.propensity} in {record.arm}")
    for unit, arms in seen.items():
        if len(arms) > 1:
            yield Fault("arm switched", f"unit {unit} was in {', '.join(sorted(arms))}")
    for arm, versions in prompts.items():
        if len(versions) > 1:
            yield Fault("wrong prompt", f"arm {arm} was shown {len(versions)} prompts")


# ---- evaluations


def table_faults(told: Mapping[str, object], whole: Mapping[str, object]) -> Iterator[Fault]:
    """`whole`: of the same evaluation that nobody killed. What things cost and took may differ."""
    for name in ("state", "rows", "unasked", "winner", "classes"):
        if told[name] != whole[name]:
            yield Fault("table changed", f"{name}: {told[name]}, and {whole[name]} where nobody killed")
    mine, theirs = (_measured(each) for each in (told, whole))
    if mine != theirs:
        yield Fault("table changed", f"candidates: {mine}, and {theirs} where nobody killed")


def _measured(told: Mapping[str, object]) -> list[tuple[object, ...]]:
    lines = msgspec.convert(told["candidates"], list[dict[str, object]])
    return [(line["name"], line["rows"], line["failed"], line["quality"]) for line in lines]


# ---- labels


def label_faults(
    accepted: Mapping[tuple[str, str], str], doubtful: Iterable[tuple[str, str, str]], history: Sequence[Label]
) -> Iterator[Fault]:
    """`accepted`: (item, labeller) → what the person saw accepted. `doubtful`: (item, labeller, label) that were said
    when the command was killed: each may stand, or not."""
    maybe = set(doubtful)
    said = Counter((label.item_id, label.by, label.says) for label in history)
    for (item, by, says), times in said.items():
        if times > 1:
            yield Fault("label twice", f"{by} said {says} of {item} {times} times")
        if accepted.get((item, by)) != says and (item, by, says) not in maybe:
            yield Fault("label invented", f"{by} never said {says} of {item}")
    for (item, by), says in accepted.items():
        if not said[item, by, says]:
            yield Fault("label lost", f"{by} said {says} of {item}")
