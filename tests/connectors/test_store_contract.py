"""Every store keeps the same promises: the ones on disk, in memory, on S3 and in Kafka run one suite.

A `Process` is one handle on a store; killing it drops its locks and nothing else. A `Model` beside it remembers what
was acknowledged, and says what a reader may see.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from penstock.connectors import memory
from penstock.connectors.base import Holder, OutRecord, Primary
from penstock.connectors.filestore.lane import COMMIT_STEPS, TAKE_STEPS
from penstock.connectors.filestore.spool import iter_values
from penstock.connectors.filestore.store import FileStore, committed_spools
from penstock.connectors.kafka.client import ended
from penstock.connectors.kafka.lane import COMMIT_STEPS as KAFKA_COMMIT_STEPS
from penstock.connectors.kafka.lane import TAKE_STEPS as KAFKA_TAKE_STEPS
from penstock.connectors.kafka.place import KafkaPlace
from penstock.connectors.kafka.store import KafkaStore
from penstock.connectors.memory import MemoryStore
from penstock.connectors.s3.client import PLAIN, client
from penstock.connectors.s3.store import parts
from penstock.connectors.s3.store.lane import COMMIT_STEPS as S3_COMMIT_STEPS
from penstock.connectors.s3.store.lane import TAKE_STEPS as S3_TAKE_STEPS
from penstock.connectors.s3.store.run import Base, claim
from penstock.connectors.s3.store.store import S3Store
from penstock.connectors.settings import FilesSink, KafkaSink, S3Sink
from penstock.engine.errors import Corrupt, Fenced, Held, Temporary
from penstock.engine.plan import Epoch, Plan

if TYPE_CHECKING:
    from conftest import KafkaAt, S3At

    from penstock.jobs.dev.kafka import KafkaServer
    from penstock.jobs.dev.s3 import S3Server

WHO = Holder(host="here", pid=7, user="ada", since=0.0, command="penstock run job.yaml")
_numbers = itertools.count()
_FAST = Path("/dev/shm")
"""A folder in memory: what is tested here is order, not the disk."""


class Crash(BaseException):
    """The process ends between two steps."""


class Script:
    """Raises `Crash`, or calls a function, when a step is reached."""

    def __init__(self) -> None:
        self.at: dict[str, Callable[[], None]] = {}
        self.seen: list[str] = []

    def __call__(self, step: str) -> None:
        self.seen.append(step)
        if action := self.at.pop(step, None):
            action()

    def crash(self, step: str) -> None:
        def action() -> None:
            raise Crash(step)

        self.at[step] = action


class World(Protocol):
    """A place where a store lives, and the processes that open it."""

    take_steps: tuple[str, ...]
    commit_steps: tuple[str, ...]

    def process(self) -> tuple[Primary, Script]: ...
    async def kill(self, store: Primary, lane: int) -> None: ...
    def committed(self, sink: str) -> list[bytes]: ...
    def close(self) -> None: ...


class Disk:
    take_steps = TAKE_STEPS
    commit_steps = COMMIT_STEPS

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-store-", dir=_FAST if _FAST.exists() else None))
        self.home = self.folder / ".results.penstock"

    def process(self) -> tuple[Primary, Script]:
        script = Script()
        outputs = {name: FilesSink(str(self.folder / f"{name}.jsonl")) for name in memory.SINKS}
        return FileStore(self.home, outputs, 0.0, hold_wait_s=0.0, peek_wait_s=0.0, faults=script), script

    async def kill(self, store: Primary, lane: int) -> None:
        await store.release(lane)  # closes descriptors and writes nothing: what the kernel does for a killed process
        await store.let_go()

    def committed(self, sink: str) -> list[bytes]:
        return [v for spool in committed_spools(self.home, sink) for v in iter_values(spool)]

    def close(self) -> None:
        shutil.rmtree(self.folder)


class Memory:
    take_steps = ("take.begin", "take.applied")
    commit_steps = ("commit.begin", "commit.applied")

    def __init__(self) -> None:
        self.name = f"contract-{next(_numbers)}"

    def process(self) -> tuple[Primary, Script]:
        script = Script()
        return MemoryStore(self.name, script), script

    async def kill(self, store: Primary, lane: int) -> None:
        assert isinstance(store, MemoryStore)
        store.crash()

    def committed(self, sink: str) -> list[bytes]:
        return MemoryStore(self.name).values(sink)

    def close(self) -> None:
        memory.forget(self.name)


LANES = range(len((*S3_TAKE_STEPS, *S3_COMMIT_STEPS)))
"""More than any test takes."""


class Bucket:
    """Prefix sinks beside one that is a single object: both kinds of part."""

    take_steps = S3_TAKE_STEPS
    commit_steps = S3_COMMIT_STEPS
    server: ClassVar[S3Server | S3At]

    def __init__(self) -> None:
        self.bucket = f"contract-{secrets.token_hex(6)}"
        self.server.client().create_bucket(Bucket=self.bucket)
        self.life = claim(Base(client(self.server.endpoint, "us-east-1"), self.bucket, "out/.penstock/", PLAIN), "run")

    def process(self) -> tuple[Primary, Script]:
        script = Script()
        outputs = {name: S3Sink(self.bucket, f"out/{name}/") for name in memory.SINKS}
        outputs["costs"] = S3Sink(self.bucket, "out/costs.jsonl")
        return S3Store(self.life, outputs, beat_s=0.05, owner_wait_s=0.0, faults=script), script

    async def kill(self, store: Primary, lane: int) -> None:
        """It writes no more, and its last sign of life has grown old."""
        assert isinstance(store, S3Store)
        await store.beacon.stop()
        await self.life.home.delete([f"alive/{store.beacon.id}"])

    def committed(self, sink: str) -> list[bytes]:
        return list(parts.committed(self.life.home, parts.lanes(self.life.home, LANES), sink))

    def close(self) -> None:
        """The bucket ends with the server."""


class Cluster:
    """A run of its own in the shared Kafka. Its stores live in the test's loop, so `committed` reads in a thread."""

    take_steps = KAFKA_TAKE_STEPS
    commit_steps = KAFKA_COMMIT_STEPS
    bootstrap: ClassVar[str]

    def __init__(self) -> None:
        run_id = f"contract-{secrets.token_hex(6)}"
        sinks = {
            sink: KafkaSink(f"{run_id}-{sink}", self.bootstrap, create=True, progress_topic="contract-progress")
            for sink in memory.SINKS
        }
        self.place = KafkaPlace(sinks, run_id)
        self.settings = msgspec.structs.replace(self.place.settings, beat_s=0.1)
        self.stores: list[KafkaStore] = []

    def process(self) -> tuple[Primary, Script]:
        script = Script()
        self.stores.append(KafkaStore(self.settings, script))
        return self.stores[-1], script

    async def kill(self, store: Primary, lane: int) -> None:
        """It says nothing more to anybody, and its last sign of life has grown old."""
        assert isinstance(store, KafkaStore)
        if store.heart is not None:
            await store.heart.stop()
        store.kill()

    def committed(self, sink: str) -> list[bytes]:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: list(self.place.committed(sink))).result()

    def close(self) -> None:
        for store in self.stores:
            store.kill()


