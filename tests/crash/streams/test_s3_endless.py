"""A job on a topic that never ends, with its results on S3: killed while it works, and stopped."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.streams.stage import Stage
from tests.crash.streams.storms import Harm, endless_storm
from tests.crash.streams.stream_bench import StreamShape, stream_bench

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]

SHAPE = StreamShape(300, results="s3", others="s3", until="forever", window=512)
KILLS: tuple[Harm, ...] = ("lane", "command", "lane", "command")


@pytest.mark.long
def test_an_endless_job_to_s3_survives_kills(servers: Stage, tmp_path: Path) -> None:
    """Of a lane and of the command, twice each, while records come. Once all have ended it is stopped, and a reader of
    its manifests sees each of them once."""
    with stream_bench(servers, tmp_path, SHAPE) as b:
        endless_storm(b, KILLS, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_soak(seed: int, servers: Stage, tmp_path: Path) -> None:
    """As above, at other moments."""
    with stream_bench(servers, tmp_path, SHAPE) as b:
        endless_storm(b, random.Random(seed).sample(KILLS, len(KILLS)), seed)
