"""The label pass of a run whose finished input is not there any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.base import Batch, Raw, Reader, Taken
from penstock.connectors.files import FileSource
from penstock.connectors.kafka.source import KafkaTopics
from penstock.connectors.memory import MemoryStore, forget
from penstock.connectors.settings import FilesSource, KafkaSource, MemorySink, Row, SourceSettings
from penstock.engine.flow.progress import PROGRESS, Saved, SavedSplit
from penstock.engine.items import Position
from penstock.engine.plan import Plan, Split
from penstock.workers.lanes import labels
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
    return passed(job(FilesSource(str(folder))), splits, saved)


def job(source: SourceSettings, row: Row | None = None) -> RunSpec:
    return RunSpec("r", "n", {}, source, None, row or Row(), CATALOG, POLICY, {"results": MemorySink(NAME)})


def passed(spec: RunSpec, splits: list[Split], saved: Saved) -> tuple[list[tuple[int, int]], list[str], list[str]]:
    forget(NAME)
    store = MemoryStore(NAME)
    plan = Plan("r", "n", {}, 1, tuple(splits), {}, 0.0)
    found, errors, notes = list[tuple[int, int]](), list[str](), list[str]()

    async def tell(done: bool, upto: tuple[int, int], duplicates: list[tuple[int, int, str]]) -> None:
        found.extend((ordinal, position) for ordinal, position, _ in duplicates)

    async def life() -> None:
        await store.take(0, (1, 1))
        await store.commit(0, (1, 1), 1, {}, {PROGRESS: msgspec.msgpack.encode(saved)})
        watch = LabelWatch(spec, plan, store, errors.append, notes.append)
        watch.start(tell)
        assert watch._task is not None, "nothing is looked for"  # pyright: ignore[reportPrivateUsage]
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


class Topic(KafkaTopics):
    """Its readers bring what the partitions hold: a request with a label, or a row."""

    def __init__(self, **partitions: list[str]) -> None:
        super().__init__(KafkaSource(("t",), bootstrap="k:1", until="end"))
        self._held = {split: [Raw(Position(split, 0, n), "o", line.encode()) for n, line in enumerate(lines)]
                      for split, lines in partitions.items()}  # fmt: skip

    async def open(self, starts: Sequence[tuple[Split, int]]) -> Reader:  # type: ignore[override]
        ((split, start),) = starts
        return Held(self._held[split.id][start:])


class Held:
    def __init__(self, records: list[Raw]) -> None:
        self._records = records

    async def read(self, max_records: int, max_bytes: int) -> Batch:
        batch, self._records = self._records[:1], self._records[1:]
        return Batch(batch, done=not self._records)

    async def close(self) -> None:
        pass


def test_equal_labels_of_a_topic_with_an_end_are_found_where_the_job_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of requests and rows alike, over all of its partitions: a producer that sends twice is paid for once."""
    a = ['{"custom_id":"1","body":{}}', '{"id":"1"}', '{"id":"2"}', "[]", '{"custom_id":"1","body":{}}']
    b = ['{"id":"2"}', '{"id":"3"}', "no JSON"]
    monkeypatch.setattr(labels, "STEP", 2)  # one thread after another goes on with it
    monkeypatch.setattr(labels, "open_source", lambda _: Topic(a=a, b=b))  # pyright: ignore[reportUnknownLambdaType]
    splits = [Split(name, name, n, 0, "", 0, 9, format="auto") for n, name in enumerate("ab")]
    spec = job(KafkaSource(("t",), bootstrap="k:1", until="end"), Row(id="{{ id }}"))
    found, errors, _ = passed(spec, splits, Saved())
    assert (found, errors) == ([(0, 1), (0, 4), (1, 0)], [])