@pytest.fixture(
    params=[
        Disk,
        Memory,
        pytest.param(Bucket, marks=pytest.mark.s3),
        pytest.param(Cluster, marks=pytest.mark.kafka),
    ]
)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param is Bucket:
        Bucket.server = request.getfixturevalue("s3_server")
        request.getfixturevalue("s3_keys")
    if request.param is Cluster:
        Cluster.bootstrap = request.getfixturevalue("kafka_server").bootstrap
    world: World = request.param()
    yield world
    world.close()
    await ended()


def record(n: int, sub: int = 0) -> OutRecord:
    return OutRecord(0, n, b'{"n":%d}' % n, sub)


async def test_a_lane_that_never_started_is_empty(world: World) -> None:
    """`take` of a new lane: seq 0, no epoch, no chunks; nobody owned it."""
    store, _ = world.process()
    assert await store.owner(0) == (0, 0)
    taken = await store.take(0, (1, 1))
    assert (taken.seq, taken.epoch, taken.chunks) == (0, (0, 0), {})
    assert await store.owner(0) == (1, 1)


async def test_what_was_committed_is_there_for_the_next_owner(world: World) -> None:
    """Seq, epoch, chunks and records of every acknowledged commit outlive the process."""
    store, _ = world.process()
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {"results": [record(1)], "costs": [record(1)]}, {"a": b"1", "b": b"1"})
    await store.commit(0, (1, 1), 2, {"results": [record(0)]}, {"b": b"", "c": b"2"})
    await world.kill(store, 0)
    other, _ = world.process()
    taken = await other.take(0, (1, 2))
    assert (taken.seq, taken.epoch, taken.chunks) == (2, (1, 1), {"a": b"1", "c": b"2"})
    assert sorted(world.committed("results")) == [b'{"n":0}', b'{"n":1}']
    assert world.committed("costs") == [b'{"n":1}']


