"""A job on real processes, to be killed: input, sandbox, the command, and its processes by what they are.

bench = Bench(folder, items=3000, …)           the input, the job file, the sandbox in a process of its own
command = bench.start()                        `penstock run job.yaml`
bench.kill("lane", command)                    kill -9 of one of its processes
bench.run_until_done(); bench.check(bound=…)   every item once, second payments within the promise and marked
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import msgspec
import psutil

from penstock.engine.quality import sampled
from penstock.jobs.look.committed import Finished
from penstock.jobs.look.verify import Paid, Report, journal_of
from penstock.jobs.sandbox import Behaviour, Faults, Settings, running_sandbox
from tests.crash.checker import assert_clean
from tests.crash.shared_ray import SharedRay

Kind = Literal["lane", "dispatcher", "governor", "driver", "command", "group"]
TITLES: dict[Kind, str] = {
    "lane": "ray::LaneActor",
    "dispatcher": "ray::WorkerActor",
    "governor": "ray::GovernorActor",
    "driver": "ray::Driver",
}
PATHS = {
    "results": "out/results.jsonl",
    "dead_letters": "out/results.dead_letters.jsonl",
    "costs": "beside/costs.jsonl",
    "quality": "beside/quality.jsonl",
    "review": "people/review.jsonl",
}
"""Costs, quality and review have places of their own: they follow the results by the outbox, and must survive kills
there."""
SINKS = tuple(PATHS)
SINKS_TOLD = ", ".join(f"{sink}: {path}" for sink, path in PATHS.items())
"""As a job file says them."""
MANY = 100
"""Results among which some are sampled for sure."""
MAIN = "import sys; from penstock.jobs.cli import main; sys.argv[0] = 'penstock'; main()"
REVIEW_SHARE = 0.3
SCORED = """\
sample: 0.2
scorers: [{type: regex, pattern: "(?i)[aeiou]"}]
"""
CONCURRENCY = 64
START_S = 180.0
END_S = 300.0
POLL_S = 0.03


class Shape(msgspec.Struct, frozen=True):
    """What kind of job."""

    items: int = 3_000
    latency_ms: float = 120.0
    jitter_ms: float = 60.0
    faults: Faults = Faults(server_error=0.02, invalid_json=0.005)
    seed: int = 0
    dispatchers: int = 1
    lanes: int = 4
    lane_actors: int | None = 2
    """None: as many as the cluster has cores for."""
    budget_usd: float | None = None
    concurrency: int = CONCURRENCY
    output_tokens: int = 12
    padding: int = 0
    """Bytes that each prompt has more: an input is cut at 1 MB, and a piece is one lane's."""
    window: int = 4_096
    keep_s: float = 120.0
    own_model: str | None = None
    """A second model, as the job file says it: the first candidate of every item; `m` follows where `fallback`."""
    fallback: bool = True
    others: str = ""
    """Models of no tier, as the job file lists them."""
    scored: str = SCORED
    """Which share of the results is scored, and how, as the job file says it."""
    more: str = ""
    """What else the job file says."""


