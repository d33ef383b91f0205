"""A job whose model is under trial, on models whose quality was planted; to be killed in each phase of a trial.

with steered_bench(folder, shape, ray) as b:
    b.say("rollout", "start", "small", "v2", …)            a person's word
    harmed(b, b.start, ["lane", "command"], chance, calls) kills at moments that a seed decides, and the end
    b.check(bound=…); faults of `faults.py`
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from penstock.connectors.audit import open_audit
from penstock.engine.policy import Experiment
from penstock.engine.steering.document import Steering
from penstock.jobs import experiments, rollouts
from penstock.jobs.look.verify import Report
from penstock.jobs.sandbox import Behaviour, Faults, Settings, running_sandbox
from penstock.jobs.sandbox.cases import rows as labelled
from penstock.jobs.sandbox.planted import Planted
from tests.crash.bench import REVIEW_SHARE, SINKS, SINKS_TOLD, Bench, Kind, Shape
from tests.crash.checker import assert_clean
from tests.crash.shared_ray import SharedRay
from tests.crash.steered.faults import Fault, Logged, Record

GOOD, BAD = 0.95, 0.6
RUDE = "Hurry up!"
UNITS = 10
"""Rows of a customer."""
WINDOW = 64
"""Rows under way in a lane."""
LANES = 2
FOUND_S = 60.0
_SEED = 1
"""Of what models answer: the same in all benches, so that evaluations can be compared."""

JOB = """\
name: steered
source: rows.jsonl
row: {{id: "{{{{ n }}}}", keep: [n], attributes: {{unit: "{{{{ customer }}}}"}}}}
prompt: "{{{{ text }}}}"
output: {{choices: [billing, delivery, other, product], on_invalid: keep}}
params: {{max_tokens: 8, temperature: 0.7}}
sample: 1.0
scorers: [{{type: exact, expected: "{{{{ label }}}}"}}]
accounts:
  a: {{protocol: openai, base_url: "{url}/v1", limits: {{concurrency: {concurrency}}}}}
models:
  - {{name: small, account: a, price: {{input_per_million: 1, output_per_million: 2, version: pretend}}, live: v1,
     versions: [{{id: v1, model: good}}, {{id: v2, model: same}}, {{id: v3, model: bad}}]}}
sinks: {{{sinks}}}
review: {{share: {review}}}
execution: {{lanes: {lanes}, lane_actors: {lanes}, dispatchers: 1, window: {window}}}
{more}"""
EXPERIMENT = f"""\
experiments:
  - name: wording
    arms: [{{name: plain, weight: 3}}, {{name: rude, prompt: "{RUDE} {{{{ text }}}}"}}]
    guardrails: [quality]
