"""Sinks of other places than the results': a lane goes on only with those that its batches were made for."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from penstock.connectors.base import this_process
from penstock.connectors.registry import iter_committed, open_stores
from penstock.connectors.settings import FilesSink
from penstock.connectors.writing.records import Encoder
from penstock.engine.budget import Budgets
from penstock.engine.errors import Corrupt
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Hooks
from penstock.engine.items import Position
from penstock.engine.plan import Plan, Split
from penstock.engine.results import DeadLetter
from penstock.engine.router import Router
from penstock.workers.lanes.commit import LaneCommit
from tests.engine.one_lane import PLAIN
from tests.workers.lane_rig import CATALOG, POLICY

HOOKS = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)
SPLIT = Split("in#0-100", "in", 0, 0, "u", 0, 100, "rows")
Sinks = dict[str, FilesSink]


def sinks(folder: Path, results: str = "results", letters: str = "letters") -> Sinks:
    here = {name: FilesSink(str(folder / results / f"{name}.jsonl")) for name in ("results", "costs", "quality")}
    return {**here, "dead_letters": FilesSink(str(folder / letters / "dead.jsonl"))}


async def run(to: Sinks, opening: int, letters: Iterable[int], *, followers: bool = True) -> None:
    """An owner of the lane that commits dead letters of these positions. `followers` False: killed before they come."""
    stores = open_stores(to, "r")
    try:
        epoch = (await stores.primary.hold(this_process()), opening)
        if await stores.primary.read_plan() is None:
            await stores.primary.write_plan(Plan("r", "j", {}, 1, (SPLIT,), {}, 0.0))
        taken = await stores.primary.take(0, epoch, force=True)
        machine = Lane(PLAIN, Router(CATALOG, POLICY), CATALOG, POLICY, HOOKS, Budgets((), "r"))
        machine.begin([SPLIT], taken.chunks, taken.seq)
        out = LaneCommit(0, epoch, machine, stores, Encoder("r", None, []), lambda: 0.0)
        out.begin()
        await out.commit()
        await out.take_followers(force=True)
        for position in letters:
            machine.offer(
                DeadLetter(f"{position:032x}", Position(SPLIT.id, 0, position), "malformed", "bad", b"x"), 0.0
            )
            await out.commit()
            if followers:
                await out.apply_outbox()
        await out.commit()
    finally:
        for store in (stores.primary, *stores.followers.values()):
            await store.release(0)
        await stores.primary.let_go()


def told(to: Sinks) -> list[int]:
    return [int(line.split(b'"item_id":"')[1][:32], 16) for line in iter_committed(to, "r", "dead_letters")]


def test_a_follower_that_came_late_gets_all_that_waited(tmp_path: Path) -> None:
    to = sinks(tmp_path)
    asyncio.run(run(to, 1, [1, 2, 3], followers=False))
    assert told(to) == []
    asyncio.run(run(to, 2, [4]))
    assert told(to) == [1, 2, 3, 4]


def test_a_follower_of_another_life_is_refused(tmp_path: Path) -> None:
    """Else what comes now would be taken for what it has: the results were moved away, and begin anew."""
    asyncio.run(run(sinks(tmp_path), 1, [1, 2, 3]))
    moved = sinks(tmp_path, results="elsewhere")
    with pytest.raises(Corrupt, match=r"dead_letters at .* have batch 3 of lane 0, the results only 0"):
        asyncio.run(run(moved, 2, [11, 12]))


def test_records_that_wait_for_a_sink_that_was_moved_are_not_dropped(tmp_path: Path) -> None:
    """The run stops until the sink is back; then they get there."""
    to = sinks(tmp_path)
    asyncio.run(run(to, 1, [1, 2, 3], followers=False))
    with pytest.raises(Corrupt, match="Put the sink back where it was"):
        asyncio.run(run(sinks(tmp_path, letters="results"), 2, []))
    with pytest.raises(Corrupt, match="Put the sink back where it was"):
        asyncio.run(run(sinks(tmp_path, letters="third"), 3, []))
    asyncio.run(run(to, 4, []))
    assert told(to) == [1, 2, 3]


def test_a_follower_that_was_emptied_is_refused(tmp_path: Path) -> None:
    to = sinks(tmp_path)
    asyncio.run(run(to, 1, [1, 2, 3]))
    shutil.rmtree(tmp_path / "letters")
    with pytest.raises(Corrupt, match="the sink was moved or emptied"):
        asyncio.run(run(to, 2, [4]))
