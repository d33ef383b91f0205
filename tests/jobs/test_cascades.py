"""From a run's scored answers to thresholds, and back into a job: refused where too few labels support one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.connectors.audit import open_audit
from penstock.connectors.calibrations import read_calibration, write_calibration, write_judges
from penstock.connectors.documents import Conflict
from penstock.connectors.drifts import Drift, Drifts
from penstock.connectors.state import ABSENT, open_state
from penstock.engine.errors import SpecError
from penstock.engine.flow.climb import Climb, Taken, Word
from penstock.engine.items import Answer
from penstock.engine.judging import judge_version
from penstock.engine.measure.agreement import agreement
from penstock.engine.policy import Promise
from penstock.engine.quality import scorer_version
from penstock.engine.steering import judges
from penstock.jobs import cascades, spec
from penstock.jobs.cli import call
from penstock.jobs.history import open_history
from penstock.jobs.look.reading import Outputs
from penstock.jobs.spec.digest import digest, names_called
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunState, RunStatus

JOB = """\
source: messages.csv
models:
  - {name: small, account: sandbox, model: s, price: free}
  - {name: mid, account: sandbox, model: m, price: free}
  - {name: top, account: sandbox, model: t, price: free}
tiers: {1: [top]}
sinks: out.jsonl
prompt: "{{ text }}"
sample: 1
scorers: [{type: exact, expected: "{{ label }}"}]
cascade: {models: [small, mid, top], signal: SIGNAL, threshold: THRESHOLD}
"""
PROMPT = digest("{{ text }}")


def job(folder: Path, threshold: str = "0.9", signal: str = "logprob", text: str = "{{ text }}") -> RunSpec:
    said = JOB.replace("THRESHOLD", threshold).replace("SIGNAL", signal).replace("{{ text }}", text)
    (folder / "job.yaml").write_text(said)
    return spec.load(folder / "job.yaml")


def outputs(folder: Path, rows: list[dict[str, object]], signal: str = "logprob") -> Outputs:
    """A run whose quality records are these."""
    path = folder / "out.quality.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    loaded = job(folder, "2", signal)
    return Outputs(loaded, RunStatus(loaded.run_id, loaded.name, "done", outputs={"quality": [str(path)]}))


def sample(n: int, model: str, signal: float | None, score: float, role: str = "primary") -> dict[str, object]:
    said = {"item_id": f"i{n}", "task": "default", "scorer": "exact", "score": score, "passed": score > 0.5}
    said["prompt_version"] = PROMPT
    return {**said, "model": model, "model_version": model[0], "role": role, "signal": signal}


def answers(n: int, seed: int = 1) -> list[dict[str, object]]:
    """A small model that is right as often as it is sure, believed from 0.9 on; a top one without a signal."""
    dice, rows = random.Random(seed), list[dict[str, object]]()
    for i in range(n):
        sure = dice.random()
        right = float(dice.random() < sure**0.2)
        rows.append(sample(i, "small", sure, right, "primary" if sure >= 0.9 else "cascade"))
        rows += [sample(i, "top", None, 1.0)] if sure < 0.9 else []
        rows.append(sample(i, "other", 0.99, 0.0, "shadow"))
    return rows


def test_a_threshold_is_found_from_answers_that_were_believed_and_that_were_not(tmp_path: Path) -> None:
    """It goes to the state, and from there into a job that asks for it; a model without one is never believed."""
    run = outputs(tmp_path, answers(1000))
    made = cascades.found(run, None, None, 0.9, 0.95)
    (small,) = made.models
    assert (small.model, small.threshold is not None) == ("small", True)
    assert small.threshold is not None
    assert small.threshold.rows == 1000, "of both kinds, and of nobody else"
    assert small.threshold.quality > 0.9
    kept = write_calibration(open_state(run.spec.state), made)
    assert kept.version == 1
    cascade = job(tmp_path, "calibrated").policy.tasks["default"].cascade
    assert cascade is not None
    assert cascade.bar("small@s") == pytest.approx(small.threshold.above)
    assert cascade.bar("small@s") > small.threshold.above, "above it, not at it"
    assert cascade.bar("mid@m") > 1.0
    assert job(tmp_path, "calibrated").fingerprint != job(tmp_path).fingerprint


def hard(n: int, mid_right: float, *, taken: float = 2.0) -> list[dict[str, object]]:
    """Of ten rows six are easy: small is sure of these and right. Of the others it is right in half. Mid is as sure of
    one as of the other, always right on easy ones, and on hard ones in `mid_right`. `taken`: the run's threshold."""
    dice, rows = random.Random(7), list[dict[str, object]]()
    for i in range(n):
        easy, sure = i % 10 < 6, dice.random()
        small, mid = 0.5 + sure / 2 if easy else sure / 2, float(easy or dice.random() < mid_right)
        right = float(easy or dice.random() < 0.5)
        rows.append(sample(i, "small", small, right, "primary" if small >= taken else "cascade"))
        rows += [sample(i, "mid", dice.random(), mid, "cascade")] if small < taken else []
    return rows


