"""What a person types about rollouts and experiments, and what they are told."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.base import Raw
from penstock.connectors.calibrations import write_judges
from penstock.connectors.measured import Registry
from penstock.connectors.reading.intake import Intake
from penstock.connectors.reading.replay import ReplayIntake
from penstock.connectors.state import open_state
from penstock.connectors.steering import SteeringFile
from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.items import Item
from penstock.engine.judging import judge_version
from penstock.engine.measure.agreement import agreement
from penstock.engine.measure.distinct import Distinct
from penstock.engine.policy import NEVER, Cascade, Promise
from penstock.engine.registry import document as registry_document
from penstock.engine.steering.document import Steering
from penstock.engine.steering.judges import Calibration
from penstock.engine.steering.rollout import Rollout, Shadowing
from penstock.jobs import requeue, rollouts
from penstock.jobs.cli import call
from penstock.jobs.history import History, open_history
from penstock.jobs.spec import load
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunState, RunStatus, Tally

JOB = """\
name: labels
source: in.csv
prompt: "{{ text }}"
output: {choices: [a, b]}
sample: 1.0
scorers: [{type: exact, expected: "{{ label }}"}]
accounts: {sand: {protocol: openai, base_url: "http://127.0.0.1:1", provider: sandbox}}
models: [{name: small, account: sand, price: free, live: v1, versions: [{id: v1, model: m1}, {id: v2, model: m2}]}]
sinks: out.jsonl
experiments:
  - {name: wording, arms: [{name: plain}, {name: kind, prompt: "Please: {{ text }}"}]}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "in.csv").write_text("text,label\nhello,a\n")
    return tmp_path


def steering(here: Path) -> Steering:
    found = SteeringFile(str(here / ".penstock")).read()
    assert found is not None
    return found[0]


def ran(here: Path, *cells: Cell) -> None:
    """As a run leaves its history."""
    spec = load(here / "job.yaml")
    history = open_history(spec.state)
    history.save_spec(spec)
    status = RunStatus(run_id=spec.run_id, name=spec.name, state="done", started_at=1.0)
    status.cells = list(cells)
    history.save_status(status)


