"""What the store on disk promises beyond the contract: interleavings, damage, a full disk, real processes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.connectors.base import OutRecord
from penstock.connectors.filestore import disk as file_disk
from penstock.connectors.filestore import lane as file_lane
from penstock.connectors.filestore.lane import COMMIT_STEPS, ROTATE_STEPS, TAKE_STEPS
from penstock.connectors.filestore.spool import iter_values
from penstock.connectors.filestore.store import FileStore, committed_spools
from penstock.connectors.settings import FilesSink
from penstock.engine.errors import Corrupt, Fenced, Temporary
from penstock.engine.plan import Epoch, Plan


def store_at(tmp_path: Path, faults: Callable[[str], None] = file_disk.no_faults, wait_s: float = 0.0) -> FileStore:
    outputs = {name: FilesSink(str(tmp_path / f"{name}.jsonl")) for name in ("results", "costs", "dead_letters")}
    return FileStore(tmp_path / ".results.penstock", outputs, wait_s, peek_wait_s=0.0, faults=faults)


def rows(*numbers: int) -> list[OutRecord]:
    return [OutRecord(0, n, b"%d" % n) for n in numbers]


def committed(tmp_path: Path, sink: str = "results") -> list[int]:
    spools = committed_spools(tmp_path / ".results.penstock", sink)
    return [int(v) for spool in spools for v in iter_values(spool)]


def once(step: str, action: Callable[[], object]) -> Callable[[str], None]:
    """`Faults` that runs `action` the first time that `step` is reached."""
    left = [action]

    def faults(name: str) -> None:
        if name == step and left:
            left.pop()()

    return faults


@pytest.mark.parametrize("step", COMMIT_STEPS)
async def test_a_forced_take_at_any_step_of_a_commit_decides_once(tmp_path: Path, step: str) -> None:
    """The new owner takes the lane while the old one stands between two steps of a commit. Then: an acknowledged
    commit is among what the new owner read; one that isn't acknowledged is there for both readers and owner, or for
    neither, for ever."""
    new = store_at(tmp_path)
    read: list[int] = []
    # the hook runs in the commit's own thread, so it has its own loop
    take = once(step, lambda: read.append(asyncio.run(new.take(0, (1, 2), force=True)).seq))
    old = store_at(tmp_path, take)
    await old.take(0, (1, 1))
    try:
        await old.commit(0, (1, 1), 1, {"results": rows(1)}, {"a": b"1"})
        acknowledged = True
    except Fenced:
        acknowledged = False
    there = committed(tmp_path) == [1]
    assert there == (read == [1])
    assert there or not acknowledged
    with pytest.raises(Fenced):
        await old.commit(0, (1, 1), 2, {"results": rows(2)}, {})
    await new.commit(0, (1, 2), read[0] + 1, {"results": rows(3)}, {})
    assert committed(tmp_path) == ([1, 3] if there else [3])


@pytest.mark.parametrize("step", [s for s in TAKE_STEPS if s != "take.begin"])
async def test_a_commit_of_the_old_owner_during_a_take_is_never_acknowledged(tmp_path: Path, step: str) -> None:
    """From the marker on the old owner gets `Fenced`; what it wrote is there wholly if the new owner read it, else
    never."""
    old = store_at(tmp_path)
    await old.take(0, (1, 1))
    refused: list[type[Exception]] = []

    def commit() -> None:
        try:
            old._lanes[0].commit(1, {"results": rows(1)}, {"a": b"1"})  # pyright: ignore[reportPrivateUsage]
        except Fenced as error:
            refused.append(type(error))

    new = store_at(tmp_path, once(step, commit))
    taken = await new.take(0, (1, 2), force=True)
    assert refused == [Fenced]
    assert (taken.seq, taken.chunks, committed(tmp_path)) in [(0, {}, []), (1, {"a": b"1"}, [1])]
    await new.commit(0, (1, 2), taken.seq + 1, {"results": rows(2)}, {})
    assert committed(tmp_path) == [1] * taken.seq + [2]


async def test_two_takers_at_once_leave_one_owner(tmp_path: Path) -> None:
    """A taker that stood still while a higher epoch came gets `Fenced`, whatever step it stood at."""
    for lane, step in enumerate(s for s in TAKE_STEPS if s not in ("take.begin", "take.checked")):
        fast = store_at(tmp_path)
        slow = store_at(tmp_path, once(step, lambda s=fast, n=lane: _forced(s, n)))
        with pytest.raises(Fenced):
            await slow.take(lane, (1, 1))
        await fast.commit(lane, (1, 2), 1, {"results": rows(lane)}, {})
    assert committed(tmp_path) == [0, 1, 2, 3]


def _forced(store: FileStore, lane: int) -> None:
    """`take` awaits nothing where it needn't wait for a lock: drive it to its end within the running loop."""
    with pytest.raises(StopIteration):
        store.take(lane, (1, 2), force=True).send(None)


