"""Versions change under running jobs: a worse one is taken back by itself, a person's word is obeyed, and no unit ever
changes its arm, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.connectors.audit import open_audit
from penstock.engine.quality import sampled
from penstock.engine.steering.rollout import Rollout
from penstock.engine.steering.turn import gate_of
from penstock.jobs import rollouts
from penstock.jobs.cli import call
from penstock.jobs.sandbox import Settings, running_sandbox
from penstock.jobs.sandbox.cases import rows as labelled
from penstock.jobs.sandbox.planted import Planted
from penstock.jobs.sandbox.settings import Behaviour

pytestmark = pytest.mark.ray

GOOD, BAD = 0.95, 0.6
LATENCY_MS, CONCURRENCY = 100, 40
PER_S = CONCURRENCY * 1000 / LATENCY_MS
"""Items a second, at most: the sandbox answers none sooner."""

JOB = """\
name: rolling
source: in.jsonl
row: {{keep: [n], attributes: {{unit: "{{{{ customer }}}}"}}}}
prompt: "{{{{ text }}}}"
output: {{choices: [{choices}], on_invalid: keep}}
params: {{max_tokens: 8, temperature: 0.7}}
sample: 1.0
scorers: [{{type: exact, expected: "{{{{ label }}}}"}}]
accounts:
  sand: {{protocol: openai, base_url: "{url}/v1", provider: sandbox, limits: {{concurrency: {concurrency}}}}}
models: [{{name: small, account: sand, price: {{input_per_million: 1, output_per_million: 1}}, live: v1,
          versions: [{{id: v1, model: good}}, {{id: v2, model: bad}}]}}]
