"""The sign by which a process on S3 says that it lives."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from penstock.connectors.s3.store import store
from penstock.connectors.s3.store.beacon import Beacon
from penstock.connectors.s3.store.store import MERGE_AGAIN_S


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


async def test_a_beacon_outlives_an_error_of_what_is_done_beside_it() -> None:
    home = Home()

    async def mistaken() -> None:
        raise KeyError("a library's own mistake")

    beacon = Beacon(home, 0.001, mistaken)  # type: ignore[arg-type]
    await beacon.light()
    await asyncio.wait_for(home.again.wait(), 5)
    await beacon.stop()


class Slow:
    """Answers after others had their turn."""

    def __init__(self) -> None:
        self.signs = list[str]()

    async def put(self, _name: str, _data: bytes) -> None:
        await asyncio.sleep(0)
        self.signs.append("put")

    async def delete(self, _names: list[str]) -> None:
        await asyncio.sleep(0)
        self.signs.append("deleted")


async def test_lanes_that_are_taken_at_once_light_one_beacon() -> None:
    """Each lit its own, and all but one went on when the last lane was let go."""
    home, before = Slow(), asyncio.all_tasks()
    beacon = Beacon(home, 60.0, nothing)  # type: ignore[arg-type]
    await asyncio.gather(beacon.light(), beacon.light())
    assert home.signs == ["put"]
    await beacon.put_out()
    assert home.signs == ["put", "deleted"]
    assert asyncio.all_tasks() == before


async def test_a_beacon_that_is_lit_while_it_is_put_out_has_its_sign() -> None:
    home = Slow()
    beacon = Beacon(home, 60.0, nothing)  # type: ignore[arg-type]
    await beacon.light()
    await asyncio.gather(beacon.put_out(), beacon.light())
    assert home.signs == ["put", "deleted", "put"]
    await beacon.stop()


@pytest.mark.parametrize(("failed_at", "tried"), [(995.0, 0), (1_000.0 - MERGE_AGAIN_S, 1), (4_600.0, 1)])
async def test_a_failed_merge_is_tried_again_later_but_for_a_clock_that_was_set_back(
    monkeypatch: pytest.MonkeyPatch, failed_at: float, tried: int
) -> None:
    """By an hour, say: for so long readers saw nothing new."""
    merged: list[object] = []

    async def merge(*arguments: object) -> None:
        merged.append(arguments)

    async def endless() -> bool:
        return True

    monkeypatch.setattr(store, "is_due", lambda *_, **__: True)
    it = SimpleNamespace(_lanes={0: SimpleNamespace(state=None)}, _merges={}, _merge_failed={0: failed_at})
    it._now, it._merge, it._is_endless = lambda: 1_000.0, merge, endless
    await store.S3Store._now_and_then(it)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert len(merged) == tried