def test_a_calibration_is_in_the_audit_log(tmp_path: Path) -> None:
    """Which answers are taken from now on, and by which numbers, as it is told of a judge's."""
    run = outputs(tmp_path, answers(1000))
    history = open_history(run.spec.state)
    history.save_spec(run.spec)
    history.save_status(run.status)
    assert call(["cascade", "calibrate", run.spec.run_id, "--min-quality", "0.9", "--state", run.spec.state]) == 0
    (entry,) = open_audit(run.spec.state).entries()
    facts = msgspec.json.decode(bytes(entry.facts), type=dict[str, Any])
    assert (entry.kind, entry.run, facts["task"], facts["version"]) == ("calibration", run.spec.run_id, "default", 1)
    assert facts["models"]["small@s"].startswith("taken above 0.")


def test_a_model_is_calibrated_on_the_rows_that_those_before_it_pass_on(tmp_path: Path) -> None:
    """Mid is right in 0.92 of all rows, and in 0.8 of those that it will see; small takes the easy ones."""
    run = outputs(tmp_path, hard(3000, 0.8))
    small, mid = cascades.found(run, None, None, 0.9, 0.95).models
    assert small.threshold is not None
    assert (mid.threshold, mid.refused is not None) == (None, True)
    run = outputs(tmp_path, hard(3000, 0.97))
    small, mid = cascades.found(run, None, None, 0.9, 0.95).models
    assert small.threshold is not None
    assert mid.threshold is not None
    assert mid.threshold.rows == small.threshold.rows - small.threshold.accepted
    assert [each.threshold and each.threshold.confidence for each in (small, mid)] == [pytest.approx(0.975)] * 2


def test_too_few_rows_that_are_passed_on_are_refused_with_the_labels_needed_in_all(tmp_path: Path) -> None:
    """So many labelled rows then do."""
    _, mid = cascades.found(outputs(tmp_path, hard(120, 1.0)), None, None, 0.9, 0.95).models
    assert mid.refused is not None
    needed = mid.refused.labels_needed
    assert needed is not None
    assert needed > 120
    _, mid = cascades.found(outputs(tmp_path, hard(2 * needed, 1.0)), None, None, 0.9, 0.95).models
    assert mid.threshold is not None


def test_rows_that_a_model_would_see_and_was_not_asked_are_told(tmp_path: Path) -> None:
    """The run took answers that the thresholds now found pass on; a run that takes none can be asked for."""
    small, mid = cascades.found(outputs(tmp_path, hard(3000, 0.97, taken=0.2)), None, None, 0.9, 0.95).models
    assert small.threshold is not None
    assert mid.refused is not None
    assert "were not asked of it" in mid.refused.why
    assert "threshold: 2" in mid.refused.why
    cascade = job(tmp_path, "2").policy.tasks["default"].cascade
    assert cascade is not None
    assert cascade.bar("small@s") > 1.0


JUDGED = "judge, judge: {model: top, rubric: 'Is it right?'}"