sinks: {{results: out.jsonl}}
"""


@contextmanager
def answering(**qualities: float) -> Iterator[str]:
    """A sandbox whose models are right that often."""
    models = {
        name: Behaviour(latency_ms=LATENCY_MS, planted=Planted(quality=quality)) for name, quality in qualities.items()
    }
    with running_sandbox(Settings(models=models), process=True) as url:
        yield url


@pytest.fixture
def sandbox() -> Iterator[str]:
    with answering(good=GOOD, bad=BAD) as url:
        yield url


@pytest.fixture
def equal() -> Iterator[str]:
    """Two versions that are as good."""
    with answering(good=GOOD, bad=GOOD) as url:
        yield url


class Place:
    """A folder with a job of so many rows, ten of each customer."""

    def __init__(self, folder: Path, url: str, rows: int) -> None:
        self.folder, self.url = folder, url
        self.state = str(folder / ".penstock")
        made = list(labelled(rows, seed=1))
        choices = ", ".join(sorted({row["label"] for row in made}))
        text = JOB.format(url=url, choices=choices, concurrency=CONCURRENCY)
        (folder / "job.yaml").write_text(text)
        with (folder / "in.jsonl").open("w") as file:
            for n, row in enumerate(made):
                file.write(json.dumps({**row, "n": n, "customer": f"c{n // 10}"}) + "\n")

    def start(self, stages: str, *more: str) -> Rollout:
        job = str(self.folder / "job.yaml")
        assert (
            call(["rollout", "start", "small", "v2", "--stages", stages, "--job", job, "--state", self.state, *more])
            == 0
        )
        return self.rollout

    def run(self) -> int:
        return call(["run", str(self.folder / "job.yaml")])

    @property
    def rollout(self) -> Rollout:
        return rollouts.steering(self.state).rollouts["small"]

    def results(self) -> list[dict[str, Any]]:
        return [each["penstock"] for each in self.records("out")]

    def records(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_bytes().splitlines()]

    def beside(self) -> set[str]:
        """Items that the candidate answered beside the live version, by their samples; each stands there once."""
        found = [each["item_id"] for each in self.records("out.quality") if each["role"] == "shadow"]
        assert len(found) == len(set(found))
        return set(found)

    def calls(self, model: str) -> int:
        with urllib.request.urlopen(f"{self.url}/stats", timeout=10) as reply:
            return json.loads(reply.read())["models"].get(model, {"calls": 0})["calls"]


def until(holds: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < ends, f"never: {what}"
        time.sleep(0.05)


def test_a_worse_version_is_taken_back_by_itself_in_a_running_job(one_ray: None, tmp_path: Path, sandbox: str) -> None:
    """The numbers decide, while the job runs; what is left goes to the version before."""
    place = Place(tmp_path, sandbox, 6_000)
    begun = place.start("30", "--guard", "quality", "--items", "5000")
    assert place.run() == 0
    at, results = place.rollout, place.results()
    assert [d.what for d in at.decisions] == ["started", "rolled_back"]
    assert at.decisions[-1].by == "penstock"
    (told,) = at.decisions[-1].told
    assert (told.guard.split()[0], told.decision) == ("quality", "fail")
    assert told.items < 900  # of them scored, until it was noticed
    assert len(results) == 6_000
    bad = [r for r in results if r["model_version"] == "v2"]
    assert 0 < len(bad) < 0.3 * 6_000 * 0.8, "most of its share never saw it"
    gate = gate_of(begun)
    for r in results:
        if r["arm"] is not None:
            inside = gate.lets(r["unit"].encode())
            assert (r["arm"], r["model_version"]) == (("baseline-1", "v1"), ("candidate-1", "v2"))[inside]
            assert r["propensity"] == pytest.approx(0.3 if inside else 0.7)
            assert r["experiment"] == begun.id
    assert any(r["arm"] is None and gate.lets(r["unit"].encode()) for r in results), "its units went back"
    kinds = [entry.kind for entry in open_audit(place.state).entries()]
    assert (kinds.count("rollout_started"), kinds.count("rollback")) == (1, 1)


@pytest.mark.long
def test_a_rollback_by_hand_is_obeyed_by_a_running_job(one_ray: None, tmp_path: Path, sandbox: str) -> None:
    """Of the bad version no more is sent than what a machine could send within five seconds of the word."""
    place = Place(tmp_path, sandbox, 6_000)
    place.start("50")
    assert call(["rollout", "pause", "small", "--state", place.state]) == 0  # nothing but the word ends it
    said_at: list[int] = []

    def say() -> None:
        until(lambda: place.calls("bad") > 200, "the bad version is asked")
        assert call(["rollback", "small", "--state", place.state, "--why", "it swears"]) == 0
        said_at.append(place.calls("bad"))

    person = threading.Thread(target=say)
    person.start()
    assert place.run() == 0
    person.join()
    assert len(place.results()) == 6_000
    assert place.calls("bad") - said_at[0] <= 5 * PER_S / 2 + CONCURRENCY
    assert place.rollout.decisions[-1].why == "it swears"
    assert place.calls("bad") + place.calls("good") == 6_000, "something was asked twice, or never"
    bad = {r["item_id"] for r in place.results() if r["model_version"] == "v2"}
    assert call(["rollback", "small", "--state", place.state, "--requeue", "--yes"]) == 0
    again = [json.loads(line)["penstock"] for line in (tmp_path / "out.replay-1.jsonl").read_bytes().splitlines()]
    assert {r["item_id"] for r in again} == bad
    assert {(r["generation"], r["model_version"]) for r in again} == {(1, "v1")}
    assert call(["rollback", "small", "--state", place.state, "--requeue", "--yes"]) == 0
    assert not (tmp_path / "out.replay-2.jsonl").exists(), "it was sent again already"


@pytest.mark.long
def test_a_command_that_is_killed_in_a_stage_goes_on_in_it_and_no_unit_changes_its_arm(
    tmp_path: Path, sandbox: str, mark: str
) -> None:
    place = Place(tmp_path, sandbox, 2_000)
    place.start("40,80")
    assert call(["rollout", "pause", "small", "--state", place.state]) == 0
    begun = place.rollout
    command = [sys.executable, "-m", "penstock.jobs.cli", "run", str(tmp_path / "job.yaml")]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until(lambda: place.calls("bad") > 150 or first.poll() is not None, "the job goes")
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    asked = place.calls("bad") + place.calls("good")
    assert asked < 2_000
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False, timeout=300).returncode == 0
    assert place.rollout == begun
    versions: defaultdict[str, set[str]] = defaultdict(set)
    results = place.results()
    assert len({r["item_id"] for r in results}) == len(results) == 2_000
    for r in results:
        versions[r["unit"]].add(r["model_version"])
    gate = gate_of(begun)
    assert {unit: sorted(seen) for unit, seen in versions.items()} == {
        unit: ["v2" if gate.lets(unit.encode()) else "v1"] for unit in versions
    }


SHADOW = ("--guard", "quality", "--shadow-share", "30")


def test_a_worse_version_is_stopped_in_its_shadow_stage_and_nobody_ever_sees_an_answer_of_it(
    one_ray: None, tmp_path: Path, sandbox: str
) -> None:
    place = Place(tmp_path, sandbox, 4_000)
    begun = place.start("shadow,30", *SHADOW, "--shadow-usd", "0.2")
    assert place.run() == 0
    at, results = place.rollout, place.results()
    assert [d.what for d in at.decisions] == ["started", "rolled_back"]
    (told,) = at.decisions[-1].told
    assert (told.guard.split()[0], told.decision) == ("quality", "fail")
    assert "on the same" in told.why
    assert len(results) == 4_000
    assert {r["model_version"] for r in results} == {"v1"}
    assert {(r["experiment"], r["arm"]) for r in results} == {(begun.id, "baseline-0"), (None, None)}
    beside = place.beside()
    assert 0 < len(beside) < 0.3 * 4_000 * 0.8, "most of its share was never sent to it"
    assert all(sampled(item_id, 0.3) for item_id in beside)
    costs = [each for each in place.records("out.costs") if each["role"] == "shadow"]
    assert {each["model_version"] for each in costs} == {"v2"}
    assert 0 < sum(each["usd"] for each in costs) <= 0.2
    assert [e.kind for e in open_audit(place.state).entries() if "roll" in e.kind] == ["rollout_started", "rollback"]
    assert call(["report", "--state", place.state, "-o", str(tmp_path / "report.html")]) == 0
    assert "shadow" in (tmp_path / "report.html").read_text()


@pytest.mark.long
def test_a_version_that_is_as_good_goes_on_to_its_first_stage_after_the_shadow(
    one_ray: None, tmp_path: Path, equal: str
) -> None:
    place = Place(tmp_path, equal, 6_000)
    begun = place.start("shadow,50", *SHADOW, "--items", "120")
    assert place.run() == 0
    decisions = place.rollout.decisions
    assert [d.what for d in decisions[:2]] == ["started", "stage"]
    assert (decisions[1].stage, decisions[1].share) == (0, 0.5)
    results, beside = place.results(), place.beside()
    assert len(results) == 6_000
    assert len(beside) >= 200
    by_version = {(r["arm"], r["model_version"]) for r in results if r["experiment"] == begun.id}
    assert {("baseline-0", "v1"), ("baseline-1", "v1"), ("candidate-1", "v2")} <= by_version
    assert ("candidate-0", "v2") not in by_version
    assert {r["arm"] for r in results if r["item_id"] in beside} <= {"baseline-0"}


@pytest.mark.long
def test_a_shadow_stage_that_has_no_money_left_waits_and_jobs_go_on_without(
    one_ray: None, tmp_path: Path, equal: str
) -> None:
    """The money is that of all jobs together: the second one finds none, and says at last that the stage must wait. It
    pays for some 70 pairs: a guard that rules out a loss of 3 points can't pass with under 100, all of them alike."""
    place = Place(tmp_path, equal, 1_000)
    place.start("shadow", *SHADOW, "--items", "1000", "--shadow-usd", "0.004")
    assert place.run() == 0
    assert len(place.results()) == 1_000
    asked = place.calls("bad")
    assert 0 < asked < 0.3 * 1_000
    assert 0 < sum(each["usd"] for each in place.records("out.costs") if each["role"] == "shadow") <= 0.004
    job = tmp_path / "job.yaml"
    job.write_text(job.read_text().replace("name: rolling", "name: other").replace("out.jsonl", "other.jsonl"))
    assert place.run() == 0
    assert len(place.records("other")) == 1_000
    assert place.calls("bad") == asked
    at = place.rollout
    assert [d.what for d in at.decisions] == ["started", "waits"]
    assert "the shadow's money ($0.004) is spent" in at.decisions[-1].why


