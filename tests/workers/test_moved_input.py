"""A run whose input went elsewhere, or is named in another way, between two of its commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.connectors.base import SinkName
from penstock.connectors.registry import open_stores
from penstock.connectors.settings import FilesSink, FilesSource, Row, SinkSettings
from penstock.engine.errors import NoInput
from penstock.workers.driving.planner import Planned, durable_plan
from penstock.workers.runspec import RunOptions, RunSpec
from tests.workers.lane_rig import CATALOG, POLICY


def job(folder: Path, path: str = "in") -> RunSpec:
    sinks: dict[SinkName, SinkSettings] = {"results": FilesSink(str(folder / "r/results.jsonl"))}
    source = FilesSource(str(folder / path))
    return RunSpec("r", "j", {}, source, None, Row(), CATALOG, POLICY, sinks, state=str(folder / "state"))


async def planned(spec: RunSpec) -> Planned:
    return await durable_plan(spec, RunOptions(), open_stores(spec.sinks, spec.run_id).primary, 2, 0.0)


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