def test_a_judge_has_a_threshold_for_each_of_its_versions(tmp_path: Path) -> None:
    """Another rubric, or model, is another measure: under a new judge nothing is believed before it is calibrated."""
    rows = [{**row, "signal_by": "j1" if row["model"] == "small" else None} for row in answers(1000)]
    made = cascades.found(outputs(tmp_path, rows, JUDGED), None, None, 0.9, 0.95)
    assert [(each.judge, each.threshold is not None) for each in made.models] == [("j1", True)]
    loaded = job(tmp_path, "2", JUDGED)
    write_calibration(open_state(loaded.state), made)
    asked = job(tmp_path, "calibrated", JUDGED)
    cascade = asked.policy.tasks["default"].cascade
    assert cascade is not None
    assert cascade.judge is not None
    assert (cascade.judge.model, cascade.judge.choices) == ("top", ("1", "2", "3", "4", "5"))
    assert cascade.bar("small@s", "j1") < 1.0 < cascade.bar("small@s", "j2")
    assert "top" in names_called(asked.policy, asked.catalog)


def test_a_judge_that_was_held_against_no_labels_lets_no_answer_out(tmp_path: Path) -> None:
    """With a threshold that somebody chose; one that agrees with people may, and so may each with a calibrated one."""
    never = job(tmp_path, "2", JUDGED)
    with pytest.raises(
        SpecError, match=r"cascade.threshold: this judge may not let answers out yet: it was never held"
    ):
        job(tmp_path, "0.9", JUDGED)
    cascade = never.policy.tasks["default"].cascade
    assert cascade is not None
    assert cascade.judge is not None
    version = judge_version(cascade.judge, never.catalog.models["top"].live)
    agreed = agreement([[60, 0], [0, 40]])
    assert agreed is not None
    held = judges.Calibration(f"judge@{version}", "top", 60, 40, agreed, "run", "now", "ann")
    write_judges(open_state(never.state), [held])
    assert job(tmp_path, "0.9", JUDGED).policy.tasks["default"].cascade is not None


def test_a_grade_that_was_not_good_enough_is_not_taken(tmp_path: Path) -> None:
    """Grade 4 is right in half, grade 5 always: `above` is 4, and a signal that equals it goes up."""
    grades = [0.75 + 0.25 * (i % 2) for i in range(400)]
    rows = [sample(i, "small", at, float(at == 1.0 or i % 4 == 0), "cascade") for i, at in enumerate(grades)]
    run = outputs(tmp_path, [{**row, "signal_by": "j1"} for row in rows], JUDGED)
    made = write_calibration(open_state(run.spec.state), cascades.found(run, None, None, 0.9, 0.95))
    (small,) = made.models
    assert small.threshold is not None
    assert small.threshold.above == 0.75
    cascade = job(tmp_path, "calibrated", JUDGED).policy.tasks["default"].cascade
    assert cascade is not None
    answer = Answer("yes", "stop", b"{}")
    words = [
        Climb().heard(cascade, ("small", "s"), answer, valid=True, last=False, judged=Word(g, "j1")) for g in (0.75, 1)
    ]
    assert [isinstance(word, Taken) for word in words] == [False, True]


def test_too_few_labels_are_refused_with_how_many_are_needed(tmp_path: Path) -> None:
    """Then nothing is believed: each item goes up."""
    run = outputs(tmp_path, answers(25))
    made = cascades.found(run, "default", "exact", 0.9, 0.95)
    (small,) = made.models
    assert small.threshold is None
    assert small.refused is not None
    assert (small.refused.labels_needed or 0) > 25
    write_calibration(open_state(run.spec.state), made)
    cascade = job(tmp_path, "calibrated").policy.tasks["default"].cascade
    assert cascade is not None
    assert cascade.bar("small@s") > 1.0


