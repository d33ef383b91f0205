"""Evaluations as people run them, on models whose quality was planted: the right winner is named, the wrong one never,
and a kill changes nothing of what is found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.jobs.cli import call
from penstock.jobs.sandbox import Behaviour, Faults, Settings, running_sandbox
from penstock.jobs.sandbox.ledger import read_journal
from penstock.jobs.sandbox.planted import Planted

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

Json = dict[str, Any]
WINDOW = 64
ROWS = 1_500


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with labelled rows and a job, and the sandbox that knows their answers, with a journal."""
    folder = tmp_path_factory.mktemp("evals")
    assert call(["sandbox", "rows", str(ROWS), "-o", str(folder / "rows.jsonl")]) == 0
    shaky = Behaviour(planted=Planted(0.95), faults=Faults(refuse=0.3))
    settings = Settings(journal=str(folder / "journal.jsonl"), models={"shaky": shaky})
    with running_sandbox(settings, process=True) as url:
        (folder / "job.yaml").write_text(job(url))
        yield folder, url


def job(url: str) -> str:
    price = "price: {input_per_million: 1, output_per_million: 2, version: pretend}"
    dear = "price: {input_per_million: 10, output_per_million: 20, version: dear}"
    return f"""\
name: sort
source: rows.jsonl
row: {{attributes: {{unit: "{{{{ id }}}}"}}}}
prompt: "Which department? {{{{ text }}}}"
output: {{choices: [billing, delivery, other, product]}}
params: {{max_tokens: 8, temperature: 0}}
scorers: [{{type: exact, expected: "{{{{ label }}}}"}}]
accounts: {{s: {{protocol: openai, base_url: "{url}/v1"}}}}
models:
  - {{name: good, account: s, model: "planted:0.80", {price}}}
  - {{name: shaky, account: s, model: shaky, {price}}}
  - {{name: best, account: s, live: v1, versions: [{{id: v1, model: "planted:0.93:best"}}, {{id: v2, model: "planted:0.70:v2", {dear}}}], {price}}}
sinks: out.jsonl
execution: {{window: {WINDOW}}}
"""  # noqa: E501 - as people write it


@pytest.fixture
def here(world: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world[0])
    return world[0]


