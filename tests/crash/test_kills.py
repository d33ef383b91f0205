"""`kill -9`, of every kind of process, at random moments: nothing lost, nothing twice, repeats bounded and marked."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.crash.bench import Bench, Kind, Shape, bench
from tests.crash.shared_ray import SharedRay

pytestmark = pytest.mark.ray

UNCOMMITTED_S = 0.4
"""How old an answer may be and not yet committed: the interval of 0.2 s, the commit, and a busy machine's share."""


PARTS: tuple[Kind, ...] = ("lane", "dispatcher", "governor", "driver")


def test_a_run_survives_kills_of_its_processes(tmp_path: Path, ray: SharedRay) -> None:
    """One command, each kind of its processes killed twice; it ends by itself with every item exactly once."""
    with bench(tmp_path, Shape(items=5_000, dispatchers=2), ray) as b:
        kill_parts(b, PARTS * 2, seed=1)


def test_a_run_survives_the_kill_of_its_command(tmp_path: Path, mark: str) -> None:
    """The command, alone and with all its processes; the same command again goes on."""
    with bench(tmp_path, Shape(items=2_500)) as b:
        kill_commands(b, ["command", "group", "command"], seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", PARTS)
def test_soak_parts(kind: Kind, seed: int, tmp_path: Path, ray: SharedRay) -> None:
    """As above, at other moments."""
    with bench(tmp_path, Shape(dispatchers=1 + seed % 2 if kind != "governor" else 2, seed=seed), ray) as b:
        kill_parts(b, [kind] * 3, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["command", "group"])
def test_soak_commands(kind: Kind, seed: int, tmp_path: Path, mark: str) -> None:
    """As above, at other moments."""
    with bench(tmp_path, Shape(items=2_000, seed=seed)) as b:
        kill_commands(b, [kind] * 2, seed)


def kill_parts(b: Bench, kinds: Sequence[Kind], seed: int) -> None:
    """At moments, and in an order, that the seed decides."""
    chance = random.Random(f"{' '.join(kinds)}-{seed}")
    moments = sorted(chance.uniform(0.02, 0.8) for _ in kinds)
    command = b.start()
    for moment, kind in zip(moments, chance.sample(kinds, len(kinds)), strict=True):
        b.wait_served(round(moment * b.shape.items), command)
        _kill_soon(b, kind, command, chance)
    assert b.end(command) == 0, b.log(command)
    b.check(bound=_bound(b, len(kinds)))


def kill_commands(b: Bench, kinds: Sequence[Kind], seed: int) -> None:
    chance = random.Random(f"{' '.join(kinds)}-{seed}")
    moments = sorted(chance.uniform(0.02, 0.8) for _ in kinds)
    for moment, kind in zip(moments, kinds, strict=True):
        command = b.start()
        b.wait_served(max(b.served() + 1, round(moment * b.shape.items)), command)
        b.kill(kind, command, chance)
    b.run_until_done()
    b.check(bound=_bound(b, len(kinds)))


def _kill_soon(b: Bench, kind: Kind, command: object, chance: random.Random) -> None:
    until = time.monotonic() + 30
    while not b.kill(kind, command, chance):  # pyright: ignore[reportArgumentType]
        assert time.monotonic() < until, f"no process of kind {kind}"
        time.sleep(0.05)


def _bound(b: Bench, kills: int) -> int:
    """The promise: what is in flight, and what was answered since the last commit, for each kill."""
    return kills * round(b.shape.concurrency + b.fastest_rate() * UNCOMMITTED_S)