async def test_the_same_seq_again_changes_nothing(world: World) -> None:
    """A redo of the last commit is a no-op, by its own owner and by the next."""
    store, _ = world.process()
    await store.take(0, (1, 1))
    for _ in range(3):
        await store.commit(0, (1, 1), 1, {"results": [record(1)]}, {"a": b"1"})
    await world.kill(store, 0)
    other, _ = world.process()
    await other.take(0, (1, 2))
    await other.commit(0, (1, 2), 1, {"results": [record(1)]}, {"a": b"9"})
    assert world.committed("results") == [b'{"n":1}']
    assert (await other.peek(0)).chunks == {"a": b"1"}


async def test_an_outbox_may_be_sent_again_from_its_start(world: World) -> None:
    """Any seq that was committed before is a no-op, not only the last."""
    store, _ = world.process()
    await store.take(0, (1, 1))
    for seq in (1, 2, 3, 1, 2, 3, 4):
        await store.commit(0, (1, 1), seq, {"results": [record(seq)]}, {})
    assert sorted(world.committed("results")) == [b'{"n":%d}' % n for n in (1, 2, 3, 4)]


async def test_a_seq_that_jumps_is_refused(world: World) -> None:
    """A gap contradicts the store: `Corrupt`, and nothing is written."""
    store, _ = world.process()
    await store.take(0, (1, 1))
    with pytest.raises(Corrupt):
        await store.commit(0, (1, 1), 2, {"results": [record(1)]}, {})
    assert world.committed("results") == []


async def test_an_old_epoch_is_refused(world: World) -> None:
    """`take` with an equal or lower epoch, and `commit` with a lower one, get `Fenced`."""
    store, _ = world.process()
    await store.take(0, (2, 1))
    await world.kill(store, 0)
    other, _ = world.process()
    for epoch in [(2, 1), (1, 9)]:
        with pytest.raises(Fenced):
            await other.take(0, epoch)
    await other.take(0, (2, 2))
    with pytest.raises(Fenced):
        await other.commit(0, (2, 1), 1, {"results": [record(1)]}, {})
    assert world.committed("results") == []


async def test_a_live_owner_is_not_fenced_without_force(world: World) -> None:
    """`Held`, until the owner releases the lane or ends; with `force` at once, and then the old one gets `Fenced`."""
    store, _ = world.process()
    await store.take(0, (1, 1))
    other, _ = world.process()
    with pytest.raises(Held):
        await other.take(0, (1, 2))
    await store.commit(0, (1, 1), 1, {"results": [record(1)]}, {})
    assert (await other.take(0, (1, 3), force=True)).seq == 1
    with pytest.raises(Fenced):
        await store.commit(0, (1, 1), 2, {"results": [record(2)]}, {})
    await other.release(0)
    third, _ = world.process()
    await third.take(0, (1, 4))
    assert world.committed("results") == [b'{"n":1}']


