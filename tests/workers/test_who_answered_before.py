"""A run that goes on: who answered its earlier commands is no news, though its counters hold them, too."""

from __future__ import annotations

from pathlib import Path

import msgspec

from penstock.connectors.audit import open_audit
from penstock.connectors.memory import MemoryStore
from penstock.connectors.settings import MemorySink, MemorySource, Row
from penstock.engine.flow.tally import ModelTally, Tally, merge
from penstock.engine.items import Call, Outcome
from penstock.engine.plan import Plan
from penstock.workers.books.trail import Trail
from penstock.workers.driving.planner import Planned, all_ended
from penstock.workers.lanes.shell import LaneShell
from penstock.workers.runspec import RunOptions, RunSpec
from tests.workers import lane_rig as rig

N = 12


def says(fingerprint: str, name: str = "m"):
    def reply(call: Call) -> Outcome:
        outcome = rig.answered(call)
        answer = msgspec.structs.replace(outcome.answer, fingerprint=fingerprint, model=name)
        return msgspec.structs.replace(outcome, answer=answer)

    return reply


async def owner(lane: rig.Rig, epoch: tuple[int, int], fingerprint: str, *, items: int | None = None) -> Tally:
    """One owner of the lane, which drains after so many items; what it reported last."""
    shell, driver = lane.shell(lane.place.open(), epoch=epoch)
    await shell.open(await lane.made_plan(), force=True)
    shell.go()
    until = len(lane.sent) + (items or N)

    def over(shell: LaneShell, _: object) -> bool:
        if len(lane.sent) >= until and items is not None:
            shell.drain()
        return driver.settled

    await lane.work(shell, driver, says(fingerprint), over)
    await shell.close()
    return driver.reports[-1].tally


async def test_a_lane_tells_what_earlier_commands_counted_from_what_this_one_did() -> None:
    """An owner that takes it over from one of the same command goes on counting for that command."""
    lane = rig.Rig(rig.MemoryPlace("before"), rig.source("before", [rig.line(n) for n in range(N)]))
    lane.window = 4
    first = (await owner(lane, (1, 1), "fp1", items=4)).models["m@v1"]
    assert first.fingerprints_before == {}
    second = (await owner(lane, (2, 1), "fp2", items=4)).models["m@v1"]
    third = (await owner(lane, (2, 2), "fp2")).models["m@v1"]
    assert second.fingerprints_before == third.fingerprints_before == {"fp1": first.fingerprints["fp1"]}
    assert third.fingerprints["fp1"] + third.fingerprints["fp2"] == N
    fourth = (await owner(lane, (3, 1), "fp3")).models["m@v1"]
    assert fourth.fingerprints_before == fourth.fingerprints == third.fingerprints


async def test_of_a_run_that_has_ended_all_was_counted_before() -> None:
    """Its next command has nothing to do, and asks nobody."""
    lane = rig.Rig(rig.MemoryPlace("ended"), rig.source("ended", [rig.line(n) for n in range(N)]))
    await owner(lane, (1, 1), "fp1")
    plan = msgspec.structs.replace(await lane.made_plan(), started=True)
    ended = await all_ended(plan, MemoryStore("ended"))
    assert ended is not None
    row = ended[0].models["m@v1"]
    assert row.fingerprints_before == row.fingerprints == {"fp1": N}


async def test_lanes_sums_keep_apart_what_was_counted_before() -> None:
    total, one = Tally(), Tally()
    one.models["m@v1"] = ModelTally(
        "m", "v1", answered_as={"x": 3}, fingerprints={"a": 5}, answered_before={"x": 1}, fingerprints_before={"a": 2}
    )
    merge(total, one)
    merge(total, one)
    row = total.models["m@v1"]
    assert (row.answered_as, row.answered_before) == ({"x": 6}, {"x": 2})
    assert (row.fingerprints, row.fingerprints_before) == ({"a": 10}, {"a": 4})


async def command(state: Path, run: str, row: ModelTally) -> tuple[list[str], list[dict[str, object]]]:
    """One command whose counters were so at its end: what it told, and what it left in the audit log."""
    sinks, notes = {"results": MemorySink("x")}, list[str]()
    spec = RunSpec(run, "r", {}, MemorySource("x"), None, Row(), rig.CATALOG, rig.POLICY, sinks, state=str(state))
    trail = Trail(spec, RunOptions(), notes.append)
    await trail.began(1, Planned(Plan(run, "r", {}, 1, (), {}, 0.0)), 0.0)
    had = len([entry for entry in open_audit(str(state)).entries() if entry.kind == "other_model"])
    await trail.ended("done", "", Tally(models={"m@v1": row}), 1.0)
    found = [entry for entry in open_audit(str(state)).entries() if entry.kind == "other_model"]
    return notes, [msgspec.json.decode(entry.facts) for entry in found[had:]]


async def test_a_run_that_goes_on_tells_no_fingerprint_of_its_earlier_commands(tmp_path: Path) -> None:
    """Another run met another one in between. That is the latest still: who meets the first again is told of it."""
    assert await command(tmp_path, "r-1", ModelTally("m", "v1", fingerprints={"fp1": 3})) == ([], [])
    (note,), _ = await command(tmp_path, "r-2", ModelTally("m", "v1", fingerprints={"fp2": 1}))
    assert "was 'fp1' and is 'fp2' now" in note
    goes_on = ModelTally("m", "v1", fingerprints={"fp1": 3, "fp2": 2}, fingerprints_before={"fp1": 3})
    assert await command(tmp_path, "r-1", goes_on) == ([], [])
    (note,), (facts,) = await command(tmp_path, "r-3", ModelTally("m", "v1", fingerprints={"fp1": 1}))
    assert "was 'fp2' and is 'fp1' now" in note
    assert note.endswith("(the former one answered run r-2)")
    assert (facts["before"], facts["after"]) == ("fp2", "fp1")


async def test_a_fingerprint_of_an_earlier_command_that_answers_again_is_told(tmp_path: Path) -> None:
    await command(tmp_path, "r-1", ModelTally("m", "v1", fingerprints={"fp1": 3}))
    await command(tmp_path, "r-2", ModelTally("m", "v1", fingerprints={"fp2": 1}))
    (note,), _ = await command(
        tmp_path, "r-1", ModelTally("m", "v1", fingerprints={"fp1": 4}, fingerprints_before={"fp1": 3})
    )
    assert "was 'fp2' and is 'fp1' now" in note


async def test_a_run_that_goes_on_takes_no_alias_of_its_earlier_commands_for_what_it_means_now(tmp_path: Path) -> None:
    old, new = "m-2026-01-01", "m-2026-05-05"
    await command(tmp_path, "r-1", ModelTally("m", "v1", answered_as={old: 3}))
    (moved,), _ = await command(tmp_path, "r-2", ModelTally("m", "v1", answered_as={new: 1}))
    assert "THE ALIAS MEANS ANOTHER MODEL NOW" in moved
    goes_on = ModelTally("m", "v1", answered_as={old: 3, new: 1}, answered_before={old: 3})
    assert await command(tmp_path, "r-1", goes_on) == ([], [])
