"""Whose a place on disk is, and what becomes of it when its run is begun anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.base import OutRecord, SinkName, this_process
from penstock.connectors.filestore.place import FilesPlace
from penstock.connectors.s3.client import PLAIN, client
from penstock.connectors.s3.store import run as s3_run
from penstock.connectors.s3.store.run import root_of
from penstock.connectors.settings import FilesSink
from penstock.engine.errors import Corrupt, Refused
from penstock.engine.plan import Plan, Split

OF_YESTERDAY = Plan("run-1", "test", {}, 1, (Split("a", "a", 0, 0, "a.jsonl", 0, 10),), {}, 0.0)
OF_TODAY = Plan("run-1", "test", {}, 1, (Split("b", "b", 0, 0, "b.jsonl", 0, 10),), {}, 0.0)


def place(path: Path | str, run_id: str = "run-1") -> FilesPlace:
    sinks: dict[SinkName, FilesSink] = {"results": FilesSink(str(path))}
    return FilesPlace(sinks, run_id)


async def begun(at: FilesPlace) -> None:
    """One commit, and its command is gone."""
    store = at.open()
    epoch = (await store.hold(this_process()), 1)
    await store.write_plan(OF_YESTERDAY)
    await store.take(0, epoch)
    await store.commit(0, epoch, 1, {"results": [OutRecord(0, 0, b'{"old":1}')]}, {"p": b"1"})
    await store.release(0)
    await store.let_go()


@pytest.mark.parametrize(
    ("one", "other"), [("labels.csv", "labels.jsonl"), ("2026.11.24/", "2026.11.25/"), ("a", "a.jsonl")]
)
async def test_outputs_of_different_names_never_share_a_working_folder(tmp_path: Path, one: str, other: str) -> None:
    """Neither is refused for the other's sake, nor thrown away by the other's `--fresh`."""
    theirs, ours = place(f"{tmp_path}/{one}"), place(f"{tmp_path}/{other}", "run-2")
    await begun(theirs)
    ours.open()
    await ours.discard()
    assert list(theirs.committed("results")) == [b'{"old":1}']


@pytest.mark.parametrize(("one", "other"), [("out/labels.csv", "out/labels.jsonl"), ("v1.0", "v1.1"), ("1.0/", "1.1/")])
def test_objects_of_different_names_never_share_a_working_prefix(one: str, other: str) -> None:
    assert root_of(one) != root_of(other)


async def test_a_run_begun_under_an_older_name_of_its_working_folder_is_not_begun_again(tmp_path: Path) -> None:
    """All of it would be paid again. Renamed, it goes on; --fresh begins anew; another run's place is left alone."""
    run = place(tmp_path / "labels.jsonl")
    await begun(run)
    run.home.rename(tmp_path / ".labels.penstock")
    with pytest.raises(Refused, match=r"rename .*/\.labels\.penstock to .*/\.labels\.jsonl\.penstock to go on"):
        run.open()
    assert not run.home.exists()
    place(tmp_path / "labels.csv", "run-2").open()
    await run.discard()
    assert await run.open().read_plan() is None
    shutil.rmtree(run.home)
    (tmp_path / ".labels.penstock").rename(run.home)
    assert await run.open().read_plan() == OF_YESTERDAY


def test_an_output_that_another_ones_old_name_belongs_to_is_no_older_run(tmp_path: Path) -> None:
    """As where costs are added to a run whose results are a folder of that name."""
    results, costs = FilesSink(f"{tmp_path}/labels/"), FilesSink(f"{tmp_path}/labels.jsonl")
    FilesPlace({"results": results}, "run-1").open()
    FilesPlace({"results": results, "costs": costs}, "run-1").open()


def test_objects_of_a_run_begun_under_an_older_prefix_are_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the new name has no mark yet, and the old one has this run's."""
    marks = {"out/.labels.penstock/": "run-1"}

    def read_mark(base: s3_run.Base) -> tuple[s3_run.RunMark, str] | None:
        return (s3_run.RunMark(marks[base.root], "life"), "etag") if base.root in marks else None

    monkeypatch.setattr(s3_run, "read_mark", read_mark)
    base = s3_run.Base(client(None, None), "bucket", root_of("out/labels.jsonl"), PLAIN)
    with pytest.raises(Refused, match=r"s3://bucket/out/\.labels\.penstock/: finish it with the version"):
        s3_run.refuse_old_names(base, ["out/labels.jsonl"], "run-1")
    s3_run.refuse_old_names(base, ["out/labels.jsonl"], "run-2")
    s3_run.refuse_old_names(base, ["out/labels"], "run-1")
    marks["out/.labels.jsonl.penstock/"] = "run-1"
    s3_run.refuse_old_names(base, ["out/labels.jsonl"], "run-1")


def test_who_would_be_thrown_away_is_named(tmp_path: Path) -> None:
    place(tmp_path / "labels.csv").open()
    with pytest.raises(Refused, match="--fresh, which throws away all that run-1 has there"):
        place(tmp_path / "labels.csv", "run-2").open()


async def test_fresh_that_is_killed_leaves_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan never goes before the lanes; what is left on the disk goes with the next."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = place(tmp_path / "labels.csv")
    await begun(run)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            await run.discard()
    assert await run.open().read_plan() is None
    assert list(run.committed("results")) == []
    assert len(list(tmp_path.iterdir())) == 2
    await run.discard()
    assert list(tmp_path.iterdir()) == [run.home]


async def test_a_new_plan_takes_no_lane_of_an_old_one(tmp_path: Path) -> None:
    """Its positions are of other input, its answers of another job."""
    run = place(tmp_path / "labels.csv")
    await begun(run)
    (run.home / "plan-0001.json").unlink()
    with pytest.raises(Corrupt, match=r"lane-0000 has progress, but its plan is gone.*--fresh"):
        await run.open().write_plan(OF_TODAY)
    await run.discard()
    store = run.open()
    await store.write_plan(OF_TODAY)
    assert (await store.take(0, (1, 1))).seq == 0


async def test_an_output_is_not_made_without_a_lane_that_had_started(tmp_path: Path) -> None:
    """As where a finished run's costs have another folder now: they would be an empty file there."""
    elsewhere = FilesPlace({"costs": FilesSink(str(tmp_path / "elsewhere/costs.jsonl"))}, "run-1").open()
    with pytest.raises(Corrupt, match=r"lane-0000 has no progress, but its lane had started"):
        await elsewhere.finish(msgspec.structs.replace(OF_YESTERDAY, started=True))
    assert not (tmp_path / "elsewhere/costs.jsonl").exists()