async def test_a_lane_that_is_let_go_while_another_is_taken_leaves_that_ones_owner_alive(world: World) -> None:
    """As after an outage, when a process takes all its lanes anew, each at its own time."""
    first, script = world.process()
    await first.take(0, (1, 1))
    loop, left = asyncio.get_running_loop(), list[asyncio.Task[None]]()

    def leave() -> None:
        left.append(loop.create_task(first.release(0)))

    def wake() -> None:
        loop.call_soon_threadsafe(leave)

    script.at[world.take_steps[0]] = wake
    await first.take(1, (1, 1))
    await asyncio.gather(*left)
    second, _ = world.process()
    with pytest.raises(Held):
        await second.take(1, (1, 2))
    await first.release(1)
    await second.take(1, (1, 2))


async def test_an_owner_that_was_replaced_within_its_process_does_not_touch_the_next_one(world: World) -> None:
    """Its release comes late, or its take: a follower is taken after the primary, and that may be slow."""
    store, _ = world.process()
    await store.take(0, (1, 1))
    await store.take(0, (1, 3))
    await store.release(0, (1, 1))
    await store.commit(0, (1, 3), 1, {"results": [record(1)]}, {})
    with pytest.raises(Fenced):
        await store.take(0, (1, 2))
    await store.commit(0, (1, 3), 2, {"results": [record(2)]}, {})
    assert await store.owner(0) == (1, 3)
    await store.release(0, (1, 3))
    other, _ = world.process()
    assert (await other.take(0, (1, 4))).seq == 2


async def test_lanes_do_not_touch_each_other(world: World) -> None:
    """Taking or crashing one lane leaves the others alone."""
    store, _ = world.process()
    await store.take(0, (1, 1))
    await store.take(1, (1, 1))
    await store.commit(0, (1, 1), 1, {"results": [record(1)]}, {"a": b"0"})
    await store.commit(1, (1, 1), 1, {"results": [record(2)]}, {"a": b"1"})
    other, _ = world.process()
    await other.take(0, (1, 2), force=True)
    await store.commit(1, (1, 1), 2, {}, {"a": b"2"})
    assert ((await store.peek(0)).chunks, (await store.peek(1)).chunks) == ({"a": b"0"}, {"a": b"2"})


async def test_a_crash_at_any_step_of_a_commit_leaves_all_or_nothing(world: World) -> None:
    """Whatever step the process dies at, records and chunks of that commit are there together or not at all, and
    those of the commit before are there."""
    for lane, step in enumerate(world.commit_steps):
        store, script = world.process()
        epoch: Epoch = (1, lane + 1)
        await store.take(lane, epoch)
        await store.commit(lane, epoch, 1, {"results": [record(lane * 10)]}, {"a": b"1"})
        script.crash(step)
        records = {"results": [record(lane * 10 + 1)], "costs": [record(lane)], "review": [record(lane)]}
        with pytest.raises(Crash):
            await store.commit(lane, epoch, 2, records, {"a": b"2"})
        await world.kill(store, lane)
        other, _ = world.process()
        taken = await other.take(lane, (2, 1))
        values = {b'{"n":%d}' % (lane * 10), b'{"n":%d}' % (lane * 10 + 1)} & set(world.committed("results"))
        costs, review = (b'{"n":%d}' % lane in world.committed(sink) for sink in ("costs", "review"))
        assert costs == review
        assert (taken.seq, taken.chunks, len(values), costs) in [(1, {"a": b"1"}, 1, False), (2, {"a": b"2"}, 2, True)]


async def test_a_crash_at_any_step_of_a_take_loses_nothing(world: World) -> None:
    """The next owner reads what the last commit left, however often taking was cut off."""
    store, _ = world.process()
    await store.take(0, (1, 1))
    await store.commit(0, (1, 1), 1, {"results": [record(1)]}, {"a": b"1"})
    await world.kill(store, 0)
    for n, step in enumerate(world.take_steps):
        other, script = world.process()
        script.crash(step)
        with pytest.raises(Crash):
            await other.take(0, (1, 10 + n))
        await world.kill(other, 0)
    last, _ = world.process()
    taken = await last.take(0, (1, 100))
    assert (taken.seq, taken.epoch, taken.chunks) == (1, (1, 1), {"a": b"1"})
    assert world.committed("results") == [b'{"n":1}']


