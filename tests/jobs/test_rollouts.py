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
from pathlib import Path
from typing import Any

import pytest

from penstock.connectors.audit import open_audit
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


@pytest.fixture
def sandbox() -> Iterator[str]:
    models = {
        name: Behaviour(latency_ms=LATENCY_MS, planted=Planted(quality=quality))
        for name, quality in (("good", GOOD), ("bad", BAD))
    }
    with running_sandbox(Settings(models=models), process=True) as url:
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
        return [json.loads(line)["penstock"] for line in (self.folder / "out.jsonl").read_bytes().splitlines()]

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


EXPERIMENT = """\
execution: {lanes: 1, window: 500}  # what is read already keeps its arm
experiments:
  - name: wording
    arms:
      - {name: plain, weight: 3}
      - {name: rude, prompt: "Hurry up! {{ text }}"}
    guardrails: [quality]
"""


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
            assert (r["experiment"], r["propensity"]) == ("rolling/wording", {"plain": 0.75, "rude": 0.25}[r["arm"]])
    versions = {arm: version for seen in units.values() for arm, version in seen}
    assert versions.keys() == {"plain", "rude", None}
    assert versions["plain"] == versions[None] != versions["rude"]
    assert all(len({arm for arm, _ in seen} - {None}) <= 1 for seen in units.values()), "a unit switched its arm"
    assert sum(r["arm"] == "rude" for r in results) < 0.25 * 6_000 * 0.8
    assert call(["experiment", "show", "wording", "--state", place.state]) == 0
