"""A job between topics, buckets or files, to be harmed: its input is published, its outputs are read back as readers
see them.

bench = StreamBench(stage, folder, StreamShape(items=2000, source="kafka", results="kafka"))
command = bench.start(); …; bench.run_until_done(); bench.check(bound=…)
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from penstock.jobs.look.committed import Finished, Outputs, read_outputs
from penstock.jobs.look.verify import Paid, Report, check, journal_of
from tests.crash.bench import END_S, PATHS, REVIEW_SHARE, SINKS, Bench, Shape, below, for_people
from tests.crash.streams import kafka_lines, outputs
from tests.crash.streams.kafka_lines import Offered, Seen
from tests.crash.streams.stage import Stage

Place = Literal["files", "kafka", "s3"]
Headers = tuple[tuple[str, bytes], ...]
OUT = "out/"
OBJECTS = 6
"""Objects of an S3 input."""


ASK_S = 3.0


class _Status(msgspec.Struct):
    request_counts: dict[str, int]


class StreamShape(Shape, frozen=True):
    """source, results, others: where the input is, the results go, and costs, quality and dead letters go; `quality`
    may have a place of its own."""

    source: Place = "kafka"
    results: Place = "kafka"
    others: Place = "kafka"
    quality: Place | None = None
    partitions: int = 4
    keys: int = 0
    """Different keys of the records; 0: none has a key."""
    order: Literal["none", "key"] = "none"
    model: str = "pretend"
    lane_actors: int = 2
    until: Literal["end", "forever"] = "end"
    group: str = "mirror"

    @property
    def places(self) -> dict[str, Place]:
        """Sink → where it is."""
        others = dict.fromkeys(SINKS, self.others)
        return {**others, "results": self.results, "quality": self.quality or self.others}

    @property
    def followers(self) -> set[Place]:
        """Stores that get by the outbox what belongs there."""
        return {*self.places.values()} - {self.results}


class StreamBench(Bench):
    """Use `stream_bench(...)`."""

    ALONE = ("lane", "driver")  # all benches have the stage's account
    shape: StreamShape

    def __init__(self, stage: Stage, folder: Path, shape: StreamShape) -> None:
        self.stage = stage
        self.name = f"job-{secrets.token_hex(3)}"
        self.bucket = self.name
        self._skip = len(journal_of(stage.journal)) if stage.journal.exists() else 0
        self._served = 0
        self.offered: list[tuple[bytes, str]] = []
        super().__init__(folder, stage.sandbox, shape, stage.ray)
        self._served = super().served()

    # -- the job

    @property
    def topic(self) -> str:
        return f"{self.name}.in"

    @property
    def group(self) -> str:
        """That mirrors the progress."""
        return f"{self.name}-{self.shape.group}"

    def out(self, sink: str) -> str:
        """The topic of a sink."""
        return f"{self.name}.{sink}"

    def _write(self) -> None:
        asyncio.run(self._prepare())
        self.write_job()

    async def _prepare(self) -> None:
        shape = self.shape
        self.stage.s3.client().create_bucket(Bucket=self.bucket)
        topics = {self.out(sink): shape.partitions for sink in SINKS}
        await kafka_lines.make_topics(self.stage.kafka.bootstrap, {self.topic: shape.partitions, **topics})
        await self.offer(self.labels)

    def add(self, labels: Iterable[str]) -> None:
        """More requests, while the job goes."""
        asyncio.run(self.offer(list(labels)))

    async def offer(self, labels: Sequence[str], headers: Headers = ()) -> None:
        """Put requests into the input, more than once where a test wants."""
        records = [Offered(line(label, self.shape), self._key(number), headers) for number, label in enumerate(labels)]
        self.offered += [(one.key or b"", label) for one, label in zip(records, labels, strict=True)]
        lines = [one.value or b"" for one in records]
        match self.shape.source:
            case "kafka":
                await kafka_lines.publish(self.stage.kafka.bootstrap, self.topic, records)
            case "s3":
                self._put(lines)
            case "files":
                outputs.as_file(self.input, lines)

    def _key(self, number: int) -> bytes | None:
        return b"key-%d" % (number % self.shape.keys) if self.shape.keys else None

    def _put(self, lines: Sequence[bytes]) -> None:
        client = self.stage.s3.client()
        for number in range(OBJECTS):
            some = lines[number::OBJECTS]
            client.put_object(
                Bucket=self.bucket, Key=f"in/part-{number:02}.jsonl", Body=b"".join(one + b"\n" for one in some)
            )

    def write_job(self, **changes: object) -> None:
        self.shape = msgspec.structs.replace(self.shape, **changes)
        (self.folder / "job.yaml").write_text(self.job_text())

    def job_text(self) -> str:
        shape = self.shape
        budget = f"budgets: [{{usd: {shape.budget_usd:.9f}}}]\n" if shape.budget_usd is not None else ""
        sinks = "".join(f"  {sink}: {{{self._sink(sink, where)}}}\n" for sink, where in shape.places.items())
        price = "{input_per_million: 1, output_per_million: 2, version: pretend}"
        return f"""\
