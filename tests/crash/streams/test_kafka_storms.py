"""Kafka to Kafka, harmed in every way that we know, with real servers: nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.crash.streams.stage import Stage
from tests.crash.streams.storms import KAFKA, PROCESSES, Harm, storm
from tests.crash.streams.stream_bench import StreamShape, stream_bench

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]


def test_one_job_survives_kills_of_its_parts_and_of_the_broker(servers: Stage, tmp_path: Path) -> None:
    """A lane, the broker (in the middle of transactions), the network, the dispatcher and the whole command, one after
    another; the job ends by itself or is run again."""
    with stream_bench(servers, tmp_path, StreamShape(items=1_500, window=512, keys=300)) as b:
        storm(b, ["lane", "broker killed", "network cut", "dispatcher", "command"], seed=1)


@pytest.mark.long
def test_one_job_survives_what_hangs_and_what_is_slow(servers: Stage, tmp_path: Path) -> None:
    """The driver; lanes that are moved every second; a broker that freezes for longer than a transaction may last; a
    network that holds all up, then one that is slow. Keys keep their order."""
    shape = StreamShape(items=1_200, window=512, keys=200, order="key")
    with stream_bench(servers, tmp_path, shape) as b:
        storm(b, ["driver", "network held", "broker frozen", "lanes moved", "network slow"], seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", [*PROCESSES, *KAFKA])
def test_soak(kind: Harm, seed: int, servers: Stage, tmp_path: Path) -> None:
    """Each kind three times in a job; every other job keeps the order of its keys."""
    ordered = StreamShape(keys=200, order="key") if seed % 2 else StreamShape()
    shape = msgspec.structs.replace(ordered, items=1_200, window=512, seed=seed)
    with stream_bench(servers, tmp_path, shape) as b:
        storm(b, [kind] * 3, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_soak_everything(seed: int, servers: Stage, tmp_path: Path) -> None:
    """All kinds in one job."""
    with stream_bench(servers, tmp_path, StreamShape(items=3_000, window=512, seed=seed)) as b:
        storm(b, [*PROCESSES, *KAFKA], seed, "everything")