async def test_a_long_log_is_begun_anew_and_stays_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After many commits one short log file remains, with everything in it."""
    store = await _with_short_logs(tmp_path, monkeypatch)
    await _commit_until(store, (1, 1), 1, 40)
    await store.release(0)
    logs = list((tmp_path / ".results.penstock/lane-0000").glob("*.log"))
    assert [log.stat().st_size < 4000 for log in logs] == [True]
    taken = await store.take(0, (1, 2))
    assert (taken.seq, taken.chunks) == (40, {"a": b"40" * 50, "b": b"keep"})
    assert committed(tmp_path) == list(range(1, 41))


@pytest.mark.parametrize("step", ROTATE_STEPS)
async def test_a_crash_while_the_log_is_begun_anew_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Every acknowledged commit is read by the next owner, and the one that was cut off is not there."""
    await (await _with_short_logs(tmp_path, monkeypatch)).release(0)
    dying = store_at(tmp_path, once(step, _raise))
    await dying.take(0, (1, 2))
    with pytest.raises(RuntimeError):
        await _commit_until(dying, (1, 2), 1, 100)
    last = max(committed(tmp_path))
    await dying.release(0)
    taken = await store_at(tmp_path).take(0, (1, 3))
    assert (taken.seq, taken.chunks["a"]) == (last, b"%d" % last * 50)
    assert committed(tmp_path) == list(range(1, last + 1))


async def _with_short_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStore:
    monkeypatch.setattr(file_lane, "ROTATE_BYTES", 2000)
    monkeypatch.setattr(file_lane, "ROTATE_FACTOR", 1)
    store = store_at(tmp_path)
    await store.take(0, (1, 1))
    return store


async def _commit_until(store: FileStore, epoch: Epoch, first: int, last: int) -> None:
    for seq in range(first, last + 1):
        chunks = {"a": b"%d" % seq * 50, **({"b": b"keep"} if seq == 1 else {})}
        await store.commit(0, epoch, seq, {"results": rows(seq)}, chunks)


def _raise() -> None:
    raise RuntimeError("killed")


async def test_a_torn_tail_is_not_there(tmp_path: Path) -> None:
    """Cut the log at every byte of its last record, or put garbage behind it: the commit before is what counts."""
    store = store_at(tmp_path)
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {"results": rows(1)}, {"a": b"1"})
    log = next((tmp_path / ".results.penstock/lane-0000").glob("*.log"))
    before = log.read_bytes()
    await store.commit(0, (1, 1), 2, {"results": rows(2)}, {"a": b"2"})
    whole = log.read_bytes()
    for cut in range(len(before), len(whole)):
        log.write_bytes(whole[:cut])
        assert (await store.peek(0)).seq == 1
        log.write_bytes(whole[:cut] + b"\0" * (len(whole) - cut))
        assert (await store.peek(0)).seq == 1
    log.write_bytes(whole + os.urandom(100))
    assert (await store.peek(0)).seq == 2


async def test_damage_is_refused_and_never_guessed_around(tmp_path: Path) -> None:
    """A broken record with whole ones behind it, a spool shorter than what was committed, a lost log, a lost lane
    folder of the plan: `Corrupt`, with what to do."""
    store = store_at(tmp_path)
    await store.write_plan(Plan("run", "n", {}, 2, (), {}, 0.0))
    await store.take(0, (1, 1))
    for seq in (1, 2):
        await store.commit(0, (1, 1), seq, {"results": rows(seq)}, {"a": b"x" * 100})
    await store.release(0)
    folder = tmp_path / ".results.penstock/lane-0000"
    log, spool = next(folder.glob("*.log")), next(folder.glob("*.spool"))
    for path, broken in [
        (log, log.read_bytes().replace(b"x" * 100, b"y" * 100, 1)),
        (log, b""),
        (spool, spool.read_bytes()[:-1]),
        (log, None),
    ]:
        good = path.read_bytes()
        path.write_bytes(broken) if broken is not None else path.unlink()
        with pytest.raises(Corrupt, match="--fresh"):
            await store.take(0, (2, next(_epochs)))
        path.write_bytes(good)
    (tmp_path / ".results.penstock/lane-0001").rmdir()
    with pytest.raises(Corrupt, match="--fresh"):
        await store.take(1, (1, 1))
    assert (await store.take(0, (3, 1))).seq == 2