async def test_an_owner_goes_on_or_takes_its_lane_anew_after_another_died_taking_it(world: World) -> None:
    """Wherever the other died: what the owner commits is there once, and what was refused is not there."""
    owner, _ = world.process()
    there: list[bytes] = []
    for n, step in enumerate(world.take_steps):
        taken = await owner.take(0, (1, 10 * n + 1), force=True)
        other, script = world.process()
        script.crash(step)
        with pytest.raises(Crash):
            await other.take(0, (1, 10 * n + 2), force=True)
        await world.kill(other, 0)
        try:
            await owner.commit(0, (1, 10 * n + 1), taken.seq + 1, {"results": [record(n)]}, {})
        except (Temporary, Fenced):
            taken = await owner.take(0, (1, 10 * n + 3), force=True)
            await owner.commit(0, (1, 10 * n + 3), taken.seq + 1, {"results": [record(n)]}, {})
        there.append(b'{"n":%d}' % n)
        assert sorted(world.committed("results")) == there


async def test_after_an_uncertain_commit_the_lane_must_be_taken_anew(world: World) -> None:
    """A commit that broke half-way is never quietly followed by another."""
    store, script = world.process()
    await store.take(0, (1, 1))
    script.crash(world.commit_steps[-1])
    with pytest.raises(Crash):
        await store.commit(0, (1, 1), 1, {"results": [record(1)]}, {})
    for seq in (1, 2):
        with pytest.raises((Temporary, Fenced)):
            await store.commit(0, (1, 1), seq, {"results": [record(2)]}, {})
    taken = await store.take(0, (1, 2))
    await store.commit(0, (1, 2), taken.seq + 1, {"results": [record(3)]}, {})
    assert b'{"n":2}' not in world.committed("results")


async def test_one_command_holds_a_run(world: World) -> None:
    """The second is told who holds it and how to take it over; taking over, or the first one's end, gives a higher
    run epoch, and one above what the caller names."""
    first, _ = world.process()
    second, _ = world.process()
    assert await first.run_epoch() == 0
    assert await first.hold(WHO) == 1
    with pytest.raises(Held, match=r"ada@here, process 7.*--take-over"):
        await second.hold(WHO)
    assert await second.hold(WHO, take_over=True) == 2
    await second.let_go()
    assert await first.hold(WHO) == 3
    assert await second.run_epoch() == 3
    await first.let_go()
    assert await second.hold(WHO, above=7) == 8
    await second.let_go()
    assert await first.hold(WHO, above=7) == 9


async def test_a_plan_is_written_once_and_then_only_appended_to(world: World) -> None:
    """Its version must be the stored one + 1: of two writers one is `Fenced`."""
    store, _ = world.process()
    assert await store.read_plan() is None
    plan = Plan("run", "name", {"date": "x"}, 2, (), {"prompt": "h"}, 1.5)
    await store.write_plan(plan)
    with pytest.raises(Fenced):
        await store.write_plan(plan)
    other, _ = world.process()
    assert await other.read_plan() == plan


# The same, with everything that can happen in any order.