def evaluated(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Json:
    capsys.readouterr()
    assert call(["eval", "job.yaml", *argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def qualities(told: Json) -> dict[str, float]:
    return {line["name"]: line["quality"]["mean"] for line in told["candidates"]}


ALL = ("--model", "good", "--model", "best", "--model", "best@v2")


def test_the_planted_winner_is_named_and_the_rest_is_not_paid_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three candidates, two of them versions of one model; the same command again calls nobody."""
    told = evaluated(capsys, *ALL, "--name", "three", "--slice", "channel")
    assert told["winner"] == "best@v1"
    assert told["stopped_by_itself"]
    assert told["rows"] < ROWS
    for line, truth in zip(told["candidates"], (0.80, 0.93, 0.70), strict=True):
        assert line["quality"]["low"] < truth < line["quality"]["high"], line["name"]
        assert (line["failed"], line["rows"]) == (0, told["rows"])
    paid = {line["name"]: line["cost_nano"] for line in told["candidates"]}
    assert paid["best@v2"] == pytest.approx(10 * paid["best@v1"], rel=0.1), "not at its own price"
    real = {frozenset((d["first"], d["second"])): d["real"] for d in told["differences"]}
    assert real[frozenset(("best@v1", "best@v2"))]  # the other may not be yet: all pairs together are held to more
    assert told["classes"][1]["macro_f1"] > 0.85
    assert {s["attribute"] for s in told["slices"]} == {"channel"}
    calls = len(read_journal(here / "journal.jsonl"))
    assert calls < 3 * ROWS * 0.9
    again = evaluated(capsys, *ALL, "--name", "three", "--slice", "channel")
    assert len(read_journal(here / "journal.jsonl")) == calls
    assert (again["winner"], qualities(again)) == (told["winner"], qualities(told))
    assert call(["eval", "show", "three"]) == 0
    shown = capsys.readouterr().out
    assert "the winner is best@v1" in shown
    assert "best@v1 is better than best@v2 by" in shown


def test_equal_candidates_have_no_winner_and_variants_are_candidates_too(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another prompt for the same model, over the same rows, within as many rows as were asked for."""
    (here / "brief.yaml").write_text('prompt: "{{ text }}"\nparams: {max_tokens: 4}\n')
    argv = ("--model", "good", "--variant", "brief=brief.yaml", "--rows", "150", "--name", "same")
    told = evaluated(capsys, *argv)
    assert (told["winner"], told["rows"]) == (None, 150)
    assert [line["name"] for line in told["candidates"]] == ["good@planted:0.80", "good@planted:0.80 brief"]
    assert not any(d["real"] for d in told["differences"])


@pytest.mark.parametrize("order", [("shaky", "good"), ("good", "shaky")])
def test_who_refuses_hard_rows_is_not_flattered(
    here: Path, capsys: pytest.CaptureFixture[str], order: tuple[str, str]
) -> None:
    """Refused rows score nothing, whether the refuser is asked first or as a shadow; the other has all its rows."""
    models = [part for name in order for part in ("--model", name)]
    told = evaluated(capsys, *models, "--name", f"first-{order[0]}", "--rows", "300", "--all-rows")
    lines = {line["name"].partition("@")[0]: line for line in told["candidates"]}
    assert (told["rows"], told["unasked"]) == (300, 0)
    assert 50 < lines["shaky"]["failed"] < 130  # 30 % of 300: over four standard errors to each side
    assert lines["shaky"]["quality"]["low"] < 0.95 * 0.7 < lines["shaky"]["quality"]["high"]
    assert lines["good"]["failed"] == 0
    assert lines["good"]["quality"]["low"] < 0.8 < lines["good"]["quality"]["high"]


@pytest.mark.long
def test_a_budget_holds_and_what_was_found_until_then_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3, both where it could never be enough and where it runs out."""
    assert call(["eval", "job.yaml", *ALL, "--name", "poor", "--budget-usd", "0.000001"]) == 3
    assert "fewer rows" in capsys.readouterr().err
    whole = evaluated(capsys, *ALL, "--name", "rich", "--rows", "200", "--all-rows")
    budget = 0.8 * whole["spent_usd"]
    told = evaluated(
        capsys, *ALL, "--name", "poorer", "--rows", "200", "--all-rows", "--budget-usd", f"{budget:.9f}", code=3
    )
    assert 0.5 * budget < told["spent_usd"] <= budget
    assert 100 < told["rows"] < 200, "rows that were begun first are whole first"
    more = evaluated(capsys, *ALL, "--name", "poorer", "--rows", "200", "--all-rows", "--budget-usd", "1")
    assert (more["rows"], qualities(more)) == (200, qualities(whole))


def test_a_job_that_changed_is_told_of_and_a_fresh_start_asks_it_as_it_is_now(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another model answered is neither shown as this one's nor mixed with it, and its money is no bar."""
    argv = ("--model", "best", "--model", "good", "--name", "edited", "--rows", "120", "--all-rows")
    before = evaluated(capsys, *argv)
    job_file = here / "job.yaml"
    was = job_file.read_text()
    try:
        job_file.write_text(was.replace("planted:0.93:best", "planted:0.30:best"))
        assert call(["eval", "job.yaml", *argv]) == 2
        assert "model best has changed" in capsys.readouterr().err
        calls = len(read_journal(here / "journal.jsonl"))
        now = evaluated(capsys, *argv, "--fresh")
        assert len(read_journal(here / "journal.jsonl")) >= calls + 2 * 120
        again = evaluated(capsys, *argv)
    finally:
        job_file.write_text(was)
    assert (now["state"], now["rows"]) == ("done", 120)
    assert qualities(again) == qualities(now)
    assert qualities(now)["best@v1"] < 0.5 < qualities(before)["best@v1"]


KILL_AFTER = 500
"""Calls: a third of the evaluation is done."""


@pytest.mark.long
def test_killed_and_gone_on_with_it_finds_the_same_and_pays_little_twice(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`kill -9` of the command in the middle: the table of all rows is that of a run that nobody killed."""
    argv = [*ALL, "--name", "killed", "--rows", "400", "--all-rows"]
    before = len(read_journal(here / "journal.jsonl"))
    command = [sys.executable, "-m", "penstock.jobs.cli", "eval", "job.yaml", *argv]
    killed = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while len(read_journal(here / "journal.jsonl")) - before < KILL_AFTER:
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    told = evaluated(capsys, *argv)
    assert (told["state"], told["rows"]) == ("done", 400)
    entries = read_journal(here / "journal.jsonl")[before:]
    paid = Counter((entry.key, entry.model) for entry in entries)
    assert len(paid) == 3 * 400
    assert len(entries) - len(paid) <= 3 * WINDOW
    whole = evaluated(capsys, *ALL, "--name", "whole", "--rows", "400", "--all-rows")
    assert qualities(told) == qualities(whole)
    assert told["classes"] == whole["classes"]