_epochs = itertools.count(1)


async def test_a_full_disk_is_an_uncertain_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Temporary`, at whichever file the disk fills up; the next call is refused until the lane is taken anew, and
    then everything acknowledged is there and nothing half."""
    real = os.pwrite
    for lane, room in enumerate((0, 30, 100, 140)):
        store = store_at(tmp_path)
        await store.take(lane, (1, 1))
        await store.commit(lane, (1, 1), 1, {"results": rows(lane)}, {"a": b"1"})
        left = [room]

        def full(fd: int, data: bytes, offset: int, left: list[int] = left) -> int:
            """The disk takes what fits, then nothing, as the kernel does."""
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            done = real(fd, bytes(data)[: left[0]], offset)
            left[0] -= done
            return done

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(Temporary, match="uncertain"):
            await store.commit(lane, (1, 1), 2, {"results": rows(100, 101)}, {"a": b"2" * 200})
        monkeypatch.setattr(os, "pwrite", real)
        with pytest.raises(Temporary):
            await store.commit(lane, (1, 1), 2, {"results": rows(100)}, {})
        assert (await store.take(lane, (1, 2))).chunks == {"a": b"1"}
    assert committed(tmp_path) == [0, 1, 2, 3]


HELPER = """
import asyncio, os, sys
from pathlib import Path
from penstock.connectors.base import OutRecord
from penstock.connectors.filestore.store import FileStore
from penstock.connectors.settings import FilesSink
from penstock.engine.errors import Fenced

async def main(folder, run):
    outputs = {n: FilesSink(f"{folder}/{n}.jsonl") for n in ("results", "costs", "dead_letters")}
    store = FileStore(Path(folder) / ".results.penstock", outputs, 10.0)
    taken = await store.take(0, (run, 1))
    n = int(taken.chunks.get("next", b"0"))
    seq = taken.seq
    print("taken", seq, n, flush=True)
    while True:
        seq += 1
        rows = [OutRecord(0, n + i, b"%d" % (n + i)) for i in range(5)]
        try:
            await store.commit(0, (run, 1), seq, {"results": rows, "costs": rows}, {"next": b"%d" % (n + 5)})
        except Fenced as error:
            print("fenced", error, flush=True)
            return
        n += 5
        print("acked", seq, n, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def owner_process(tmp_path: Path, run: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HELPER, str(tmp_path), str(run)], stdout=subprocess.PIPE, text=True)


def next_line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def rest(process: subprocess.Popen[str]) -> list[str]:
    """All that it still says, to its end."""
    assert process.stdout is not None
    with process.stdout as out:
        lines = out.readlines()
    process.wait(timeout=20)
    return lines


async def test_a_stopped_owner_that_wakes_up_writes_nothing_that_counts(tmp_path: Path) -> None:
    """A real process holds the lane's lock and is SIGSTOPped amid its commits; a forced take proceeds; after SIGCONT
    its commit gets `Fenced`, and no reader ever sees it."""
    process = owner_process(tmp_path, 1)
    try:
        for _ in range(5):
            next_line(process)
        process.send_signal(signal.SIGSTOP)
        new = store_at(tmp_path)
        taken = await new.take(0, (2, 1), force=True)
        seen = committed(tmp_path)
        await new.commit(0, (2, 1), taken.seq + 1, {"results": rows(-1)}, {"next": taken.chunks["next"]})
        process.send_signal(signal.SIGCONT)
        lines = [line.split() for line in rest(process)]
    finally:
        process.kill()
        process.wait()
    assert lines[-1][0] == "fenced"
    assert all(int(line[1]) <= taken.seq for line in lines if line[0] == "acked")
    assert committed(tmp_path) == [*seen, -1]
    assert seen == list(range(int(taken.chunks["next"])))


async def test_kill_nine_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Ten owners one after the other, each killed amid its commits: every acknowledged record is there, in order,
    once, and results and costs agree. (The next owner waits for the dead one's lock.)"""
    chance, acknowledged = random.Random(7), 0
    for run in range(1, 11):
        process = owner_process(tmp_path, run)
        try:
            assert next_line(process)[0] == "taken"
            for _ in range(chance.randrange(1, 20)):
                acknowledged = int(next_line(process)[2])
            await asyncio.sleep(chance.random() * 0.01)
        finally:
            process.kill()
            lines = rest(process)
        acknowledged = max([acknowledged, *(int(line.split()[2]) for line in lines if line.endswith("\n"))])
        there = committed(tmp_path)
        assert there == list(range(len(there)))
        assert acknowledged <= len(there) <= acknowledged + 5
        assert committed(tmp_path, "costs") == there