class Bench:
    """Use `bench(...)`, which starts and ends the sandbox. `ray`: what commands join; None: each starts its own."""

    ALONE: ClassVar[tuple[Kind, ...]] = ("lane", "dispatcher", "governor", "driver")
    """Of these, no other bench's process works for this one: it has an account of its own."""

    def __init__(self, folder: Path, url: str, shape: Shape, ray: SharedRay | None = None) -> None:
        self.folder = folder
        self.url = url
        self.shape = shape
        self.ray = ray
        self.born = time.time()
        self.journal = folder / "journal.jsonl"
        self.input = folder / "input.jsonl"
        self.labels = [f"row-{n}" for n in range(shape.items)]
        self.commands: list[subprocess.Popen[bytes]] = []
        self.kills: list[str] = []
        self._write()

    # -- the job

    def _write(self) -> None:
        with self.input.open("wb") as file:
            for label in self.labels:
                file.write(msgspec.json.encode(_line(label, self.shape)) + b"\n")
        self.write_job()

    def write_job(self, **changes: object) -> None:
        """The job file, with changes to the shape."""
        self.shape = msgspec.structs.replace(self.shape, **changes)
        (self.folder / "job.yaml").write_text(job_text(self.url, self.shape))

    # -- commands

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`penstock run job.yaml …` in a process group of its own."""
        return self.penstock("run", "job.yaml", *arguments)

    def penstock(self, *arguments: str, shared_ray: bool = True) -> subprocess.Popen[bytes]:
        """Any command; what it says goes to a file of its own (see `log`). `shared_ray=False`: it starts its own."""
        with (self.folder / f"command-{len(self.commands)}.log").open("ab") as log:
            command = subprocess.Popen(
                [sys.executable, "-c", MAIN, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment(shared_ray=shared_ray),
            )
        self.commands.append(command)
        return command

    def _environment(self, *, shared_ray: bool) -> Mapping[str, str]:
        joined = {"RAY_ADDRESS": self.ray.address} if self.ray is not None and shared_ray else {}
        return {**os.environ, **joined}

    def log(self, command: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"command-{self.commands.index(command)}.log").read_text()

    def end(self, command: subprocess.Popen[bytes], timeout_s: float = END_S) -> int:
        """Wait for its exit code."""
        try:
            return command.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"the command did not end in {timeout_s:g} s:\n{self.log(command)}") from error

    def run_until_done(self, tries: int = 4) -> None:
        """Resume until exit 0."""
        for _ in range(tries):
            command = self.start()
            if self.end(command) == 0:
                return
        raise AssertionError(f"not done after {tries} commands:\n{self.log(self.commands[-1])}")

    def close(self) -> None:
        """End what still runs."""
        for command in self.commands:
            if command.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(command.pid, signal.SIGCONT)
                self.kill("group", command, random.Random(0))
        for kind in self.ALONE:
            for process in self._on_shared_ray(kind):
                kill_now(process)

    # -- how far it is

    def served(self) -> int:
        with urllib.request.urlopen(f"{self.url}/stats", timeout=60) as reply:
            return msgspec.json.decode(reply.read(), type=dict[str, object])["served"]  # pyright: ignore[reportReturnType]

    def wait_served(self, calls: int, command: subprocess.Popen[bytes], timeout_s: float = START_S) -> None:
        """Until the sandbox has answered so many calls in all."""
        until = time.monotonic() + timeout_s
        while self.served() < calls:
            assert command.poll() is None, f"ended with {command.returncode} too early:\n{self.log(command)}"
            assert time.monotonic() < until, f"{calls} calls were not served in {timeout_s:g} s:\n{self.log(command)}"
            time.sleep(POLL_S)

    # -- killing

    def find(self, kind: Kind, command: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Processes of this kind that work for the command."""
        return [*_of_kind(kind, command.pid), *self._on_shared_ray(kind)]

    def _on_shared_ray(self, kind: Kind) -> list[psutil.Process]:
        if self.ray is None or self.ray.pid is None:
            return []
        found = _of_kind(kind, self.ray.pid)
        return [one for one in found if born(one) > self.born] if kind in self.ALONE else found

    def kill(self, kind: Kind, command: subprocess.Popen[bytes], chance: random.Random) -> bool:
        """kill -9; False where there is none of the kind just now."""
        if kind == "command":
            command.kill()
            command.wait()
        elif kind == "group":  # with all that is only its own
            for process in [*self.find("driver", command), *self.find("lane", command), *below(command.pid)]:
                kill_now(process)
            command.kill()
            command.wait()
        else:
            found = self.find(kind, command)
            if not found:
                return False
            chance.choice(found).kill()
        self.kills.append(kind)
        return True

    # -- what came of it

    def outputs(self) -> dict[str, list[Path]]:
        named = {sink: self.folder / path for sink, path in PATHS.items()}
        return {sink: [path] for sink, path in named.items() if path.exists()}

    def paid(self) -> list[Paid]:
        return journal_of(self.journal) if self.journal.exists() else []

    def fastest_rate(self) -> int:
        """Most calls that the sandbox answered within one second."""
        times = sorted(paid.at for paid in self.paid())
        best = begin = 0
        for end, at in enumerate(times):
            while at - times[begin] > 1.0:
                begin += 1
            best = max(best, end - begin + 1)
        return best

    def longest_pause(self) -> float:
        """Seconds without any answer: the slowest recovery, a start of Ray included where there was one."""
        times = sorted(paid.at for paid in self.paid())
        return max((after - before for before, after in pairwise(times)), default=0.0)

    def check(self, bound: int) -> Report:
        report = assert_clean(self.labels, self.outputs(), self.paid(), bound=bound, chosen=for_people)
        assert report.samples or not self.shape.scored or report.results < MANY, "nothing was sampled"
        print(
            f"{self.kills}: {report.repeated} second payments (bound {bound}), {report.marked} marked, "
            f"longest pause {self.longest_pause():.1f} s"
        )
        return report


