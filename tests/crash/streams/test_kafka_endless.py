"""A job on a topic that never ends, as a service: probed, restarted while it works, widened, stopped."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.new_partitions import NewPartitions

from penstock.jobs.dev.ports import free_port
from tests.crash.bench import START_S
from tests.crash.streams import kafka_lines
from tests.crash.streams.kafka_lines import Offered
from tests.crash.streams.stage import Stage
from tests.crash.streams.stream_bench import StreamBench, StreamShape, line, stream_bench

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]
PARTITIONS = 4
LONGEST_GAP_S = 30.0
"""Without a finished item, at a hand-over of a job. Far above what is measured: other work may have the machine."""


class Service:
    """An endless job between topics, and whoever publishes to it."""

    def __init__(self, bench: StreamBench) -> None:
        self.bench = bench
        job = bench.folder / "job.yaml"
        job.write_text(job.read_text().replace("execution:\n", "execution:\n  discover_s: 1\n"))
        self._labels = (f"late-{n}" for n in itertools.count())

    def offer(self, count: int, partition: int | None = None, model: str = "m", **attributes: str) -> list[str]:
        """Their labels. `attributes`: said in headers."""
        labels = list(itertools.islice(self._labels, count))
        lines = [
            line(label, self.bench.shape).replace(b'"model":"m"', b'"model":"%b"' % model.encode()) for label in labels
        ]
        headers = tuple((f"penstock-{name}", value.encode()) for name, value in attributes.items())
        records = [Offered(one, headers=headers, partition=partition) for one in lines]
        self.bench.offered += [(b"", label) for label in labels]
        asyncio.run(kafka_lines.publish(self.bench.stage.kafka.bootstrap, self.bench.topic, records))
        return labels

    def results(self) -> dict[str, bytes]:
        """Label → result."""
        return {json.loads(value)["custom_id"]: value for value in self.bench.values("results")}

    def dead(self) -> dict[str, dict[str, Any]]:
        """Label → dead letter."""
        return {letter["custom_id"]: letter for letter in map(json.loads, self.bench.values("dead_letters"))}

    def tell(self, *arguments: str) -> None:
        """A command beside the one that runs."""
        told = self.bench.penstock(*arguments)
        assert self.bench.end(told) == 0, self.bench.log(told)

    def all_served(self, command: subprocess.Popen[bytes]) -> None:
        self.bench.wait_served(len(self.bench.offered), command)

    def know(self, model: str) -> None:
        """The job file lists one model more."""
        job = self.bench.folder / "job.yaml"
        more = f"  - {{name: {model}, account: a, model: sure, price: free}}\ntiers:"
        job.write_text(job.read_text().replace("tiers:", more))

    def replay(self) -> subprocess.Popen[bytes]:
        return self.bench.penstock("dead-letters", "replay", "job.yaml", "--reason", "unknown_model", "--yes")

    def answered(self, version: str, generation: int) -> list[str]:
        """Items that the version answered in that generation."""
        told = [json.loads(value)["penstock"] for value in self.bench.values("results")]
        return [t["item_id"] for t in told if (t["model_version"], t["generation"]) == (version, generation)]

    def letters(self, count: int) -> None:
        wait_for(f"{count} dead letters", lambda: len(self.bench.values("dead_letters")) == count)

    def widen(self, partitions: int) -> None:
        async def grow() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bench.stage.kafka.bootstrap)
            await admin.start()
            try:
                await admin.create_partitions({self.bench.topic: NewPartitions(partitions)})
            finally:
                await admin.close()

        asyncio.run(grow())

    def ends(self) -> dict[str, float]:
        """Label → when it was finished, Unix seconds."""
        told = {label: json.loads(value)["penstock"]["finished_at"] for label, value in self.results().items()}
        return {label: datetime.fromisoformat(at).timestamp() for label, at in told.items()}

    def longest_gap(self) -> float:
        """Seconds without a finished item, whoever was in charge."""
        ends = sorted(self.ends().values())
        return max(later - earlier for earlier, later in itertools.pairwise(ends))


def probe(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return 0


def wait_for(what: str, seen: Callable[[], bool]) -> None:
    until = time.monotonic() + START_S
    while not seen():
        assert time.monotonic() < until, f"never seen: {what}"
        time.sleep(0.1)


@pytest.mark.long
def test_an_endless_job_is_restarted_and_widened_while_it_works(servers: Stage, tmp_path: Path) -> None:
    """Probes answer; a second command takes over in peace (the first exits with 0); records of a new partition come;
    SIGTERM ends it with 130 and says how to go on. Every record once, and not one call was paid for twice."""
    shape = StreamShape(items=100, until="forever", model="sure", partitions=PARTITIONS)
    with stream_bench(servers, tmp_path, shape) as b:
        service, port = Service(b), free_port()
        first = b.start("--health-port", str(port))
        wait_for("healthz while it starts", lambda: probe(port, "healthz") == 200)
        service.all_served(first)
        wait_for("readyz", lambda: probe(port, "readyz") == 200)
        service.offer(200)
        second = b.start("--take-over")
        while first.poll() is None:
            service.offer(20)
        assert b.end(first) == 0, b.log(first)
        assert "handed over" in b.log(first)
        service.all_served(second)
        service.widen(PARTITIONS + 2)
        for partition in range(PARTITIONS + 2):
            service.offer(10, partition)
        service.all_served(second)
        second.send_signal(signal.SIGTERM)
        assert b.end(second) == 130, b.log(second)
        assert "goes on where it was" in b.log(second)
        gap = service.longest_gap()
        print(f"longest gap between two finished items: {gap:.1f} s")
        assert gap < LONGEST_GAP_S
        report = b.check(bound=0)
        assert report.results + report.dead_letters == len(b.offered)


@pytest.mark.long
def test_letters_of_a_job_without_an_end_are_sent_again_while_it_works_and_when_it_has_stopped(
    servers: Stage, tmp_path: Path
) -> None:
    """By the mended job, to the same topics, each once for its death; the job beside it goes on undisturbed."""
    shape = StreamShape(items=40, until="forever", model="sure", partitions=PARTITIONS)
    with stream_bench(servers, tmp_path, shape) as b:
        service = Service(b)
        command = b.start()
        service.offer(3, model="later")
        service.letters(3)
        service.know("later")
        replay = service.replay()
        while replay.poll() is None:
            service.offer(5)
            time.sleep(0.2)
        assert b.end(replay) == 0, b.log(replay)
        assert "sending 3 dead letters again" in b.log(replay)
        nothing = service.replay()
        assert b.end(nothing) == 2, b.log(nothing)
        service.offer(2, model="later")
        service.letters(5)
        b.wait_served(len(b.offered) - 2, command)
        command.send_signal(signal.SIGTERM)
        assert b.end(command) == 130, b.log(command)
        replay = service.replay()
        assert b.end(replay) == 0, b.log(replay)
        assert "sending 2 dead letters again" in b.log(replay)
        report = b.check(bound=0)
        assert (report.results, report.dead_letters) == (len(b.offered), 5)
        assert len(b.paid()) == len(b.offered)


@pytest.mark.long
def test_a_tier_waits_while_it_is_paused_and_a_changed_job_keeps_what_was_answered(
    servers: Stage, tmp_path: Path
) -> None:
    """Paused while it runs: not one item of the tier is sent, also by the command that takes over, and the other tier's
    end; one whose deadline passes meanwhile is a dead letter that cost nothing. Resumed, the rest ends. A job file that
    was changed asks for --accept-changes, and the results that are there stay as they are; what is urgent does not wait
    behind all that was published before it."""
    shape = StreamShape(items=40, until="forever", model="sure", partitions=PARTITIONS)
    with stream_bench(servers, tmp_path, shape) as b:
        service = Service(b)
        first = b.start()
        service.all_served(first)
        service.tell("pause", b.name, "--tier", "3")
        wait_for("that the tier is paused", lambda: "tier 3; its items wait" in b.log(first))
        waiting = service.offer(40, tier="3")
        soon = datetime.now(UTC) + timedelta(seconds=5)
        late = service.offer(8, tier="3", deadline=soon.isoformat())
        others = service.offer(40, tier="1")
        wait_for("the other tier's results", lambda: {*others} <= service.results().keys())
        wait_for("the letters of those whose time was over", lambda: {*late} <= service.dead().keys())
        second = b.start("--take-over")
        assert b.end(first) == 0, b.log(first)
        others += service.offer(20, tier="1")
        wait_for("results of the next command", lambda: {*others} <= service.results().keys())
        assert not {*waiting, *late} & service.results().keys()
        assert b.served() == shape.items + len(others)
        assert {(letter["reason"], letter["cost_usd"]) for letter in service.dead().values()} == {("deadline", 0)}
        service.tell("resume", b.name)
        wait_for("the paused tier's results", lambda: {*waiting} <= service.results().keys())
        second.send_signal(signal.SIGTERM)
        assert b.end(second) == 130, b.log(second)
        before = service.results()
        b.write_job(model="slow")
        refused = b.start()
        assert b.end(refused) == 2, b.log(refused)
        assert "--accept-changes" in b.log(refused)
        third = b.start("--accept-changes")
        new = service.offer(200)
        urgent = service.offer(5, latency="realtime")
        wait_for("results under the changed job", lambda: {*new, *urgent} <= service.results().keys())
        third.send_signal(signal.SIGTERM)
        assert b.end(third) == 130, b.log(third)
        assert {label: value for label, value in service.results().items() if label in before} == before
        ends = service.ends()
        last, most = max(ends[label] for label in urgent), sorted(ends[label] for label in new)[150]
        assert last < most, "what is urgent came first, though it was published behind all others"
        report = b.check(bound=0)
        assert (report.results, report.dead_letters) == (len(b.offered) - len(late), len(late))


@pytest.mark.long
def test_what_a_bad_version_answered_in_a_job_without_an_end_is_sent_again_while_it_works(
    servers: Stage, tmp_path: Path
) -> None:
    """Read from the topic once more, each once for its answer, by the version that is live again."""
    shape = StreamShape(items=20, until="forever", model="sure", partitions=PARTITIONS)
    with stream_bench(servers, tmp_path, shape) as b:
        service, job = Service(b), b.folder / "job.yaml"
        versions = "live: v1, versions: [{id: v1, model: sure}, {id: v2, model: slow}],"
        job.write_text(job.read_text().replace("model: sure,", versions))
        command = b.start()
        service.all_served(command)
        service.tell("rollout", "start", "m", "v2", "--stages", "50", "--job", "job.yaml")
        service.tell("rollout", "promote", "m")
        while not service.answered("v2", 0):
            service.offer(5)
            time.sleep(1.0)
        service.tell("rollback", "m", "--requeue", "--yes")
        while (more := len(service.answered("v2", 0)) + len(b.offered)) > b.served():
            service.tell("rollback", "m", "--requeue", "--yes")  # what was under way at the first
        b.wait_served(more, command)
        command.send_signal(signal.SIGTERM)
        assert b.end(command) == 130, b.log(command)
        again = service.answered("v1", 1)
        assert again
        assert sorted(again) == sorted(service.answered("v2", 0))
        report = b.check(bound=0)
        assert (report.results, report.dead_letters) == (len(b.offered) + len(again), 0)
