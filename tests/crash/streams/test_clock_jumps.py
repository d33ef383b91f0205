"""The clock of the machine that a job runs on jumps, forth and back, between real servers whose clocks go on: nothing
lost, nothing twice. `wrong_clock.c` moves it, in every process of the job and of its Ray."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.crash.shared_ray import SharedRay
from tests.crash.streams.stage import Stage
from tests.crash.streams.storms import UNCOMMITTED_S, line_of, note
from tests.crash.streams.stream_bench import Place, StreamShape, stream_bench

COMPILER = shutil.which("cc")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.ray,
    pytest.mark.kafka,
    pytest.mark.s3,
    pytest.mark.skipif(COMPILER is None, reason="no C compiler: install gcc or clang"),
]

ON_S = 8.0
"""How long a clock stays wrong."""


class WrongClock(Stage):
    """The same servers; a Ray and commands whose wall clock is this one's."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.__dict__.update(stage.__dict__)
        library, self._offset = folder / "wrong_clock.so", folder / "offset"
        source = Path(__file__).with_name("wrong_clock.c")
        subprocess.run([str(COMPILER), "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self._offset.write_bytes(bytes(8))
        self._faked = {"LD_PRELOAD": str(library), "WRONG_CLOCK": str(self._offset)}
        self.ray = SharedRay({**self.s3.keys.environment, **self._faked})

    def set(self, seconds: int) -> None:
        with self._offset.open("r+b", buffering=0) as file:
            file.write(struct.pack("q", seconds))

    def environment(self, *, shared_ray: bool = True) -> Mapping[str, str]:
        return {**super().environment(shared_ray=shared_ray), **self._faked}


@pytest.fixture
def wrong(servers: Stage, tmp_path: Path) -> Iterator[WrongClock]:
    made = WrongClock(servers, tmp_path)
    yield made
    made.ray.close()


@pytest.mark.parametrize("place", ["kafka", "s3"])
@pytest.mark.parametrize("jump_s", [3_000, -3_000, 7_200, -7_200])
def test_a_clock_that_jumps_and_is_set_right(place: Place, jump_s: int, wrong: WrongClock, tmp_path: Path) -> None:
    """Twice in a job, for some seconds. Where a server refuses what is so late or so early, the job waits, or ends and
    is run again."""
    shape = StreamShape(items=2_000, window=512, source=place, results=place, others=place)
    began = time.monotonic()
    with stream_bench(wrong, tmp_path, shape) as b:
        command = b.start()
        for share in (0.1, 0.5):
            b.wait_served(round(share * shape.items), command)
            wrong.set(jump_s)
            time.sleep(ON_S)
            wrong.set(0)
            b.kills.append("clock jumps")
        if b.end(command) != 0:
            print(b.log(command))
            b.run_until_done()
        # S3 refuses what is dated a quarter of an hour off, Kafka what is dated an hour ahead.
        refused = place == "s3" or jump_s > 3_600
        if refused:
            assert "Set the clock" in b.log(command)
        away_s = ON_S if refused else 0.0
        bound = 2 * round(shape.concurrency + b.fastest_rate() * (UNCOMMITTED_S[place] + away_s))
        report = b.check(bound=bound)
        note(line_of(b, "clock jumps", jump_s, 2, report, bound, time.monotonic() - began))