@pytest.mark.long
def test_a_command_that_is_killed_in_the_shadow_stage_goes_on_in_it_and_no_pair_counts_twice(
    tmp_path: Path, equal: str, mark: str
) -> None:
    place = Place(tmp_path, equal, 6_000)
    begun = place.start("shadow,50", *SHADOW, "--items", "120")
    command = [sys.executable, "-m", "penstock.jobs.cli", "run", str(tmp_path / "job.yaml")]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until(lambda: place.calls("bad") > 100 or first.poll() is not None, "the candidate is asked")
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert place.rollout == begun, "the stage goes on"
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False, timeout=300).returncode == 0
    decisions, results = place.rollout.decisions, place.results()
    assert [d.what for d in decisions[:2]] == ["started", "stage"]
    assert len({r["item_id"] for r in results}) == len(results) == 6_000
    (at,) = rollouts.standing(place.state, "small")
    assert at.items[-1][1] == len(place.beside()), "pairs of both lives count together"
    assert sum(pair[0] for stage, pair in at.items.items() if stage == -1) == sum(
        r["arm"] == "baseline-0" for r in results
    )


EXPERIMENT = """\
execution: {lanes: 1, window: 500}  # what is read already keeps its arm
experiments:
  - name: wording
    arms:
      - {name: plain, weight: 3}
      - {name: rude, prompt: "Hurry up! {{ text }}"}
    guardrails: [quality]
"""


