"""What people and other commands ask of a run while it goes: small documents at the state URL, read once a second.

`runs/<run_id>/cancel` (who asks), `paused` (a JSON list of tiers), `handover` (a `HandOver`). Empty: nothing is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from penstock.connectors.base import Holder, Primary
from penstock.connectors.documents import until_won
from penstock.connectors.state import ABSENT, State, open_state
from penstock.engine.errors import Corrupt

T = TypeVar("T")

HEARD_WITHIN_S = 4.0
"""The holder of a run looks once a second: one that has not heard by then is frozen or gone, and loses the run by its
epoch."""
LOOK_S = 0.1


class HandOver(msgspec.Struct, frozen=True):
    """Another command wants the run, and waits for its holder to let go of it in peace."""

    by: str
    heard: bool = False


class Asked(msgspec.Struct, frozen=True):
    cancel: bool = False
    paused: tuple[int, ...] = ()
    """Tiers."""
    handover: HandOver | None = None


def key(run_id: str, name: str) -> str:
    return f"runs/{run_id}/{name}"


def read_asked(url: str, run_id: str) -> Asked:
    """Blocking. Raises `Corrupt` where a document can't be read, `Temporary` where the state can't be reached."""
    state = open_state(url)
    return Asked(
        bool(_read(state, key(run_id, "cancel"))),
        read_paused(state, run_id),
        _decode(_read(state, key(run_id, "handover")), HandOver, "handover"),
    )


def read_paused(state: State, run_id: str) -> tuple[int, ...]:
    """The tiers that are paused, in order."""
    return tuple(sorted(_decode(_read(state, key(run_id, "paused")), list[int], "paused") or ()))


def change_paused(state: State, run_id: str, change: Callable[[set[int]], Iterable[int]]) -> tuple[int, ...]:
    """The tiers that are paused from now on, in order. `change` makes them of those that were; of two commands at once
    neither undoes what the other asks."""
    name = key(run_id, "paused")

    def attempt() -> tuple[int, ...]:
        found = state.get(name)
        before = _decode(found[0], list[int], "paused") if found is not None else None
        paused = tuple(sorted(change(set(before or ()))))
        state.put(name, msgspec.json.encode(paused), ABSENT if found is None else found[1])
        return paused

    return until_won(attempt, f"what is paused of run {run_id}")


def heard(url: str, run_id: str, wish: HandOver) -> None:
    """The holder says that it heard, and drains."""
    _write(open_state(url), run_id, msgspec.structs.replace(wish, heard=True))


def forget_wishes(url: str, run_id: str) -> None:
    """Whoever holds the run now is the one who was to have it, or comes after a command that died while it asked."""
    state = open_state(url)
    if _read(state, key(run_id, "handover")):
        _write(state, run_id, None)


async def ask_for(url: str, run_id: str, primary: Primary, me: Holder, drain_s: float) -> bool:
    """Ask the command that holds the run to drain and let go of it. True: it has; nobody holds it now.

    Where it does not hear, or needs longer than its drain may take, the run is taken by epoch: then what it has in
    flight may be paid for again.
    """
    if await primary.holder() is None:
        return True
    state = open_state(url)
    by = f"{me.user}@{me.host}, process {me.pid} ({me.command})"
    await asyncio.to_thread(_write, state, run_id, HandOver(by))
    try:
        return await _let_go(state, run_id, primary, drain_s)
    finally:
        await asyncio.to_thread(_write, state, run_id, None)


async def _let_go(state: State, run_id: str, primary: Primary, drain_s: float) -> bool:
    asked_at, told = time.monotonic(), False
    while await primary.holder() is not None:
        waited = time.monotonic() - asked_at
        if not told and waited > LOOK_S:
            found = await asyncio.to_thread(_read, state, key(run_id, "handover"))
            wish = _decode(found, HandOver, "handover")
            told = wish is not None and wish.heard
        if waited > (drain_s + HEARD_WITHIN_S if told else HEARD_WITHIN_S):
            return False
        await asyncio.sleep(LOOK_S)
    return True


def _write(state: State, run_id: str, wish: HandOver | None) -> None:
    state.put(key(run_id, "handover"), b"" if wish is None else msgspec.json.encode(wish), None)


def _read(state: State, name: str) -> bytes:
    found = state.get(name)
    return found[0] if found is not None else b""


def _decode(data: bytes, kind: type[T], name: str) -> T | None:
    if not data:
        return None
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise Corrupt(f"the run's {name!r} document can't be read ({error}); delete it, and ask again") from error