def test_a_job_knows_what_its_calibration_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By which scorer, and what follows where it does not hold; `cascade show` says that it does not."""
    run = outputs(tmp_path, answers(1000))
    write_calibration(open_state(run.spec.state), cascades.found(run, None, None, 0.9, 0.95))
    task = job(tmp_path, "calibrated").policy.tasks["default"]
    assert task.cascade is not None
    assert task.cascade.promise == Promise(1, f"exact@{scorer_version(task.scorers[0])}", 0.9, stops=True)
    told = job(tmp_path, "calibrated, on_drift: tell").policy.tasks["default"].cascade
    assert told is not None
    assert told.promise is not None
    assert not told.promise.stops
    plain = job(tmp_path).policy.tasks["default"].cascade
    assert plain is not None
    assert plain.promise is None
    with pytest.raises(SpecError, match="goes with `threshold: calibrated`"):
        job(tmp_path, "0.9, on_drift: stop")
    url = run.spec.state
    Drifts(url).add(Drift("default", 1, "small@s", "exact@1", 0.9, 240, 0.71, 1_795_525_200.0, "job", "job-1"))
    assert call(["cascade", "show", "default", "--state", url]) == 0
    assert "240 accepted answers of small@s are right (by exact) in 0.710" in capsys.readouterr().out
    write_calibration(open_state(url), cascades.found(run, None, None, 0.9, 0.95))
    assert call(["cascade", "show", "default", "--state", url]) == 0
    assert "does not hold" not in capsys.readouterr().out


def test_validate_tells_what_a_cascade_does_not_promise(tmp_path: Path) -> None:
    """A threshold that somebody chose, and a model that the calibration does not know."""
    assert any("was not calibrated; nothing is promised" in told for told in spec.warnings(job(tmp_path)))
    assert not any("calibrat" in told for told in spec.warnings(job(tmp_path, "2")))
    run = outputs(tmp_path, answers(1000))
    write_calibration(open_state(run.spec.state), cascades.found(run, None, None, 0.9, 0.95))
    told = [told for told in spec.warnings(job(tmp_path, "calibrated")) if "calibrat" in told]
    assert told == ["task default: its calibration has no threshold for mid@m, so all answers of it are doubted"]


ALONE = JOB.replace("{models: [small, mid, top], signal: SIGNAL, threshold: THRESHOLD}", "[small, mid, top]")


def loaded(folder: Path, text: str) -> RunSpec:
    (folder / "job.yaml").write_text(text)
    return spec.load(folder / "job.yaml")


def test_models_alone_are_a_cascade_by_its_calibration(tmp_path: Path) -> None:
    """Signal and thresholds are those that were found on labelled rows; where none were, it says how to find them."""
    with pytest.raises(SpecError, match=r"job.yaml:11: cascade: models alone go by a calibration, .*threshold: 2"):
        loaded(tmp_path, ALONE)
    run = outputs(tmp_path, answers(1000), "margin")
    write_calibration(open_state(run.spec.state), cascades.found(run, None, None, 0.9, 0.95))
    alone = loaded(tmp_path, ALONE)
    assert (
        alone.policy.tasks["default"].cascade == job(tmp_path, "calibrated", "margin").policy.tasks["default"].cascade
    )
    assert alone.fingerprint == spec.load(tmp_path / "job.yaml").fingerprint
    with pytest.raises(SpecError, match=r"cascade\[1\]: no model `middle`"):
        loaded(tmp_path, ALONE.replace("small, mid,", "small, middle,"))


def test_models_alone_do_not_say_who_judges(tmp_path: Path) -> None:
    """A calibration knows the judge's version, not its rubric."""
    rows = [{**row, "signal_by": "j1" if row["model"] == "small" else None} for row in answers(300)]
    run = outputs(tmp_path, rows, JUDGED)
    write_calibration(open_state(run.spec.state), cascades.found(run, None, None, 0.9, 0.95))
    with pytest.raises(SpecError, match="calibrated with a judge as signal; say which"):
        loaded(tmp_path, ALONE)


def test_a_quality_above_what_the_calibration_promises_is_refused(tmp_path: Path) -> None:
    """Nor is one served that nobody promises; where no answer but the last model's is taken, none is needed."""
    good = f"min_quality: 0.9\n{JOB}".replace("SIGNAL", "logprob")
    hand, never, calibrated = (good.replace("THRESHOLD", each) for each in ("0.9", "2", "calibrated"))
    with pytest.raises(SpecError, match=r"min_quality: nobody promises that quality: the cascade was not calibrated"):
        loaded(tmp_path, hand)
    assert loaded(tmp_path, never).policy.tasks["default"].min_quality == 0.9
    run = outputs(tmp_path, answers(1000))
    write_calibration(open_state(run.spec.state), cascades.found(run, None, None, 0.9, 0.95))
    assert loaded(tmp_path, calibrated).policy.tasks["default"].cascade is not None
    for text in (calibrated, f"min_quality: 0.9\n{ALONE}"):
        with pytest.raises(SpecError, match=r"job.yaml:1: min_quality: is 0.95, and calibration 1 promises 0.9 "):
            loaded(tmp_path, text.replace("0.9\n", "0.95\n", 1))