class StoreMachine(RuleBasedStateMachine):
    """Two processes on one lane: they take (by force), commit, crash at any step, and go on as if nothing had been."""

    world: World
    worlds: ClassVar[list[type[World]]] = [Disk, Memory]
    fences_first: ClassVar[bool] = False
    """A take cuts its predecessor off before it says who owns the lane: one that dies in between leaves an owner who
    can't commit, and has to take the lane anew."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()

    @initialize(data=st.data())
    def open(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from(self.worlds))
        self.world = which()
        self.stores = [self.world.process() for _ in range(2)]
        self.epochs: list[Epoch] = [(0, 0), (0, 0)]
        self.seqs = [0, 0]
        self.cut_off = [False, False]
        """The other's take died since it took the lane."""
        self.next_epoch = 1
        self.next_record = 0
        self.acknowledged: dict[int, int] = {}
        """Record → seq that carried it, once `commit` has returned."""
        self.maybe: set[int] = set()
        self.records_of: dict[tuple[Epoch, int], list[int]] = {}

    def run(self, what: object) -> object:
        return self.loop.run_until_complete(what)  # pyright: ignore

    @rule(who=st.integers(0, 1), crash=st.none() | st.integers(0, 5))
    def take(self, who: int, crash: int | None) -> None:
        """By force: the other process may be anywhere."""
        store, script = self.stores[who]
        epoch: Epoch = (1, self.next_epoch)
        self.next_epoch += 1
        script.at.clear()
        if crash is not None:
            script.crash(self.world.take_steps[crash % len(self.world.take_steps)])
        try:
            taken = self.run(store.take(0, epoch, force=True))
        except Crash:
            self.restart(who)
            self.cut_off[1 - who] = self.fences_first
            return
        self.epochs[who], self.seqs[who] = epoch, taken.seq  # pyright: ignore
        self.cut_off[who] = False

    @precondition(lambda self: max(self.epochs) > (0, 0))
    @rule(who=st.integers(0, 1), size=st.integers(0, 3), crash=st.none() | st.integers(0, 5))
    def commit(self, who: int, size: int, crash: int | None) -> None:
        if self.epochs[who] == (0, 0):
            return
        store, script = self.stores[who]
        numbers = list(range(self.next_record, self.next_record + size))
        self.next_record += size
        seq = self.seqs[who] + 1
        script.at.clear()
        if crash is not None:
            script.crash(self.world.commit_steps[crash % len(self.world.commit_steps)])
        rows = [record(n) for n in numbers]
        try:
            self.run(store.commit(0, self.epochs[who], seq, {"results": rows, "costs": rows}, {"last": b"%d" % seq}))
        except Crash:
            self.maybe |= set(numbers)
            self.restart(who)
        except Fenced:
            self.maybe |= set(numbers)
            self.epochs[who] = (0, 0)
        except Temporary:
            assert self.cut_off[who], "nobody tried to take the lane"
            self.maybe |= set(numbers)
            self.epochs[who] = (0, 0)
        else:
            assert self.epochs[who] == max(self.epochs), "an older epoch was acknowledged"
            self.seqs[who] = seq
            self.acknowledged |= dict.fromkeys(numbers, seq)

    def restart(self, who: int) -> None:
        self.run(self.world.kill(self.stores[who][0], 0))
        self.stores[who] = self.world.process()
        self.epochs[who] = (0, 0)

    @invariant()
    def acknowledged_is_there_and_nothing_is_twice(self) -> None:
        if not hasattr(self, "world"):
            return
        seen = [int(v[5:-1]) for v in self.world.committed("results")]
        assert len(seen) == len(set(seen))
        assert self.acknowledged.keys() <= set(seen) <= self.acknowledged.keys() | self.maybe
        assert sorted(seen) == sorted(int(v[5:-1]) for v in self.world.committed("costs"))
        peeked = self.run(self.stores[0][0].peek(0))
        assert peeked.chunks == ({"last": b"%d" % peeked.seq} if peeked.seq else {})  # pyright: ignore
        assert peeked.seq >= max(self.acknowledged.values(), default=0)  # pyright: ignore

    def teardown(self) -> None:
        if hasattr(self, "world"):
            for store, _ in self.stores:
                self.run(self.world.kill(store, 0))
            self.world.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class BucketMachine(StoreMachine):
    worlds: ClassVar[list[type[World]]] = [Bucket]


@pytest.mark.s3
def test_the_same_on_s3(s3_server: S3Server | S3At, s3_keys: None) -> None:
    """Fewer examples: each step is some ten requests."""
    Bucket.server = s3_server
    run_state_machine_as_test(BucketMachine, settings=settings(max_examples=8, stateful_step_count=20, deadline=None))


class ClusterMachine(StoreMachine):
    worlds: ClassVar[list[type[World]]] = [Cluster]
    fences_first = True


@pytest.mark.kafka
def test_the_same_in_kafka(kafka_server: KafkaServer | KafkaAt) -> None:
    """Fewer examples: a take starts a producer, and each look reads two topics."""
    Cluster.bootstrap = kafka_server.bootstrap
    run_state_machine_as_test(ClusterMachine, settings=settings(max_examples=5, stateful_step_count=15, deadline=None))
