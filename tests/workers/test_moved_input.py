"""A run whose input went elsewhere, is named in another way, or is of another kind, in one of its later commands."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.base import SinkName
from penstock.connectors.files import FileSource
from penstock.connectors.reading.intake import Intake, input_shape, shared_format
from penstock.connectors.reading.labels import labeller
from penstock.connectors.registry import open_stores
from penstock.connectors.settings import FilesSink, FilesSource, Row, SinkSettings
from penstock.engine.errors import NoInput
from penstock.engine.items import Item
from penstock.workers.driving.planner import Planned, durable_plan
from penstock.workers.runspec import RunOptions, RunSpec
from tests.workers.lane_rig import CATALOG, POLICY


def job(folder: Path, path: str = "in") -> RunSpec:
    sinks: dict[SinkName, SinkSettings] = {"results": FilesSink(str(folder / "r/results.jsonl"))}
    source = FilesSource(str(folder / path))
    return RunSpec("r", "j", {}, source, None, Row(), CATALOG, POLICY, sinks, state=str(folder / "state"))


async def planned(spec: RunSpec) -> Planned:
    return await durable_plan(spec, RunOptions(), open_stores(spec.sinks, spec.run_id).primary, 2, time.time())


async def test_a_run_that_has_begun_goes_on_where_its_input_was_cleared_away(tmp_path: Path) -> None:
    """All of it may have ended: then there is nothing to do, or outputs that were paid for are still to be made."""
    spec = job(tmp_path)
    (tmp_path / "in").mkdir()
    with pytest.raises(NoInput):
        await planned(spec)
    (tmp_path / "in/a.jsonl").write_text('{"text":"hi"}\n')
    first = await planned(spec)
    (tmp_path / "in/a.jsonl").unlink()
    again = await planned(spec)
    assert again.plan == first.plan
    assert ["no file matches" in note for note in again.notes] == [True]


async def started(spec: RunSpec) -> Planned:
    folder = Path(spec.source.path) if isinstance(spec.source, FilesSource) else Path()
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text":"hi"}\n')
    (folder / "b.jsonl").write_text('{"text":"ho"}\n')
    return await planned(spec)


def names(made: Planned, first: Planned) -> list[str]:
    """What joined the run."""
    return [split.uri.rpartition("/")[2] for split in made.plan.splits[len(first.plan.splits) :]]


async def test_a_folder_that_is_reached_by_another_path_is_no_new_input(tmp_path: Path) -> None:
    """One command was given by its path through a link (a home folder, /tmp on macOS), the next from the folder itself.
    The link may come to lie among the input."""
    spec = job(tmp_path, "real/in")
    first = await started(spec)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    again = await planned(job(tmp_path, "link/in"))
    assert (names(again, first), again.notes) == ([], ())
    (tmp_path / "real/in/latest.jsonl").symlink_to(tmp_path / "real/in/b.jsonl")
    assert names(await planned(spec), first) == []


async def test_files_that_were_moved_are_no_new_input_and_told(tmp_path: Path) -> None:
    """The whole project went elsewhere, or what was read is put aside below the folder that is read. One that is there
    still is copied, and other input as ever; so is one whose content changed."""
    spec = job(tmp_path)
    first = await started(spec)
    (tmp_path / "in/done").mkdir()
    (tmp_path / "in/a.jsonl").rename(tmp_path / "in/done/a.jsonl")
    (tmp_path / "in/copy.jsonl").write_bytes((tmp_path / "in/b.jsonl").read_bytes())
    (tmp_path / "in/other.jsonl").write_text('{"text":"hu"}\n')
    again = await planned(spec)
    assert names(again, first) == ["copy.jsonl", "other.jsonl"]
    assert ["in/done/a.jsonl" in note for note in again.notes] == [True, False]
    (tmp_path / "in").rename(tmp_path / "moved")
    moved = await planned(job(tmp_path, "moved"))
    assert names(moved, again) == []
    assert "and 3 others" in moved.notes[0]


async def test_one_file_that_is_gone_stands_for_one_that_has_its_content(tmp_path: Path) -> None:
    """Of two such files one may have been moved; the other is a copy."""
    spec = job(tmp_path)
    first = await started(spec)
    (tmp_path / "in/a.jsonl").rename(tmp_path / "in/c.jsonl")
    (tmp_path / "in/d.jsonl").write_bytes((tmp_path / "in/c.jsonl").read_bytes())
    assert names(await planned(spec), first) == ["d.jsonl"]


async def test_a_file_that_is_handed_in_once_more_is_new_input(tmp_path: Path) -> None:
    """Finished files may leave the inbox; one that is written later may hold the same, as each day's one question."""
    spec = job(tmp_path)
    first = await started(spec)
    (tmp_path / "in/a.jsonl").unlink()
    (tmp_path / "in/next day.jsonl").write_text('{"text":"hi"}\n')
    assert names(await planned(spec), first) == ["next day.jsonl"]


async def test_a_file_that_was_put_aside_for_the_next_of_its_name_is_no_new_input(tmp_path: Path) -> None:
    """As logs are rotated."""
    spec = job(tmp_path)
    first = await started(spec)
    (tmp_path / "in/a.jsonl").rename(tmp_path / "in/a-1.jsonl")
    (tmp_path / "in/a.jsonl").write_text('{"text":"new"}\n')
    assert names(await planned(spec), first) == ["a.jsonl"]


async def test_an_empty_file_is_nobodys_content(tmp_path: Path) -> None:
    spec = job(tmp_path)
    first = await started(spec)
    (tmp_path / "in/e.jsonl").touch()
    second = await planned(spec)
    (tmp_path / "in/e.jsonl").rename(tmp_path / "in/f.jsonl")
    again = await planned(spec)
    assert (names(second, first), names(again, second)) == (["e.jsonl"], ["f.jsonl"])


async def test_requests_that_join_an_inbox_of_blank_files_are_requests(tmp_path: Path) -> None:
    """On the first day nothing had come. They are labelled by their `custom_id`, and equal labels are found."""
    spec = job(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.jsonl").write_text("\n")
    await planned(spec)
    line = '{"custom_id":"a","body":{"messages":[{"role":"user","content":"hi"}]}}\n'
    (tmp_path / "in/2.jsonl").write_text(line + line)
    plan = (await planned(spec)).plan
    format = shared_format(split.format for split in plan.splits)
    intake = Intake(spec.run_id, input_shape(format), spec.row, spec.policy, [], 0)
    records = [raw for split in plan.splits for raw in FileSource(FilesSource("")).records(split, split.start)]
    made = [intake.item(raw, 0.0) for raw in records]
    assert [(type(one), one.custom_id) for one in made] == [(Item, "a")] * 2
    label = labeller(format, spec.row)
    assert label is not None
    assert [label(raw) for raw in records] == ["a", "a"]
    by_row = labeller(format, Row(id="{{ shop }}"))
    assert by_row is not None
    row = msgspec.structs.replace(records[0], data=b'{"shop":"x"}')
    assert [by_row(raw) for raw in (*records, row)] == ["a", "a", "x"]


@pytest.mark.parametrize(
    ("formats", "shared"),
    [
        ([], "jsonl"),
        (["csv", "jsonl"], "csv"),
        (["openai-batch", "openai-batch"], "openai-batch"),
        (["auto", "auto"], "auto"),
        (["avro"], "avro"),
        (["parquet", "openai-batch"], "auto"),
    ],
)
def test_what_records_are_is_shared_or_looked_at(formats: list[str], shared: str) -> None:
    assert shared_format(formats) == shared
