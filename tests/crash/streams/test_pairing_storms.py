"""Between topics, buckets and files, with kills: files are assembled at the end, by whoever is there then."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import pytest

from tests.crash.streams.stage import Stage
from tests.crash.streams.storms import Harm, storm
from tests.crash.streams.stream_bench import OBJECTS, StreamBench, StreamShape, stream_bench

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]

KILLS: tuple[Harm, ...] = ("lane", "command", "lane", "command")
PAIRS = (
    StreamShape(1_000, source="kafka", results="files", others="files", window=512),
    StreamShape(1_000, source="files", results="kafka", others="kafka", window=512),
    StreamShape(1_000, source="s3", results="files", others="files", window=512),
)


def pair(shape: StreamShape) -> str:
    return f"{shape.source} to {shape.results}"


@pytest.mark.long
@pytest.mark.parametrize("shape", PAIRS, ids=pair)
def test_one_job_survives_kills(shape: StreamShape, servers: Stage, tmp_path: Path) -> None:
    """Of a lane and of the command, twice each. What came from S3 into one file has the order of the input."""
    with stream_bench(servers, tmp_path, shape) as b:
        killed(b, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shape", PAIRS, ids=pair)
def test_soak(shape: StreamShape, seed: int, servers: Stage, tmp_path: Path) -> None:
    """As above, at other moments."""
    with stream_bench(servers, tmp_path, msgspec.structs.replace(shape, seed=seed)) as b:
        killed(b, seed)


def killed(b: StreamBench, seed: int) -> None:
    storm(b, random.Random(seed).sample(KILLS, len(KILLS)), seed)
    if (b.shape.source, b.shape.results) == ("s3", "files"):
        order = [label for number in range(OBJECTS) for label in b.labels[number::OBJECTS]]
        place = {label: at for at, label in enumerate(order)}
        found = [place[json.loads(line)["custom_id"]] for line in b.values("results")]
        assert found == sorted(found), "object by object, line by line"