class Moved(msgspec.Struct):
    """As the driver's log tells it."""

    event: str
    lane: int = -1
    source: int = -1
    target: int = -1


def moves_of(b: Bench) -> list[Moved]:
    lines = [line for log in b.folder.glob(".penstock/logs/*/driver.jsonl") for line in log.read_bytes().splitlines()]
    return [move for line in lines if (move := msgspec.json.decode(line, type=Moved)).event == "lane moves"]


@contextlib.contextmanager
def bench(folder: Path, shape: Shape, ray: SharedRay | None = None) -> Generator[Bench]:
    behaviour = Behaviour(latency_ms=shape.latency_ms, jitter_ms=shape.jitter_ms, faults=shape.faults)
    settings = Settings(default=behaviour, journal=str(folder / "journal.jsonl"), seed=shape.seed)
    with running_sandbox(settings, process=True) as url:
        made = Bench(folder, url, shape, ray)
        try:
            yield made
        finally:
            made.close()


def _line(label: str, shape: Shape) -> dict[str, object]:
    messages = [
        {"role": "user", "content": f"Tell me about {label}, please, in a few words." + " x" * (shape.padding // 2)}
    ]
    model = {} if shape.own_model else {"model": "m"}
    body = {**model, "messages": messages, "max_tokens": shape.output_tokens}
    return {"custom_id": label, "method": "POST", "url": "/v1/chat/completions", "body": body}


def job_text(url: str, shape: Shape) -> str:
    budget = f"budgets: [{{usd: {shape.budget_usd:.9f}}}]\n" if shape.budget_usd is not None else ""
    own = f"  - {shape.own_model}\n" if shape.own_model else ""
    names = [*(["own"] if own else []), *(["m"] if shape.fallback or not own else [])]
    tier = ", ".join(names)
    return f"""\
name: crash
accounts:
  a: {{protocol: openai, base_url: "{url}/v1", limits: {{concurrency: {shape.concurrency}}}}}
models:
  - {{name: m, account: a, model: pretend, price: {{input_per_million: 1, output_per_million: 2, version: pretend}}}}
{own}{shape.others}tiers: {{1: [{tier}], 2: [{tier}], 3: [{tier}]}}
source: input.jsonl
sinks: {{{SINKS_TOLD}}}
max_dead_letters: 0.5
execution:
  lanes: {shape.lanes}
  lane_actors: {shape.lane_actors or "null"}
  dispatchers: {shape.dispatchers}
  window: {shape.window}
  keep_s: {shape.keep_s}
review: {{share: {REVIEW_SHARE}}}
{budget}{shape.scored}{shape.more}"""


def for_people(result: Finished) -> bool:
    """As the job's `review:` says."""
    return sampled(f"review {result.item_id}", REVIEW_SHARE)


def _of_kind(kind: Kind, pid: int) -> list[psutil.Process]:
    return [process for process in below(pid) if title(process).startswith(TITLES[kind])]


def below(pid: int) -> list[psutil.Process]:
    """All descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def born(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        return process.create_time()
    return 0.0


def kill_now(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
