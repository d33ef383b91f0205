"""The checker of trials finds what it must find: each test plants one fault in what would be clean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest

from penstock.engine.policy import Arm, Experiment
from penstock.engine.steering.arms import Draw
from penstock.engine.steering.evidence import guards
from penstock.engine.steering.rollout import Rollout, begin, said
from penstock.engine.steering.turn import gate_of
from penstock.jobs.people.labels import Label
from tests.crash.steered.faults import (
    HEARD_S,
    Logged,
    Record,
    decision_faults,
    experiment_faults,
    label_faults,
    rollout_faults,
    table_faults,
)

UNITS = [f"c{n}" for n in range(60)]


def rollout(*words: str) -> Rollout:
    """Begun, and then as a person says."""
    at = begin("small", ("v1", "v2"), (0.2, 0.5), guards(["quality"]), by="ann", now=1.0)
    for n, word in enumerate(words, 2):
        at = said(at, word, "ann", float(n))  # type: ignore[arg-type]
    return at


def records(at: Rollout) -> list[Record]:
    """Of every unit, a record in each stage; and one after the end, where it has ended."""
    made: list[Record] = []
    for stage, share in enumerate(at.stages[: at.stage + 1]):
        gate = gate_of(msgspec.structs.replace(at, stage=stage, state="running"))
        for unit in UNITS:
            side, version = ("candidate", "v2") if gate.lets(unit.encode()) else ("baseline", "v1")
            chance = share if version == "v2" else 1 - share
            made.append(Record(f"{unit}-{stage}", unit, version, "p", at.id, f"{side}-{stage + 1}", chance))
    if not at.active:
        made += [Record(f"{unit}-end", unit, "v2" if at.state == "promoted" else "v1", "p") for unit in UNITS]
    return made


def kinds(found: object) -> set[str]:
    return {fault.kind for fault in found}  # type: ignore[attr-defined]


FORWARD = rollout("promote", "promote")
BACK = rollout("promote", "rollback")


@pytest.mark.parametrize(
    "at", [rollout(), rollout("promote"), FORWARD, BACK, rollout("promote", "promote", "rollback")]
)
def test_a_clean_rollout_passes(at: Rollout) -> None:
    assert not list(rollout_faults(records(at), at))
    assert not list(decision_faults(at, logged(at), ()))


def planted(at: Rollout, pick: Callable[[Record], bool], **changes: object) -> set[str]:
    """The first record that is picked, changed."""
    made = records(at)
    place = next(n for n, record in enumerate(made) if pick(record))
    made[place] = msgspec.structs.replace(made[place], **changes)
    return kinds(rollout_faults(made, at))


def test_a_unit_that_switches_its_arm_is_found() -> None:
    """Within a stage; back from the candidate in a larger one; and where all of its records say the wrong arm."""
    made = records(FORWARD)
    first = made[0]
    other = next(one for one in made if one.arm not in (first.arm, None) and one.arm[-1] == first.arm[-1])  # type: ignore[index]
    assert kinds(rollout_faults([*made, msgspec.structs.replace(other, unit=first.unit)], FORWARD)) == {"arm switched"}
    chosen = next(one.unit for one in made if one.arm == "candidate-1")
    back = [
        msgspec.structs.replace(one, arm="baseline-2", model_version="v1", propensity=0.5)
        if (one.unit, one.arm) == (chosen, "candidate-2")
        else one
        for one in made
    ]
    assert kinds(rollout_faults(back, FORWARD)) == {"arm switched"}
    moved = [
        msgspec.structs.replace(one, arm="candidate-1", model_version="v2", propensity=0.2)
        if (one.unit, one.arm) == (first.unit, "baseline-1")
        else one
        for one in made
    ]
    assert first.arm == "baseline-1"
    assert kinds(rollout_faults(moved, FORWARD)) == {"arm switched"}


def test_a_wrong_version_is_found() -> None:
    """In an arm, and after the end of the rollout, whichever it was."""
    assert planted(FORWARD, lambda one: one.arm == "candidate-1", model_version="v1") == {"wrong version"}
    assert planted(FORWARD, lambda one: one.arm is None, model_version="v1") == {"wrong version"}
    assert planted(BACK, lambda one: one.arm is None, model_version="v2") == {"wrong version"}


def test_an_answer_that_outlived_its_lane_is_in_no_arm_and_anything_else_is_found() -> None:
    """BACK: begun at 1 s, half of the units at 2 s, taken back at 3 s."""
    made = records(BACK)
    chosen = {one.unit for one in made if one.arm == "candidate-2"}
    before = [one for one in made if one.arm is not None]
    after = [one for one in made if one.arm is None]
    mine = [one for one in after if one.unit in chosen]

    def found(heirs: int, asked_at: float, version: str = "v2", late: list[Record] = mine) -> set[str]:
        told = [msgspec.structs.replace(one, model_version=version, asked_at=asked_at) for one in late]
        return kinds(rollout_faults([*before, *told, *(one for one in after if one not in late)], BACK, heirs))

    assert found(len(mine), 2.9) == found(len(mine), 4.0) == set()
    assert found(len(mine), 3.0 + 2 * HEARD_S) == {"wrong version"}, "sent long after it was taken back"
    assert found(len(mine), 0.5) == {"wrong version"}, "sent before it began"
    assert found(len(mine) - 1, 2.9) == {"wrong version"}, "more of them than a lane can leave"
    assert found(0, 2.9) == {"wrong version"}, "no lane was killed"
    assert found(len(UNITS), 2.9, late=after) == {"wrong version"}, "units that never had it"
    assert found(len(UNITS), 2.9, "v0", after) == {"wrong version"}


def test_arms_that_nobody_gave_are_found() -> None:
    """Of another rollout, of a stage that never was, none at all, or with a wrong chance."""
    assert planted(FORWARD, lambda one: one.arm is not None, experiment="other") == {"strange arm"}
    assert planted(rollout(), lambda _: True, arm="baseline-2") == {"strange arm"}
    assert planted(rollout(), lambda _: True, arm=None, experiment=None) == {"no arm"}
    assert planted(FORWARD, lambda one: one.arm is not None, propensity=0.33) == {"wrong propensity"}


# ---- stages


def logged(at: Rollout) -> list[Logged]:
    return [
        Logged(f"{at.id}:{n}", at.id, decision.what, decision.stage + 1, decision.share)
        for n, decision in enumerate(at.decisions, 1)
    ]


def stages(at: Rollout, log: Sequence[Logged] | None = None, owed: Sequence[str] = ()) -> set[str]:
    return kinds(decision_faults(at, logged(at) if log is None else log, owed))


def test_a_lost_or_repeated_stage_is_found() -> None:
    """In the rollout's own decisions."""
    first, stage, end = FORWARD.decisions
    replace = msgspec.structs.replace
    assert "stage lost" in stages(replace(FORWARD, decisions=(first, end)))
    assert "stage lost" in stages(replace(FORWARD, decisions=(stage, end)))
    assert "stage lost" in stages(replace(FORWARD, stage=0))
    assert "stage repeated" in stages(replace(FORWARD, decisions=(first, stage, stage, end)))
    assert "stage repeated" in stages(replace(FORWARD, decisions=(first, stage, end, end)))
    assert "stage repeated" in stages(replace(FORWARD, decisions=(first, first, stage, end)))