name: {self.name}
accounts:
  a: {{protocol: openai, base_url: "{self.url}/v1", limits: {{concurrency: {shape.concurrency}}}}}
models:
  - {{name: m, account: a, model: {shape.model}, price: {price}}}
tiers: {{1: [m], 2: [m], 3: [m]}}
source: {{{self._source()}}}
sinks:
{sinks}max_dead_letters: 0.5
execution:
  lanes: {shape.lanes}
  lane_actors: {shape.lane_actors}
  dispatchers: {shape.dispatchers}
  window: {shape.window}
  keep_s: {shape.keep_s}
review: {{share: {REVIEW_SHARE}}}
{budget}"""

    def _source(self) -> str:
        shape = self.shape
        match shape.source:
            case "kafka":
                topic = f"topics: [{self.topic}], group: {self.group}"
                return f"{self._kafka}, {topic}, until: {shape.until}, order: {shape.order}"
            case "s3":
                return f"{self._s3}, prefix: in/"
            case "files":
                return f"type: files, path: {self.input.name}"

    def _sink(self, sink: str, where: Place) -> str:
        match where:
            case "kafka":
                return f"{self._kafka}, topic: {self.out(sink)}"
            case "s3":
                return f"{self._s3}, prefix: {OUT}{sink}/, format: jsonl"
            case "files":
                return f"type: files, path: {PATHS[sink]}"

    @property
    def _kafka(self) -> str:
        return f'type: kafka, bootstrap: "{self.stage.bootstrap}"'

    @property
    def _s3(self) -> str:
        return f'type: s3, bucket: {self.bucket}, endpoint: "{self.stage.endpoint}", region: us-east-1'

    def _environment(self, *, shared_ray: bool) -> Mapping[str, str]:
        return self.stage.environment(shared_ray=shared_ray)

    def served(self) -> int:
        return super().served() - self._served

    def wait_ended(self) -> None:
        """Until all that was offered has ended, as a command beside the job tells it."""
        until = time.monotonic() + END_S
        while (ended := self._ended()) < len(self.offered):
            assert time.monotonic() < until, f"{ended} of {len(self.offered)} ended:\n{self.log(self.commands[0])}"
            time.sleep(ASK_S)

    def _ended(self) -> int:
        status = self.penstock("status", self.name, "--json")
        assert self.end(status) == 0, self.log(status)
        counts = msgspec.json.decode(self.log(status), type=_Status).request_counts
        return counts["completed"] + counts["failed"]

    # -- what came of it

    def paid(self) -> list[Paid]:
        return journal_of(self.stage.journal)[self._skip :] if self.stage.journal.exists() else []

    def rows(self, sink: str) -> list[Seen]:
        return asyncio.run(kafka_lines.read(self.stage.kafka.bootstrap, self.out(sink)))

    def values(self, sink: str) -> list[bytes]:
        match self.shape.places[sink]:
            case "kafka":
                return outputs.kafka_values(self.rows(sink))
            case "s3":
                return outputs.s3_values(self.stage.s3.client(), self.bucket, f"{OUT}{sink}/")
            case "files":
                path = self.folder / PATHS[sink]
                return path.read_bytes().splitlines() if path.exists() else []

    def read_back(self, key: str = "custom_id") -> Outputs:
        folder = self.folder / "read-back"
        folder.mkdir(exist_ok=True)
        paths = {sink: [outputs.as_file(folder / f"{sink}.jsonl", self.values(sink))] for sink in SINKS}
        return read_outputs(paths, key)

    def check(self, bound: int) -> Report:
        """Every item once, each bill once, second payments marked and within the bound, the order of keys kept."""
        committed = self.read_back()
        offered = [label for _, label in self.offered]
        report = check(offered, committed, self.paid(), bound=bound, chosen=for_people)
        print(
            f"{self.kills}: {report.results} results, {report.dead_letters} dead letters, {report.repeated} second "
            f"payments (bound {bound}), {report.marked} marked, longest pause {self.longest_pause():.1f} s"
        )
        assert report.clean, str(report)
        if self.shape.order == "key":
            assert not (wrong := self.misordered(committed.finished)), f"out of order: {wrong[:10]}"
        return report

    def misordered(self, finished: Sequence[Finished]) -> list[str]:
        """By the results topic and by what the provider charged."""
        wrong = outputs.misordered(self.offered, _labelled(self.rows("results")))
        labels = {one.item_id: one.key for one in finished}
        keys = {label: key for key, label in self.offered}
        first: dict[str, float] = {}
        for paid in sorted(self.paid(), key=lambda one: one.at):
            first.setdefault(labels.get(paid.key, paid.key), paid.at)
        return wrong + outputs.misordered(self.offered, ((0, keys.get(label), label) for label in first))


def _labelled(rows: Sequence[Seen]) -> Iterator[tuple[object, bytes | None, str]]:
    for row in rows:
        found: Mapping[str, object] = msgspec.json.decode(row.value or b"{}")
        yield row.partition, row.key, str(found.get("custom_id"))


@contextlib.contextmanager
def stream_bench(stage: Stage, folder: Path, shape: StreamShape) -> Iterator[StreamBench]:
    made = StreamBench(stage, folder, shape)
    try:
        yield made
    finally:
        made.close()
        stage.heal()


@contextlib.contextmanager
def suspended(command: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGSTOP for all of a command, SIGCONT at the end."""
    stopped = [psutil.Process(command.pid), *below(command.pid)]
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def stopped_and_taken_over(b: StreamBench, calls: int, everything: Callable[[StreamBench], object]) -> None:
    """All of a command is stopped after so many calls, with its own Ray; a second one with --take-over finishes the
    run; the first wakes up: not a call more, nothing else in `everything`, and it says that it was taken over."""
    first = b.penstock("run", "job.yaml", shared_ray=False)
    b.wait_served(calls, first)
    with suspended(first):
        second = b.start("--take-over")
        assert b.end(second) == 0, b.log(second)
        paid, written = b.paid(), everything(b)
    assert b.end(first, 90.0) == 4, b.log(first)
    assert "taken over" in b.log(first)
    assert b.paid() == paid
    assert everything(b) == written
    b.kills.append("stopped command")


def line(label: str, shape: StreamShape) -> bytes:
    messages = [{"role": "user", "content": f"Tell me about {label}, please, in a few words."}]
    body = {"model": "m", "messages": messages, "max_tokens": shape.output_tokens}
    return msgspec.json.encode({"custom_id": label, "method": "POST", "url": "/v1/chat/completions", "body": body})
