"""What people do to a job between buckets: stop it, take it over, wake it up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.streams.stage import Stage
from tests.crash.streams.storms import UNCOMMITTED_S
from tests.crash.streams.stream_bench import StreamBench, StreamShape, stopped_and_taken_over, stream_bench

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]


def everything(b: StreamBench) -> dict[str, str]:
    """Key → ETag of all that is in the bucket, but for signs of life."""
    pages = b.stage.s3.client().get_paginator("list_objects_v2").paginate(Bucket=b.bucket)
    return {one["Key"]: one["ETag"] for page in pages for one in page["Contents"] if "/alive/" not in one["Key"]}


@pytest.mark.soak
@pytest.mark.parametrize("calls", [50, pytest.param(300, marks=pytest.mark.long), 700])
def test_a_stopped_command_that_was_taken_over_pays_and_writes_nothing(
    calls: int, servers: Stage, tmp_path: Path
) -> None:
    """Not an object more, or another."""
    with stream_bench(servers, tmp_path, StreamShape(1_500, source="s3", results="s3", others="s3", model="sure")) as b:
        stopped_and_taken_over(b, calls, everything)
        b.check(bound=2 * round(b.shape.concurrency + b.fastest_rate() * UNCOMMITTED_S["s3"]))
