"""The label pass of a run whose finished input is not there any more."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.base import Taken
from penstock.connectors.files import FileSource
from penstock.connectors.memory import MemoryStore, forget
from penstock.connectors.settings import FilesSource, MemorySink, Row
from penstock.engine.flow.progress import PROGRESS, Saved, SavedSplit
from penstock.engine.plan import Plan, Split
from penstock.workers.lanes.labels import LabelWatch
from penstock.workers.runspec import RunSpec
from tests.workers.lane_rig import CATALOG, POLICY

NAME = "labels-watched"


def inbox(folder: Path, name: str, *labels: str) -> list[Split]:
    """A file of requests, and the folder's splits."""
    body = {"messages": [{"role": "user", "content": "hi"}]}
    lines = [{"custom_id": each, "method": "POST", "url": "/v1/chat/completions", "body": body} for each in labels]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return asyncio.run(FileSource(FilesSource(str(folder))).splits(1))


def watched(folder: Path, splits: list[Split], saved: Saved) -> tuple[list[tuple[int, int]], list[str], list[str]]:
    """(duplicates, what ended the run, notes)."""
    forget(NAME)
    store = MemoryStore(NAME)
    spec = RunSpec("r", "n", {}, FilesSource(str(folder)), None, Row(), CATALOG, POLICY, {"results": MemorySink(NAME)})
    plan = Plan("r", "n", {}, 1, tuple(splits), {}, 0.0)
    found, errors, notes = list[tuple[int, int]](), list[str](), list[str]()

    async def tell(done: bool, upto: tuple[int, int], duplicates: list[tuple[int, int, str]]) -> None:
        found.extend((ordinal, position) for ordinal, position, _ in duplicates)

    async def life() -> None:
        await store.take(0, (1, 1))
        await store.commit(0, (1, 1), 1, {}, {PROGRESS: msgspec.msgpack.encode(saved)})
        watch = LabelWatch(spec, plan, store, errors.append, notes.append)
        watch.start(tell)
        assert watch._task is not None  # pyright: ignore[reportPrivateUsage]
        await watch._task  # pyright: ignore[reportPrivateUsage]
        await watch.close()

    asyncio.run(life())
    return found, errors, notes


def two_files(folder: Path) -> list[Split]:
    first, second = inbox(folder, "a.jsonl", "1"), inbox(folder, "b.jsonl", "2", "2")
    return [*first, msgspec.structs.replace(second[-1], ordinal=1)]


@pytest.mark.parametrize("grown", [False, True])
def test_finished_input_that_is_gone_is_passed_over_with_a_note(tmp_path: Path, grown: bool) -> None:
    """Its inbox was cleared, or the file grew and counts as another one now. The rest is judged as ever."""
    splits = two_files(tmp_path)
    if grown:
        inbox(tmp_path, "a.jsonl", "1", "3")
    else:
        (tmp_path / "a.jsonl").unlink()
    found, errors, (note,) = watched(tmp_path, splits, Saved(opened=1))
    assert [ordinal for ordinal, _ in found] == [1]
    assert errors == []
    assert "a.jsonl" in note
    assert "All of its items have ended" in note


def test_a_lane_s_progress_is_read_once_for_all_of_its_files_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each, of a large inbox that was cleared, kept the lanes waiting for hours."""
    splits, peeked, peek = two_files(tmp_path), list[int](), MemoryStore.peek

    async def counted(store: MemoryStore, lane: int) -> Taken:
        peeked.append(lane)
        return await peek(store, lane)

    monkeypatch.setattr(MemoryStore, "peek", counted)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).unlink()
    _, errors, (note,) = watched(tmp_path, splits, Saved(opened=2))
    assert (errors, peeked) == ([], [0])
    assert "and 1 others like it" in note


@pytest.mark.parametrize("saved", [Saved(), Saved(opened=1, splits=(SavedSplit(0, 0, b"", 0, ended=False),))])
def test_unfinished_input_that_is_gone_ends_the_run(tmp_path: Path, saved: Saved) -> None:
    splits = two_files(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    found, (error,), notes = watched(tmp_path, splits, saved)
    assert "a.jsonl is gone" in error
    assert not found
    assert not notes
