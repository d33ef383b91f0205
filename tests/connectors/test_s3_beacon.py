"""The sign by which a process on S3 says that it lives."""

from __future__ import annotations

import asyncio

from penstock.connectors.s3.store.beacon import Beacon


class Home:
    """Takes the first sign, then makes mistakes for a while."""

    def __init__(self) -> None:
        self.puts = 0
        self.again = asyncio.Event()

    async def put(self, _name: str, _data: bytes) -> None:
        self.puts += 1
        if 1 < self.puts < 4:
            raise KeyError("a library's own mistake")
        if self.puts > 4:
            self.again.set()


async def nothing() -> None:
    pass


async def test_a_beacon_outlives_an_error_that_is_not_ours() -> None:
    """It went out for good, and the next command took the run from one that lived."""
    home = Home()
    beacon = Beacon(home, 0.001, nothing)  # type: ignore[arg-type]
    await beacon.light()
    await asyncio.wait_for(home.again.wait(), 5)
    await beacon.stop()