"""


class Steered(Bench):
    """Use `steered_bench(...)`. Of `small`, `v2` is as good as `v1`, and `v3` is worse."""

    def _write(self) -> None:
        with (self.folder / "rows.jsonl").open("wb") as file:
            for n, (label, row) in enumerate(zip(self.labels, labelled(self.shape.items, seed=1), strict=True)):
                told = {**row, "n": label, "customer": f"c{n // UNITS}"}
                file.write(msgspec.json.encode(told) + b"\n")
        self.write_job()

    def write_job(self, **changes: object) -> None:
        self.shape = msgspec.structs.replace(self.shape, **changes)
        shape = self.shape
        text = JOB.format(
            url=self.url,
            concurrency=shape.concurrency,
            sinks=SINKS_TOLD,
            review=REVIEW_SHARE,
            window=shape.window,
            lanes=LANES,
            more=shape.more,
        )
        (self.folder / "job.yaml").write_text(text)

    # -- what a person says

    def say(self, *words: str, heard: Callable[[Steering], bool], chance: random.Random | None = None) -> None:
        """With a `chance`, the first command that says it is killed while it does; where the word was not heard by
        then, it is said again."""
        if chance is not None:
            command = self.penstock(*words, shared_ray=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(chance.uniform(0.2, 1.2))
            command.kill()
            command.wait()
        if not heard(self.steering):
            command = self.penstock(*words, shared_ray=False)
            assert self.end(command) == 0 or heard(self.steering), self.log(command)
        assert heard(self.steering)

    @property
    def state(self) -> str:
        return str(self.folder / ".penstock")

    @property
    def steering(self) -> Steering:
        return rollouts.steering(self.state)

    @property
    def experiment(self) -> Experiment:
        return experiments.find(self.state, "wording")

    # -- what came of it

    def records(self) -> list[Record]:
        found: list[Record] = []
        for line in (self.folder / "out" / "results.jsonl").read_bytes().splitlines():
            told = msgspec.json.decode(line)["penstock"]
            asked = max(datetime.fromisoformat(attempt["started_at"]).timestamp() for attempt in told["attempts"])
            found.append(msgspec.structs.replace(msgspec.convert(told, Record), asked_at=asked))
        return found

    def logged(self) -> list[Logged]:
        kinds = ("rollout_started", "stage", "rollback", "rollout_ended")
        entries = (entry for entry in open_audit(self.state).entries() if entry.kind in kinds)
        found = (json.loads(bytes(entry.facts)) for entry in entries)
        return [msgspec.convert(facts, Logged) for facts in found if "rollout" in facts]

    def audit_faults(self) -> Iterator[Fault]:
        verdict = open_audit(self.state).verify()
        if verdict.broken is not None:
            yield Fault("audit log broken", str(verdict.broken))

    def allowed(self, kills: int) -> int:
        """Second payments: what is in flight, and what was answered since the last commit, for each kill."""
        return kills * round(self.shape.concurrency + self.fastest_rate() * 0.4)

    # -- an evaluation

    def evaluate(self) -> subprocess.Popen[bytes]:
        """Three candidates on every row."""
        return self.penstock("eval", "job.yaml", *self.asked())

    def asked(self) -> list[str]:
        models = [part for version in ("v1", "v2", "v3") for part in ("--model", f"small@{version}")]
        # Enough for the leases that kills leave open, which count as spent.
        return [*models, "--name", "tried", "--all-rows", "--budget-usd", "5"]

    def table(self) -> dict[str, object]:
        """As `penstock eval show` tells it."""
        command = self.penstock("eval", "show", "tried", "--json", shared_ray=False)
        assert self.end(command) == 0, self.log(command)
        log = self.log(command)
        return json.loads(log[log.index("{") :])

    def check_evaluation(self, bound: int) -> Report:
        """Each row once, with all that its candidates cost."""
        place = self.folder / ".penstock" / "evals" / "tried"
        paths = {sink: [place / f"{sink}.jsonl"] for sink in SINKS if (place / f"{sink}.jsonl").exists()}
        return assert_clean([f"{n}~" for n in range(self.shape.items)], paths, self.paid(), bound=bound)


@contextlib.contextmanager
def steered_bench(folder: Path, shape: Shape, ray: SharedRay) -> Generator[Steered]:
    def model(quality: float) -> Behaviour:
        planted = Planted(quality=quality, words={RUDE: BAD - GOOD})
        return Behaviour(latency_ms=shape.latency_ms, jitter_ms=shape.jitter_ms, faults=shape.faults, planted=planted)

    models = {"good": model(GOOD), "same": model(GOOD), "bad": model(BAD)}
    settings = Settings(models=models, journal=str(folder / "journal.jsonl"), seed=_SEED)
    with running_sandbox(settings, process=True) as url:
        made = Steered(folder, url, shape, ray)
        try:
            yield made
        finally:
            made.close()


def shape_of(items: int, **more: str) -> Shape:
    return Shape(
        items, latency_ms=100, jitter_ms=40, faults=Faults(server_error=0.01), concurrency=40, window=WINDOW, **more
    )


Start = Callable[[], subprocess.Popen[bytes]]


def harmed(
    b: Steered,
    start: Start,
    kinds: Sequence[Kind],
    chance: random.Random,
    calls: int,
    then: Callable[[], None] | None = None,
) -> None:
    """Each kind in turn, once the sandbox has answered its share of so many calls; a command that was killed is run
    again, to its end. `then`: what a person does between the first kill and the second."""
    moments = sorted(chance.uniform(0.05, 0.8) for _ in kinds)
    command = start()
    for number, (moment, kind) in enumerate(zip(moments, kinds, strict=True)):
        _reach(b, round(moment * calls), command)
        _kill(b, kind, command, chance)
        if kind == "command":
            command = start()
        if number == 0 and then is not None:
            then()
    assert b.end(command) == 0, b.log(command)


def _reach(b: Steered, calls: int, command: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 2 * FOUND_S
    while b.served() < calls and command.poll() is None:
        assert time.monotonic() < until, f"{calls} calls were not served:\n{b.log(command)}"
        time.sleep(0.03)


def _kill(b: Steered, kind: Kind, command: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Once there is one to kill; nothing where the run has ended meanwhile."""
    until = time.monotonic() + FOUND_S
    while command.poll() is None and not b.kill(kind, command, chance):
        assert time.monotonic() < until, f"no process of kind {kind}:\n{b.log(command)}"
        time.sleep(0.05)