def test_a_decision_that_the_audit_log_lacks_is_found() -> None:
    """Unless it is owed to it. One that stands there twice in the same words is no fault; others are."""
    log = logged(FORWARD)
    assert stages(FORWARD, log[:-1]) == {"decision lost"}
    assert not stages(FORWARD, log[:-1], [log[-1].id])
    assert not stages(FORWARD, [*log, log[-1]])
    assert stages(FORWARD, [*log, msgspec.structs.replace(log[-1], share=0.1)]) == {"told twice"}
    assert stages(FORWARD, [log[0], msgspec.structs.replace(log[1], stage=1), log[2]]) == {"told otherwise"}
    assert stages(rollout("promote"), log_of_more()) == {"decision undone"}


def log_of_more() -> list[Logged]:
    """The same rollout, one decision further."""
    return logged(rollout("promote", "promote"))


# ---- experiments

EXPERIMENT = Experiment("job/wording", "t", (Arm("plain", weight=3.0), Arm("rude")))


def tried() -> list[Record]:
    draw = Draw(EXPERIMENT)
    arms = {unit: EXPERIMENT.arms[draw.place(unit)].name for unit in UNITS}
    chance = {"plain": 0.75, "rude": 0.25}
    made = [
        Record(f"{u}-{n}", u, "v1", arms[u], EXPERIMENT.id, arms[u], chance[arms[u]]) for u in UNITS for n in (0, 1)
    ]
    return [*made, *(Record(f"{unit}-end", unit, "v1", "plain") for unit in UNITS)]


def test_faults_of_an_experiment_are_found() -> None:
    made = tried()
    assert not list(experiment_faults(made, EXPERIMENT, stopped=True))
    assert kinds(experiment_faults(made, EXPERIMENT, stopped=False)) == {"no arm"}

    def changed(**changes: object) -> set[str]:
        one = msgspec.structs.replace(made[0], **changes)
        return kinds(experiment_faults([one, *made[1:]], EXPERIMENT, stopped=True))

    other = "rude" if made[0].arm == "plain" else "plain"
    assert "arm switched" in changed(arm=other)
    assert changed(propensity=0.5) == {"wrong propensity"}
    assert changed(prompt_version="a third one") == {"wrong prompt"}


# ---- evaluations and labels


def test_a_table_that_says_something_else_is_found() -> None:
    """What it cost may differ."""
    line = {"name": "small@v1", "rows": 9, "failed": 0, "quality": {"mean": 0.9}, "cost": 1}
    table = {"state": "done", "rows": 9, "unasked": 0, "winner": None, "classes": [], "candidates": [line]}
    assert not list(table_faults({**table, "candidates": [{**line, "cost": 2}]}, table))
    assert kinds(table_faults({**table, "rows": 8}, table)) == {"table changed"}
    assert kinds(table_faults({**table, "candidates": [{**line, "quality": {"mean": 0.8}}]}, table)) == {
        "table changed"
    }


def test_a_lost_changed_or_doubled_label_is_found() -> None:
    """One that was said when the command was killed may stand, or not."""

    def say(item: str, label: str) -> Label:
        return Label(item, "ann", "2026-11-26T00:00:00Z", label)

    accepted = {("a", "ann"): "left", ("b", "ann"): "right"}
    history = [say("a", "left"), say("b", "right")]
    assert not list(label_faults(accepted, (), history))
    assert kinds(label_faults(accepted, (), history[1:])) == {"label lost"}
    assert kinds(label_faults(accepted, (), [*history, history[0]])) == {"label twice"}
    assert kinds(label_faults(accepted, (), [say("a", "right"), history[1]])) == {"label lost", "label invented"}
    assert kinds(label_faults(accepted, (), [*history, say("c", "left")])) == {"label invented"}
    assert not list(label_faults(accepted, [("c", "ann", "left")], [*history, say("c", "left")]))
    assert not list(label_faults(accepted, [("c", "ann", "left")], history))