def test_a_rollout_is_started_seen_to_and_taken_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["rollout", "start", "small", "v2", "--stages", "5,25,100", "--job", "job.yaml"]) == 0
    said = capsys.readouterr()
    assert "stage 1 of 2: 5 % of the units get v2" in said.out
    at = steering(here).rollouts["small"]
    assert (at.baseline, at.candidate, at.stages) == ("v1", "v2", (0.05, 0.25))
    assert call(["rollout", "pause", "small", "--why", "asking"]) == 0
    assert call(["rollout", "resume", "small"]) == 0
    assert call(["rollout", "promote", "small"]) == 0
    assert call(["rollout", "list"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2, 25 %" in shown
    assert call(["rollback", "small", "--why", "it swears"]) == 0
    assert "rolled back; v1 is live for all" in capsys.readouterr().out
    assert call(["audit", "list", "--json"]) == 0
    kinds = [entry["kind"] for entry in json.loads(capsys.readouterr().out)]
    assert kinds == ["rollout_started", "stage", "stage", "stage", "rollback"]
    assert call(["audit", "verify"]) == 0


def test_a_rollout_begins_where_its_job_keeps_its_state(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Anywhere else no job would ever obey it. The commands that follow are told to look there, too."""
    (here / "job.yaml").write_text(JOB + "state: shared\n")
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml"]) == 0
    there = "penstock rollout show small --state shared, penstock rollback small --state shared"
    assert there in capsys.readouterr().out
    assert not (here / ".penstock").exists()
    assert call(["rollout", "show", "small", "--state", "shared"]) == 0
    assert "back: penstock rollback small --state shared" in " ".join(capsys.readouterr().out.split())


def test_a_promotion_that_the_guards_were_faster_with_does_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person who saw 5 % does not send everybody to the new version because it went to 25 % meanwhile."""
    assert call(["rollout", "start", "small", "v2", "--stages", "5,33.333333,100", "--job", "job.yaml"]) == 0
    assert call(["rollout", "show", "small"]) == 0
    assert "penstock rollout promote small --from 5;" in capsys.readouterr().out
    assert call(["rollout", "promote", "small"]) == 0
    assert call(["rollout", "promote", "small", "--from", "5"]) == 2
    assert "has moved: 33.3333 % of the units get v2 now, not 5 %; nothing was done" in capsys.readouterr().err
    assert steering(here).rollouts["small"].stage == 1
    assert call(["rollout", "promote", "small", "--from", "33.3333"]) == 0
    assert steering(here).live["small"] == "v2"


def test_any_version_can_be_gone_back_to(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After the promotion another version was tried, and passed or failed: the last rollout leads back to nothing."""
    ran(here)
    assert call(["rollout", "start", "small", "v2", "--stages", "50"]) == 0
    assert call(["rollout", "promote", "small"]) == 0
    assert call(["rollout", "start", "small", "v1", "--stages", "shadow"]) == 0
    assert call(["rollout", "promote", "small"]) == 0
    assert call(["rollback", "small"]) == 2
    assert "penstock rollback small --to VERSION goes to any version" in capsys.readouterr().err
    assert call(["rollback", "small", "--to", "v1", "--why", "it swears"]) == 0
    assert "small v1 → v2: rolled back; v1 is live for all" in capsys.readouterr().out
    assert steering(here).live == {"small": "v1"}
    assert call(["rollout", "show", "small"]) == 0
    assert "v1 → v2  rolled back" in capsys.readouterr().out
    assert call(["rollback", "small", "--to", "v1"]) == 2
    assert call(["rollback", "small", "--to", "v9"]) == 2
    said = capsys.readouterr().err
    for words in ("v1 of small is live already", "small has no version 'v9'"):
        assert words in said
    assert call(["rollout", "start", "small", "v2", "--stages", "50"]) == 0
    assert call(["rollback", "small", "--to", "v2"]) == 0
    assert steering(here).live == {"small": "v2"}
    capsys.readouterr()
    assert call(["audit", "list", "--kind", "rollback", "--json"]) == 0
    facts = [entry["facts"] for entry in json.loads(capsys.readouterr().out)]
    assert [(told["baseline"], told["candidate"]) for told in facts] == [("v1", "v2"), ("v1", "v2"), ("v2", "v1")]
    assert facts[0]["why"] == "it swears"


def test_show_says_what_the_guards_say_and_why_it_came_here(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["rollout", "start", "small", "v2", "--guard", "quality,cost", "--job", "job.yaml"]) == 0
    at = steering(here).rollouts["small"]
    cells = [
        Cell("default", "small", v, "", "", "", at.id, f"{side}-1", items=n, results=n)
        for side, v, n in (("baseline", "v1", 3_600), ("candidate", "v2", 400))
    ]
    for cell, good in zip(cells, (3_060, 300), strict=True):
        cell.scores["exact@1"] = Scored(counts={0: cell.items - good, 1_000: good})
    ran(here, *cells)
    capsys.readouterr()
    assert call(["rollout", "show", "small"]) == 0
    shown = capsys.readouterr().out
    assert "small: v1 → v2  running  stage 1 of 3, 1 % of the units" in shown
    assert "3,600 by v1, 400 by v2" in shown
    assert "fail" in shown
    assert "-10.0 points" in shown
    assert call(["rollout", "show", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert [guard["decision"] for guard in told["guards"]] == ["fail", "go on"]


def test_a_shadow_stage_is_started_in_front_of_stages_or_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ("--job", "job.yaml")
    assert call(["rollout", "start", "small", "v2", "--shadow", "--shadow-usd", "0.5", "--stages", "5,100", *job]) == 0
    assert "shadow stage, 10 % of the items are answered by v2 as well" in capsys.readouterr().out
    at = steering(here).rollouts["small"]
    assert (at.stages, at.shadow) == ((0.05,), Shadowing(0.1, 500_000_000))
    assert call(["rollout", "list"]) == 0
    assert "shadow" in capsys.readouterr().out
    assert call(["rollout", "promote", "small"]) == 0
    assert "stage 1 of 1: 5 % of the units get v2" in capsys.readouterr().out
    assert call(["rollback", "small"]) == 0
    assert call(["rollout", "start", "small", "v2", "--stages", "shadow", "--items", "300", *job]) == 0
    at = steering(here).rollouts["small"]
    assert (at.stages, at.shadow and at.shadow.pairs) == ((), 300)
    capsys.readouterr()
    assert call(["rollout", "promote", "small"]) == 0
    assert "v2 passed its shadow stage; v1 stays live for all" in capsys.readouterr().out
    assert steering(here).live == {"small": "v1"}
    assert call(["rollout", "start", "small", "v2", "--stages", "shadow,10,100", "--shadow-share", "50", *job]) == 0
    at = steering(here).rollouts["small"]
    assert (at.stages, at.shadow) == ((0.1,), Shadowing(0.5, 5 * 10**9))


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--stages", "shadow,100"], "stages are 1 to"),
        (["--stages", "5,shadow"], "such as 1,5,25,100 or shadow,5,100"),
        (["--shadow", "--shadow-share", "0"], "more than 0 and at most 100 %"),
        (["--shadow", "--shadow-usd", "0"], "a shadow stage needs money"),
        (["--shadow", "--shadow-usd", "nan"], "finite number of dollars"),
        (["--shadow", "--shadow-usd", "1e300"], "a billion dollars at most"),
    ],
)
def test_a_shadow_that_makes_no_sense_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], given: list[str], word: str
) -> None:
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml", *given]) != 0
    assert word in " ".join(capsys.readouterr().err.split())


def test_a_watch_keeps_a_few_units_on_the_old_version(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["rollout", "start", "small", "v2", "--stages", "5", "--watch", "2", "--job", "job.yaml"]) == 0
    assert call(["rollout", "promote", "small"]) == 0
    said = capsys.readouterr().out
    assert "v2 is live; watch, round 1 of at most 10, 2 % of the units keep v1" in said
    assert call(["rollout", "list"]) == 0
    assert "watch, round 1" in capsys.readouterr().out
    assert call(["rollout", "show", "small"]) == 0
    assert call(["rollout", "promote", "small"]) == 0
    assert "v2 is live for all" in capsys.readouterr().out
    assert call(["rollback", "small"]) == 0
    assert call(["rollout", "start", "small", "v2", "--stages", "5", "--watch", "96", "--job", "job.yaml"]) != 0
    assert "a watch keeps" in capsys.readouterr().err


def test_show_tells_pairs_and_who_stood_beside(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        call(["rollout", "start", "small", "v2", "--stages", "shadow", "--guard", "quality", "--job", "job.yaml"]) == 0
    )
    at = steering(here).rollouts["small"]
    live = Cell("default", "small", "v1", "", "", "", at.id, "baseline-0", items=900, results=900)
    beside = Cell("default", "small", "v2", "", "", "shadow", at.id, "candidate-0", items=90, results=90)
    beside.cost_nano = 250_000_000
    beside.pairs["exact@1"] = Scored(counts={-1_000: 20, 0: 70})
    beside.scores["exact@1"] = Scored(counts={0: 30, 1_000: 60})
    ran(here, live, beside)
    capsys.readouterr()
    assert call(["rollout", "show", "small"]) == 0
    shown = capsys.readouterr().out
    assert "900 items by v1, 90 of them answered by v2 as well, for $0.2500 of $5.00" in " ".join(shown.split())
    assert "-22.2 points" in shown
    assert "fail" in shown


JUDGE = "{type: judge, model: small, rubric: Kind.}"


@pytest.mark.parametrize(
    ("measured", "word"),
    [
        ("sample: 1.0\nscorers: [exact]", None),
        (f"sample: 1.0\nscorers: [{JUDGE}, exact]", None),
        (f"sample: 1.0\nscorers: [{JUDGE}]", "penstock label calibrate"),
        ("scorers: [exact]", "no task has both `sample:` and `scorers:`"),
        ("sample: 1.0", "no task has both `sample:` and `scorers:`"),
    ],
)
def test_a_rollout_that_nothing_can_decide_about_is_told_so_when_it_starts(
    here: Path, capsys: pytest.CaptureFixture[str], measured: str, word: str | None
) -> None:
    there = 'sample: 1.0\nscorers: [{type: exact, expected: "{{ label }}"}]'
    assert there in JOB
    (here / "job.yaml").write_text(JOB.replace(there, measured))
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml"]) == 0
    assert ("note: the guard of quality can pass or fail no stage" in (said := capsys.readouterr().err)) == bool(word)
    assert word is None or word in said
    assert call(["rollback", "small"]) == 0
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml", "--guard", "cost"]) == 0
    assert "guard of quality" not in capsys.readouterr().err


CASCADE = "cascade: {models: [small, big], signal: validity}\nsinks:"
BIG = ", {name: big, account: sand, price: free, live: b, versions: [{id: b, model: m3}]}]\n"


def test_a_shadow_stage_of_a_model_that_only_cascades_ask_is_told_of(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It compares nothing that a cascade answered. Where a task asks the model by itself, it does."""
    climbing = JOB.partition("experiments:")[0].replace("]}]\n", "]}" + BIG).replace("sinks:", CASCADE)
    (here / "job.yaml").write_text(climbing)
    start = ["rollout", "start", "small", "v2", "--job", "job.yaml"]
    assert call([*start, "--shadow"]) == 0
    assert "only cascades ask small (task default), and a shadow stage compares none" in capsys.readouterr().err
    assert call(["rollback", "small"]) == 0
    assert call(start) == 0
    assert call(["rollback", "small"]) == 0
    (here / "job.yaml").write_text(JOB)
    assert call([*start, "--shadow"]) == 0
    assert "cascade" not in capsys.readouterr().err


def test_a_cascade_without_a_threshold_for_the_new_version_is_told_of(here: Path) -> None:
    (here / "job.yaml").write_text(JOB)
    spec = load(here / "job.yaml")
    (task,) = spec.policy.tasks.values()
    for thresholds, told in (({"small@v1": 0.5}, 1), ({"small@v1": 0.5, "small@v2 by 7": 0.5}, 0)):
        cascade = Cascade(("small", "big"), "agreement", NEVER, 3, thresholds, promise=Promise(1, "exact@1", 0.9))
        climbing = msgspec.structs.replace(task, cascade=cascade)
        policy = msgspec.structs.replace(spec.policy, tasks={task.name: climbing})
        ask = rollouts.Ask("small", "v2", (0.5,), ("quality",))
        url = str(here / f"state{told}")
        policy = msgspec.structs.replace(policy, experiments=())
        heard = rollouts.start(url, ask, rollouts.Job(spec.catalog, policy))
        assert len(heard.notes) == told
        assert all("no threshold for small@v2" in word for word in heard.notes)


def test_a_rollout_whose_items_an_experiment_takes_is_told_so_until_that_is_stopped(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(here)
    start = ["rollout", "start", "small", "v2"]
    assert call(start) == 0
    assert "all items of task default are in the experiment labels/wording and count there" in capsys.readouterr().err
    assert call(["rollback", "small"]) == 0
    assert call(["experiment", "stop", "wording"]) == 0
    capsys.readouterr()
    assert call(start) == 0
    assert "experiment" not in capsys.readouterr().err


def test_a_judge_that_is_calibrated_decides_and_no_word_is_needed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "job.yaml").write_text(JOB.replace('{type: exact, expected: "{{ label }}"}', JUDGE))
    spec, agreed = load(here / "job.yaml"), agreement([[60, 0], [0, 40]])
    (scorer,) = spec.policy.tasks["default"].scorers
    assert agreed is not None
    known = Calibration(f"judge@{judge_version(scorer, 'v1')}", "small", 60, 40, agreed, "run", "now", "ann")
    write_judges(open_state(spec.state), [known])
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml"]) == 0
    assert "guard of quality" not in capsys.readouterr().err


def test_what_makes_no_sense_is_refused_with_the_way_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["rollout", "start", "small", "v2", "--job", "job.yaml"]
    assert call([*start, "--stages", "5,1"]) == 2
    assert call([*start, "--stages", "one"]) == 2
    assert call([*start, "--guard", "luck"]) == 2
    assert call(["rollout", "start", "small", "v9", "--job", "job.yaml"]) == 2
    assert call(["rollout", "start", "small", "v2"]) == 2
    assert call(["rollback", "small"]) == 2
    assert call(start) == 0
    assert call(start) == 2
    said = capsys.readouterr().err
    for words in (
        "stages are 1 to 20 rising percentages below 100",
        "expected percentages, such as 1,5,25,100",
        "there is no guard 'luck'; guards: quality",
        "small has no version 'v9' in the catalogue; versions: v1, v2",
        "no model is named 'small'; models: none. --job names",
        "small never had a rollout here",
        "has a rollout already",
    ):
        assert words in said


def test_the_latest_run_knows_the_model_where_no_file_is_named(here: Path) -> None:
    ran(here)
    assert call(["rollout", "start", "small", "v2"]) == 0
    assert steering(here).rollouts["small"].candidate == "v2"


def test_an_experiment_is_listed_shown_and_stopped(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (key,) = (each.key for each in load(here / "job.yaml").policy.experiments)
    cells = [
        Cell("default", "small", "v1", p, "", "", key, arm, items=n, results=n)
        for arm, p, n in (("plain", "p", 500), ("kind", "k", 510))
    ]
    for cell, good in zip(cells, (400, 480), strict=True):
        cell.scores["exact@1"] = Scored(counts={0: cell.items - good, 1_000: good})
        cell.ended = cell.items
    ran(here, *cells)
    assert call(["experiment", "list"]) == 0
    assert "labels/wording" in capsys.readouterr().out
    assert call(["experiment", "show", "wording"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "+14.1 points" in shown
    assert "the arms got the shares of the answers that were meant" in shown
    for cell, units in zip(cells, (3, 200), strict=True):
        cell.united, cell.units = cell.ended, Distinct()
        for n in range(units):
            cell.units.see(f"{cell.arm} {n}")
    ran(here, *cells)
    assert call(["experiment", "show", "wording"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "SHARES DON'T FIT" in shown
    assert "the arms got other shares of the units (203 looked at) than was meant" in shown
    assert "1,010 items have a unit: where units bring several, they are what effects and guardrails count" in shown
    assert call(["experiment", "stop", "wording", "--why", "kind it is"]) == 0
    assert steering(here).experiments["labels/wording"].why == "kind it is"
    assert call(["experiment", "stop", "wording"]) == 2
    assert call(["experiment", "show", "nothing"]) == 2
    said = capsys.readouterr().err
    assert "labels/wording was stopped already" in said
    assert "no experiment 'nothing'" in said


def finished(here: Path, name: str = "labels") -> tuple[History, list[Item]]:
    """A run of 30 rows as it stands in its history: every third answered by v2, after the rollout began."""
    (here / "in.csv").write_text("text,label\n" + "".join(f"hello {n},a\n" for n in range(30)))
    (here / "job.yaml").write_text(JOB.replace("name: labels", f"name: {name}"))
    spec = load(here / "job.yaml")
    intake = Intake(spec.run_id, "rows", spec.row, spec.policy, ["small"], job_vars=spec.vars)
    items = [made for raw in asyncio.run(read(spec)) if isinstance(made := intake.item(raw, 0.0), Item)]
    with (here / "out.jsonl").open("w") as file:
        for n, item in enumerate(items):
            told = {
                "item_id": item.item_id,
                "model": "small",
                "model_version": "v1" if n % 3 else "v2",
                "cost_usd": 0.5,
            }
            at = datetime.now(UTC).isoformat()
            file.write(json.dumps({"text": "x", "answer": "a", "penstock": {**told, "finished_at": at}}) + "\n")
    history = open_history(spec.state)
    history.save_spec(spec)
    outputs = {"results": [str(here / "out.jsonl")]}
    history.save_status(
        RunStatus(run_id=spec.run_id, name=name, state="done", started_at=1.0, ended_at=9e9, outputs=outputs)
    )
    return history, items


async def read(spec: RunSpec) -> list[Raw]:
    return [raw async for raw in requeue.records(spec)]


def unfinished(history: History, at: Rollout) -> list[str]:
    found, left = requeue.touched(history, at)
    assert found == []
    return [each.run_id for each in left]


def test_what_the_bad_version_answered_is_sent_again_as_the_next_generation(here: Path) -> None:
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml"]) == 0
    history, items = finished(here)
    assert call(["rollback", "small"]) == 0
    (one,), left = requeue.touched(history, steering(here).rollouts["small"])
    bad = items[::3]
    assert left == []
    assert set(one.generations) == {bytes.fromhex(item.item_id) for item in bad}
    assert one.cost_nano == len(bad) * 500_000_000
    made = requeue.prepare(history, one)
    assert (made.sent, made.lost, made.spec.run_id) == (10, 0, f"{one.run_id}~replay-1")
    again = ReplayIntake(Intake(made.spec.run_id, "rows", made.spec.row, made.spec.policy, ["small"]))
    back = [again.item(raw, 0.0) for raw in asyncio.run(read(made.spec))]
    assert [(each.item_id, each.generation) for each in back] == [(item.item_id, 1) for item in bad]
    assert [each.request for each in back if isinstance(each, Item)] == [item.request for item in bad]


def test_what_a_version_answered_is_sent_again_after_any_way_back(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rollout is not the model's latest any more: the way back still knows since when it answered."""
    assert call(["rollout", "start", "small", "v2", "--stages", "50", "--job", "job.yaml"]) == 0
    assert call(["rollout", "promote", "small"]) == 0
    _, items = finished(here)
    assert call(["rollout", "start", "small", "v1", "--stages", "shadow", "--job", "job.yaml"]) == 0
    assert call(["rollout", "promote", "small"]) == 0
    for again in range(2):  # the second time it is back already
        monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
        assert call(["rollback", "small", "--to", "v1", "--requeue"]) == 0
        said = capsys.readouterr().out
        assert ("small v1 → v2: rolled back" in said) == (not again)
        assert f"{len(items[::3])} items answered by small@v2" in said


def test_a_way_back_does_not_wait_for_a_run_that_cannot_be_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor for a job whose catalogue has other versions: another job has this one."""
    ran(here)
    assert call(["rollout", "start", "small", "v2", "--stages", "50"]) == 0
    assert call(["rollout", "promote", "small"]) == 0
    old, latest = load(here / "job.yaml"), here / ".penstock" / "runs"
    models = {"small": msgspec.structs.replace(old.catalog.models["small"], live="v2")}
    models["small"] = msgspec.structs.replace(models["small"], versions=models["small"].versions[1:])
    catalog = msgspec.structs.replace(old.catalog, models=models)
    history = open_history(old.state)
    history.save_spec(msgspec.structs.replace(old, run_id="other-1", name="other", catalog=catalog))
    history.save_status(RunStatus("other-1", "other", "done", started_at=9.0))
    for run_id, file in (("broken-1", "spec.json"), ("broken-2", "status.json")):
        history.save_spec(msgspec.structs.replace(old, run_id=run_id, name=run_id))
        history.save_status(RunStatus(run_id, run_id, "done", started_at=8.0))
        (latest / run_id / file).write_text("{")
    capsys.readouterr()
    assert call(["rollback", "small", "--to", "v9"]) == 2
    assert "versions: v2, v1" in capsys.readouterr().err
    assert call(["rollback", "small", "--to", "v1"]) == 0
    told = capsys.readouterr()
    assert "v1 is live for all" in told.out
    assert [f"note: run broken-{n} was left out: " in told.err for n in (1, 2)] == [True, True]


def test_what_a_version_that_no_rollout_brought_answered_is_not_sent_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(here)
    assert call(["rollback", "small", "--to", "v2"]) == 0
    assert call(["rollback", "small", "--requeue"]) == 2
    assert "small@v1 was live before any rollout that is known here" in capsys.readouterr().err


def test_requeue_says_what_it_costs_and_asks(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml"]) == 0
    finished(here)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert call(["rollback", "small", "--requeue"]) == 0
    said = capsys.readouterr().out
    assert "10 items answered by small@v2" in said
    assert "sending 10 items again costs about $5.00" in said
    assert "Send them?" in said
    assert not (here / "out.replay-1.jsonl").exists()


def test_a_run_that_cannot_be_sent_again_holds_up_no_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The inputs of two were moved; what became of a third can't be read."""
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml"]) == 0
    for name in ("one", "two", "three"):
        history, _ = finished(here, name)
    (here / "in.csv").rename(here / "moved.csv")
    broken = history.status(load(here / "job.yaml").run_id)
    broken.outputs = {"results": [str(here / "gone.jsonl")]}
    history.save_status(broken)
    assert call(["rollback", "small", "--requeue", "--yes"]) == 2
    said = capsys.readouterr()
    assert "sending 20 items again" in said.out
    assert f"note: {broken.run_id} is left out: " in said.err
    refused = [line for line in said.err.splitlines() if "is not sent again: no file matches" in line]
    assert sorted(line.split()[1].partition("-")[0] for line in refused) == ["one", "two"]
    assert not list((here / ".penstock" / "replays").glob("*/*"))


@pytest.mark.parametrize(
    ("state", "silent_s", "word"),
    [
        ("running", 5.0, "it has not ended (running); give --requeue again when it has"),
        ("running", 500.0, "it was not finished (its command is gone): penstock run "),
        ("interrupted", 500.0, "it was not finished (interrupted): penstock run "),
        ("cancelled", 500.0, "it was not finished (cancelled): penstock run "),
        ("stopped_by_budget", 500.0, None),
    ],
)
def test_a_run_that_has_to_be_finished_first_is_told_how(
    here: Path, state: RunState, silent_s: float, word: str | None
) -> None:
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml"]) == 0
    history, _ = finished(here)
    status = history.status(load(here / "job.yaml").run_id)
    status.state, status.updated_at = state, time.time() - silent_s
    history.save_status(status)
    found, left = requeue.touched(history, steering(here).rollouts["small"])
    assert len(found) == (word is None)
    assert [each.why.startswith(word or "") for each in left] == [True] * (word is not None)


def test_a_state_that_a_next_command_names_is_one_word_to_a_shell(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`s3://…?sse=aws:kms&sse_kms_key_id=…` would be cut off at its `&`."""
    for folder in (here / "a&b", here / "there"):
        folder.mkdir()
    state = str(here / "a&b")
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml", "--state", state]) == 0
    spec = load(here / "job.yaml")
    history = open_history(state)
    history.save_spec(msgspec.structs.replace(spec, state=state))
    status = RunStatus(spec.run_id, spec.name, "interrupted", tally=Tally(dead_letters={"budget": 1}))
    history.save_status(status)
    monkeypatch.chdir(here / "there")
    assert call(["rollback", "small", "--requeue", "--state", state]) == 0
    assert call(["dead-letters", "replay", spec.run_id, "--state", state]) == 2
    told = capsys.readouterr().err.splitlines()
    commands = [line.partition("penstock run ")[2] for line in told if "penstock run " in line]
    assert [shlex.split(command)[:3] for command in commands] == [[spec.run_id, "--state", state]] * 2
    assert call(["report", spec.run_id, "--state", state]) == 0
    assert shlex.quote(state).replace(" ", "") in "".join(capsys.readouterr().out.split())


def test_what_an_earlier_replay_has_under_way_or_sent_is_not_sent_and_paid_for_once_more(here: Path) -> None:
    """The replay was killed, and goes on some day; once it ended, its own records tell of its items, letters too."""
    assert call(["rollout", "start", "small", "v2", "--job", "job.yaml"]) == 0
    history, _ = finished(here)
    assert call(["rollback", "small"]) == 0
    at = steering(here).rollouts["small"]
    (one,), _ = requeue.touched(history, at)
    made = requeue.prepare(history, one)
    history.save_spec(made.spec)
    assert unfinished(history, at) == [made.spec.run_id]
    nothing = here / "nothing.jsonl"
    nothing.touch()
    outputs = {"results": [str(nothing)]}
    status = RunStatus(made.spec.run_id, "labels", "interrupted", started_at=2.0, outputs=outputs)
    history.save_status(status)
    assert unfinished(history, at) == [made.spec.run_id]
    status.state, status.ended_at = "done", 9e9
    history.save_status(status)
    assert requeue.touched(history, at) == ([], [])


def test_a_run_that_the_registry_knew_and_forgot_is_counted_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells are in the shared sums; its history has them too."""
    monkeypatch.setattr(registry_document, "MAX_RUNS", 0)
    one = Cell("default", "small", "v1", items=5, results=5)
    ran(here, one)
    spec = load(here / "job.yaml")
    Registry(open_state(spec.state), spec.run_id, 1).end([one])
    assert Registry(open_state(spec.state)).read().runs == {}
    assert sum(cell.items for cell in rollouts.measured(spec.state)) == 5
