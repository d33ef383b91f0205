"""S3 to S3, and results in one store with costs in another: killed servers, endpoints that fail as real ones do."""

from __future__ import annotations

import random
import time
from pathlib import Path

import msgspec
import pyarrow.dataset as ds
import pytest
from pyarrow.fs import FileSystem, S3FileSystem

from tests.crash.streams.stage import Stage
from tests.crash.streams.storms import PROCESSES, S3, UNCOMMITTED_S, Harm, line_of, note, storm
from tests.crash.streams.stream_bench import OUT, Place, StreamBench, StreamShape, stream_bench

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]


def test_one_job_survives_kills_of_its_parts_and_a_bad_s3_server(servers: Stage, tmp_path: Path) -> None:
    """A lane and the command; the server dies and comes back, and loses answers of conditional puts that succeeded.
    pyarrow then counts what we count."""
    shape = StreamShape(items=1_000, source="s3", results="s3", others="s3", window=512)
    with stream_bench(servers, tmp_path, shape) as b:
        report = storm(b, ["S3 answers lost", "lane", "S3 killed", "command"], seed=1)
        assert servers.front.seen["lost"]
        assert counted_by_pyarrow(b, "results") == report.results


@pytest.mark.long
def test_one_job_survives_an_s3_that_hangs_and_is_slow(servers: Stage, tmp_path: Path) -> None:
    """Errors of all kinds (503, half of a body, silence, lost answers); the driver; a server that freezes; a network
    that holds all up for longer than a client waits, is cut, and is slow in the end."""
    shape = StreamShape(items=1_000, source="s3", results="s3", others="s3", window=512)
    with stream_bench(servers, tmp_path, shape) as b:
        storm(b, ["S3 errors", "driver", "S3 held", "S3 frozen", "S3 cut", "S3 slow"], seed=1)
        assert servers.front.seen["slow_down"]


def counted_by_pyarrow(b: StreamBench, sink: str) -> int:
    """By the manifest, with pyarrow's own S3 client."""
    keys = b.stage.s3.keys
    files = S3FileSystem(
        access_key=keys.access_key, secret_key=keys.secret_key, region="us-east-1", scheme="http",
        endpoint_override=b.stage.s3.endpoint.removeprefix("http://"),
    )  # fmt: skip
    paths = named_by(files, b.bucket, f"{OUT}{sink}/_manifest.json")
    return ds.dataset(paths, format="json", filesystem=files).count_rows()


def named_by(files: FileSystem, bucket: str, key: str) -> list[str]:
    """As docs/delivery.md tells readers to do it."""
    with files.open_input_stream(f"{bucket}/{key}") as stream:
        manifest = msgspec.json.decode(stream.read())
    older = [path for one in manifest.get("lists", ()) for path in named_by(files, bucket, one["key"])]
    return older + [f"{bucket}/{file['key']}" for file in manifest["files"]]


@pytest.mark.long
def test_a_kill_between_the_primarys_commit_and_the_followers(servers: Stage, tmp_path: Path) -> None:
    """The follower's server hangs while the primary goes on committing; everything is killed; then it comes back. The
    outbox brings the follower's records, each once."""
    with stream_bench(servers, tmp_path, StreamShape(items=800, others="s3", window=512)) as b:
        between(b, seed=1)


@pytest.mark.long
def test_a_kill_between_the_primarys_commit_and_two_followers(servers: Stage, tmp_path: Path) -> None:
    """The same with results in files, costs and dead letters on Kafka and quality on S3; both servers hang."""
    with stream_bench(servers, tmp_path, TWO_FOLLOWERS[0]) as b:
        between(b, seed=1)


TWO_FOLLOWERS = (
    StreamShape(1_000, source="files", results="files", others="kafka", quality="s3", window=512),
    StreamShape(1_000, source="kafka", results="kafka", others="s3", quality="files", window=512),
    StreamShape(1_000, source="s3", results="s3", others="files", quality="kafka", window=512),
)


def between(b: StreamBench, seed: int) -> None:
    """The followers' servers hang (a folder can't), the primary commits on, everything is killed."""
    began = time.monotonic()
    chance = random.Random(seed)
    command = b.start()
    b.wait_served(round(chance.uniform(0.1, 0.5) * b.shape.items), command)
    servers = [server for place, server in (("kafka", b.stage.kafka), ("s3", b.stage.s3)) if place in b.shape.followers]
    for server in servers:
        server.freeze()
    b.wait_served(b.served() + 60, command)
    time.sleep(chance.uniform(0.2, 1.5))
    b.kill("group", command, chance)
    for server in servers:
        server.thaw()
    b.run_until_done()
    allowed = round(b.shape.concurrency + b.fastest_rate() * UNCOMMITTED_S["s3"])
    report = b.check(bound=allowed)
    harm = "killed between primary and follower" + ("s" if len(b.shape.followers) > 1 else "")
    note(line_of(b, harm, seed, 1, report, allowed, time.monotonic() - began))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", [*PROCESSES, *S3])
def test_soak(kind: Harm, seed: int, servers: Stage, tmp_path: Path) -> None:
    """Each kind twice in a job."""
    with stream_bench(servers, tmp_path, StreamShape(1_000, source="s3", results="s3", others="s3", window=512)) as b:
        storm(b, [kind] * 2, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("results", "others"), [("kafka", "s3"), ("s3", "kafka")])
def test_soak_between(results: Place, others: Place, seed: int, servers: Stage, tmp_path: Path) -> None:
    """A kill between two stores, at other moments."""
    with stream_bench(servers, tmp_path, StreamShape(1_000, results=results, others=others, window=512)) as b:
        between(b, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shape", TWO_FOLLOWERS, ids=lambda shape: shape.results)
def test_soak_between_two(shape: StreamShape, seed: int, servers: Stage, tmp_path: Path) -> None:
    """A kill between three stores, at other moments."""
    with stream_bench(servers, tmp_path, msgspec.structs.replace(shape, seed=seed)) as b:
        between(b, seed)