@pytest.mark.long
def test_an_arm_that_breaks_a_guardrail_stops_its_experiment_in_a_running_job(one_ray: None, tmp_path: Path) -> None:
    """Both arms are told in the records, with the prompt that was shown; once it is stopped, all get the first arm."""
    planted = Planted(quality=GOOD, words={"Hurry up!": -0.4})
    with running_sandbox(
        Settings(models={"good": Behaviour(latency_ms=LATENCY_MS, planted=planted)}), process=True
    ) as url:
        place = Place(tmp_path, url, 6_000)
        job = tmp_path / "job.yaml"
        job.write_text(job.read_text() + EXPERIMENT)
        assert place.run() == 0
    results = place.results()
    assert len(results) == 6_000
    stopped = rollouts.steering(place.state).experiments["rolling/wording"]
    assert stopped.by == "penstock"
    assert "quality by scorer exact" in stopped.why
    units: defaultdict[str, set[tuple[str | None, str]]] = defaultdict(set)
    for r in results:
        units[r["unit"]].add((r["arm"], r["prompt_version"]))
        if r["arm"] is not None:
            assert r["experiment"].startswith("rolling/wording@")
            assert r["propensity"] == {"plain": 0.75, "rude": 0.25}[r["arm"]]
    versions = {arm: version for seen in units.values() for arm, version in seen}
    assert versions.keys() == {"plain", "rude", None}
    assert versions["plain"] == versions[None] != versions["rude"]
    assert all(len({arm for arm, _ in seen} - {None}) <= 1 for seen in units.values()), "a unit switched its arm"
    assert sum(r["arm"] == "rude" for r in results) < 0.25 * 6_000 * 0.8
    assert call(["experiment", "show", "wording", "--state", place.state]) == 0
