"""What is asked of a run while it goes: tiers paused, a hand-over to another command; what becomes of old wishes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.connectors import memory
from penstock.connectors.base import this_process
from penstock.connectors.memory import MemoryStore
from penstock.connectors.settings import MemorySink, MemorySource, Row
from penstock.connectors.state import open_state
from penstock.engine.catalog import Catalog
from penstock.engine.policy import Policy, Task
from penstock.workers.driving import asked
from penstock.workers.driving.asked import ask_for, change_paused, forget_wishes, read_asked, read_paused
from penstock.workers.driving.hearing import Hearing
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus


class Ear:
    """A run that listens, and what it heard."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder)
        sinks = {"results": MemorySink("asked")}
        policy = Policy({"t": Task("t")})
        spec = RunSpec(
            "r", "n", {}, MemorySource("asked"), None, Row(), Catalog({}, {}, {}), policy, sinks, state=self.url
        )  # type: ignore[arg-type]
        self.status = RunStatus("r", "n", "running")
        self.ended: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.told: list[tuple[int, ...]] = []
        self.hearing = Hearing(spec, self.status, lambda state, why: self.ended.append((state, why)), self.notes.append)

    async def look(self) -> None:
        async def pause(tiers: tuple[int, ...]) -> None:
            self.told.append(tiers)

        await self.hearing.look(pause)


async def test_a_tier_is_paused_once_and_resumed_once(tmp_path: Path) -> None:
    """The lanes are told when it changes; the next command finds it as it was left."""
    ear, state = Ear(tmp_path), open_state(str(tmp_path))
    await ear.look()
    assert change_paused(state, "r", lambda _: (3, 2)) == (2, 3)
    await ear.look()
    await ear.look()
    assert ear.told == [(2, 3)]
    assert ear.status.paused == [2, 3]
    restarted = Ear(tmp_path)
    await restarted.look()
    assert restarted.told == [(2, 3)]
    change_paused(state, "r", lambda _: ())
    await ear.look()
    assert ear.told == [(2, 3), ()]
    assert ear.notes == ["paused: tier 2, tier 3; its items wait", "no tier is paused any more"]


def test_of_two_that_pause_at_once_neither_undoes_what_the_other_asked(tmp_path: Path) -> None:
    """Both were told that their tier is held back, and one of them went on sending."""
    state = open_state(str(tmp_path))

    def meanwhile(paused: set[int]) -> set[int]:
        if not paused:
            change_paused(state, "r", lambda there: there | {2})
        return paused | {3}

    assert change_paused(state, "r", meanwhile) == (2, 3)
    assert read_paused(state, "r") == (2, 3)


async def test_what_can_not_be_read_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    """A broken document: the run goes on."""
    ear = Ear(tmp_path)
    open_state(str(tmp_path)).put("runs/r/paused", b"{nonsense", None)
    await ear.look()
    await ear.look()
    assert len(ear.notes) == 1
    assert not ear.ended


async def test_the_holder_of_a_run_lets_go_of_it_in_peace(tmp_path: Path) -> None:
    """It hears the wish, drains, and is gone before the other begins; the wish is forgotten."""
    memory.forget("asked")
    ear, old = Ear(tmp_path), MemoryStore("asked")
    await old.hold(this_process("penstock run old"))

    async def holder() -> None:
        while not ear.ended:
            await ear.look()
            await asyncio.sleep(0.01)
        await old.let_go()

    going = asyncio.create_task(holder())
    assert await ask_for(ear.url, "r", MemoryStore("asked"), this_process("penstock run new"), 5.0)
    await going
    ((state, why),) = ear.ended
    assert state == "handed_over"
    assert "penstock run new" in why
    assert read_asked(ear.url, "r").handover is None


async def test_a_holder_that_hears_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen, or gone: the run is taken by its epoch, as ever."""
    monkeypatch.setattr(asked, "HEARD_WITHIN_S", 0.2)
    memory.forget("asked")
    await MemoryStore("asked").hold(this_process("penstock run old"))
    assert not await ask_for(str(tmp_path), "r", MemoryStore("asked"), this_process("penstock run new"), 60.0)


async def test_nobody_holds_it_nobody_is_asked(tmp_path: Path) -> None:
    """`--take-over` of a run that nobody has begins at once."""
    memory.forget("asked")
    assert await ask_for(str(tmp_path), "r", MemoryStore("asked"), this_process(), 60.0)
    assert open_state(str(tmp_path)).list("") == []


async def test_the_wish_of_a_command_that_died_does_not_end_the_next(tmp_path: Path) -> None:
    """It asked, and was killed before the run was its own."""
    ear = Ear(tmp_path)
    open_state(ear.url).put("runs/r/handover", b'{"by":"a command that is gone"}', None)
    forget_wishes(ear.url, "r")
    await ear.look()
    assert not ear.ended
