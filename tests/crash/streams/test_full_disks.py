"""A job between topics and buckets whose machine has no room left: for sorting what goes to S3, or for its state."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.streams.stage import Stage
from tests.crash.streams.storms import UNCOMMITTED_S
from tests.crash.streams.stream_bench import StreamShape, stream_bench
from tests.small_disk import small_disk

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]


@pytest.fixture
def rays_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray has its own, with room, and a short name, since sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.mark.soak
def test_no_room_for_sorting_what_goes_to_s3(
    servers: Stage, tmp_path: Path, rays_folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is committed by then: exit code 4 and words about TMPDIR; with room elsewhere the same command ends the run,
    and pays for nothing more."""
    temp = tmp_path / "temp"
    shape = StreamShape(items=300, model="sure", results="s3", others="s3")
    with stream_bench(servers, tmp_path, shape) as b, small_disk(temp, "64k"):
        monkeypatch.setenv("TMPDIR", str(temp))
        command = b.penstock("run", "job.yaml", shared_ray=False)
        assert b.end(command) == 4, b.log(command)
        assert "set TMPDIR" in " ".join(b.log(command).split())
        assert len(b.paid()) == shape.items
        monkeypatch.delenv("TMPDIR")
        b.run_until_done(tries=1)
        b.kills.append("full disk")
        assert b.check(bound=0).results == shape.items


@pytest.mark.long
def test_no_room_for_the_state_of_a_job_between_topics(servers: Stage, tmp_path: Path) -> None:
    """The ledger can't be written: nothing more is paid for without it. With room the same command goes on."""
    state = tmp_path / ".penstock"
    shape = StreamShape(items=1_500, model="sure", budget_usd=1.0, window=256)
    with stream_bench(servers, tmp_path, shape) as b, small_disk(state, "1m"):
        command = b.start()
        b.wait_served(200, command)
        fill(state / "filler")
        assert b.end(command) == 4, b.log(command)
        assert "space" in b.log(command)
        (state / "filler").unlink()
        b.run_until_done()
        b.kills.append("full state")
        b.check(bound=round(b.shape.concurrency + b.fastest_rate() * UNCOMMITTED_S["kafka"]))


def fill(path: Path) -> None:
    """To the last page."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4_096):
                pass
        except OSError:
            return