def test_a_calibration_promises_what_the_task_asks_for(tmp_path: Path) -> None:
    """Said once, in the job file; a task that asks for nothing wants it said."""
    run = outputs(tmp_path, answers(1000))
    with pytest.raises(SpecError, match="with --min-quality: task default has no `min_quality`"):
        cascades.found(run, None, None, None, 0.95)
    asking = msgspec.structs.replace(run.spec.policy.tasks["default"], min_quality=0.9)
    policy = msgspec.structs.replace(run.spec.policy, tasks={"default": asking})
    run = msgspec.structs.replace(run, spec=msgspec.structs.replace(run.spec, policy=policy))
    assert cascades.found(run, None, None, None, 0.95).min_quality == 0.9
    assert cascades.found(run, None, None, 0.8, 0.95).min_quality == 0.8


def test_a_calibration_is_of_one_prompt(tmp_path: Path) -> None:
    """Answers to another one, of an experiment say, don't count for it; and a job that asks another is refused."""
    other = [{**row, "prompt_version": "kind", "score": 0.0} for row in answers(500, seed=2)]
    run = outputs(tmp_path, [*answers(1000), *other])
    made = cascades.found(run, None, None, 0.9, 0.95)
    assert made.prompt == PROMPT
    (small,) = made.models
    assert small.threshold is not None
    assert small.threshold.rows == 1000
    write_calibration(open_state(run.spec.state), made)
    assert job(tmp_path, "calibrated").policy.tasks["default"].cascade is not None
    with pytest.raises(SpecError, match="calibrated with another prompt"):
        job(tmp_path, "calibrated", text="Kindly: {{ text }}")


def test_a_calibration_is_of_one_version_of_a_model(tmp_path: Path) -> None:
    """Another version is sure of other things."""
    rows = [{**row, "model_version": "0"} for row in answers(1000)]
    run = outputs(tmp_path, rows)
    write_calibration(open_state(run.spec.state), cascades.found(run, None, None, 0.9, 0.95))
    cascade = job(tmp_path, "calibrated").policy.tasks["default"].cascade
    assert cascade is not None
    assert cascade.bar("small@s") > 1.0


def test_what_cant_be_calibrated_is_told(tmp_path: Path) -> None:
    """No scores, no signal, another scorer, no calibration, a calibration of another signal."""
    with pytest.raises(SpecError, match="has a signal and a score"):
        cascades.found(outputs(tmp_path, [sample(1, "small", None, 1.0)]), None, None, 0.9, 0.95)
    with pytest.raises(SpecError, match="--scorer: exact"):
        cascades.found(outputs(tmp_path, answers(10)), None, "regex", 0.9, 0.95)
    with pytest.raises(SpecError, match="never calibrated"):
        job(tmp_path, "calibrated")
    run = outputs(tmp_path, answers(300))
    made = write_calibration(open_state(run.spec.state), cascades.found(run, None, None, 0.9, 0.95))
    write_calibration(open_state(run.spec.state), msgspec.structs.replace(made, signal="margin"))
    with pytest.raises(SpecError, match="of the signal margin"):
        job(tmp_path, "calibrated")


@pytest.mark.parametrize("state", ["running", "interrupted", "cancelled", "stopped_by_budget", "failed"])
def test_a_run_whose_rows_have_not_all_ended_calibrates_nothing(tmp_path: Path, state: RunState) -> None:
    """Rows that end first are easier, or shorter, than the rest: the promise is of rows drawn at random."""
    run = outputs(tmp_path, answers(300))
    open_run = msgspec.structs.replace(run, status=msgspec.structs.replace(run.status, state=state))
    with pytest.raises(SpecError, match="no fair draw"):
        cascades.found(open_run, None, None, 0.9, 0.95)


def test_a_calibration_is_numbered_and_never_overwritten_unseen(tmp_path: Path) -> None:
    """Two at once: the second is told."""
    run = outputs(tmp_path, answers(300))
    state, made = open_state(run.spec.state), cascades.found(run, None, None, 0.9, 0.95)
    assert [write_calibration(state, made).version for _ in range(2)] == [1, 2]
    assert read_calibration(state, "default") == msgspec.structs.replace(made, version=2)
    with pytest.raises(Conflict):
        state.put("cascades/default.json", b"{}", ABSENT)
