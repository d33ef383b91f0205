"""Closing lines of own engines: the sum of the cost records is hours × price, however often it is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from penstock.connectors.state import FolderState
from penstock.engine.budget import Budgets
from penstock.engine.catalog import Catalog, Model, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.flow.tally import ModelTally, Tally
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Task
from penstock.engine.router import Router
from penstock.workers.books.gpu_bill import BillKeeper, GpuBill, Shares
from penstock.workers.fleet import Fleet, Worker

OWN = Catalog({}, {"own": Model("own", (Version("v1", "x"),), "v1", worker="vllm", hour_usd=3.6)}, {3: ("own",)})


def bill() -> GpuBill:
    made = GpuBill(OWN)
    made.starting("own@v1", "own@v1#0", 1000.0)
    made.ready("own@v1", "own@v1#0", 1060.0)
    return made


def test_what_was_closed_once_owes_nothing_more() -> None:
    """A driver that comes later (a crash between the lines' commit and the end) sees in the sums that they are in."""
    hooks, policy = Hooks(lambda: 0.5, lambda _i, _a, _t: (), lambda body, _a, _w: body), Policy({"t": Task("t")})
    lane = Lane(LaneSettings(0, "r"), Router(OWN, policy), OWN, policy, hooks, Budgets((), "r"))
    first = bill()
    lines = first.closing_lines(lane.tally, "r", 1, 2000.0)
    assert sum(line.cost_nano for line in lines) == 1_000_000_000
    saved = first.dump(2000.0)
    lane.add_costs(lines)
    later = GpuBill(OWN)
    later.load(saved, 9000.0)
    assert sum(line.cost_nano for line in later.closing_lines(lane.tally, "r", 2, 9000.0)) == 0
    assert later.idle_nano(lane.tally, 9000.0) == 940_000_000, "what calls did not pay for, whoever billed it since"


def test_a_version_that_is_named_by_its_revision_is_billed_under_its_own_name() -> None:
    """`model:` with `revision:` makes a version id that holds an @ itself."""
    own = msgspec.structs.replace(OWN.models["own"], versions=(Version("x@main", "x"),), live="x@main")
    made = GpuBill(msgspec.structs.replace(OWN, models={"own": own}))
    made.starting("own@x@main", "own@x@main#0", 1000.0)
    made.ready("own@x@main", "own@x@main#0", 1000.0)
    tally = Tally(models={"own@x@main": ModelTally("own", "x@main", input_tokens=10**6)})
    assert list(made.prices(tally, 1100.0)) == ["own"]
    (line,) = made.closing_lines(tally, "r", 1, 1100.0)
    assert (line.model, line.model_version) == ("own", "x@main")


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 9_000), st.sampled_from(["told", "lost", "killed"]))))
def test_however_often_a_run_stops_and_is_killed_its_hours_are_billed_once(
    lives: list[tuple[int, int, str]],
) -> None:
    """Each command runs an engine so many seconds, is charged so much for calls, and stops; its lines are committed, or
    die with lane 0, or the driver dies before it has made them. The last one ends in peace."""
    hooks, policy = Hooks(lambda: 0.5, lambda _i, _a, _t: (), lambda body, _a, _w: body), Policy({"t": Task("t")})
    disk: dict[str, bytes] = {}
    clocks, billed, seq, now, seconds = GpuBill(OWN).dump(0.0), 0, 0, 0.0, 0
    for epoch, (ran, charged, end) in enumerate([*lives, (1, 0, "told")]):
        lane = Lane(LaneSettings(0, "r"), Router(OWN, policy), OWN, policy, hooks, Budgets((), "r"))
        lane.begin([Split("s", "o", 0, 0, "u", 0, None, "rows")], dict(disk), seq)
        made = GpuBill(OWN)
        made.load(clocks, now + 7.0)
        made.starting("own@v1", "own@v1#0", now)
        made.ready("own@v1", "own@v1#0", now + ran / 2)
        now, seconds = now + ran, seconds + ran
        lane.drain(now)
        lane.ends.tally.cost_nano += charged
        lane.ends.tally.models.setdefault("own@v1", ModelTally("own", "v1")).cost_nano += charged
        billed += charged
        batch = lane.commit(now)  # what the calls cost
        clocks = made.dump(now)
        if end != "killed":
            lines = made.closing_lines(batch.saved.tally, "r", epoch, now)
            clocks = made.dump(now)
            if end == "told":
                lane.committed(now)
                lane.add_costs(lines)
                assert lane.dirty or not lines
                batch = lane.commit(now)
                billed += sum(line.cost_nano for line, _ in batch.costs)
        disk, seq, now = disk | batch.chunks, lane.seq, now + 1000.0
    assert billed == seconds * 1_000_000


def test_each_version_has_closing_lines_of_its_own_and_one_rate_is_charged_for_all() -> None:
    """A rollout runs two engines; who ran is told with what it cost, and the one that never did is not named."""
    versions = (Version("v1", "x"), Version("v2", "y"), Version("v3", "z"))
    catalog = msgspec.structs.replace(
        OWN, models={"own": msgspec.structs.replace(OWN.models["own"], versions=versions)}
    )
    made = GpuBill(catalog)
    for version, ready in (("v1", 1000.0), ("v2", 1100.0)):
        made.starting(f"own@{version}", version, ready)
        made.ready(f"own@{version}", version, ready)
    tally = Tally(models={"own@v1": ModelTally("own", "v1", cost_nano=900, input_tokens=10**6)})
    assert made.prices(tally, 1200.0)["own"].input == (200 + 100) * 1_000_000
    again = GpuBill(catalog)
    again.load(made.dump(1200.0), 1200.0)
    lines = again.closing_lines(tally, "r", 1, 1200.0)
    assert [(line.entry_id, line.model, line.model_version, line.cost_nano) for line in lines] == [
        ("r:1:own@v1:idle", "own", "v1", 200_000_000 - 900),
        ("r:1:own@v2:idle", "own", "v2", 100_000_000),
    ]


@given(st.lists(st.tuples(st.sampled_from(["in a", "in b", "in c", "out a", "out b", "out c"]), st.integers(0, 100))))
def test_jobs_that_share_an_engine_pay_for_it_once_together(events: list[tuple[str, int]]) -> None:
    """Whoever comes and goes: at each second those that are there bear it in equal parts."""
    shares, jobs, now = Shares(), set[str](), 0.0
    paid: dict[str, float] = dict.fromkeys("abc", 0.0)
    since: dict[str, float] = {}
    with_somebody = 0.0

    def leave(job: str) -> None:
        paid[job] += now - since.pop(job) - shares.others_s(job)
        jobs.discard(job)

    for what, seconds in [*events, ("out a", 0), ("out b", 0), ("out c", 0)]:
        verb, job = what.split()
        shares.see(jobs, now)
        if verb == "in" and job not in jobs:
            jobs.add(job)
            since[job] = now
            shares.anew(job, now)
        elif verb == "out" and job in jobs:
            leave(job)
        shares.see(jobs, now)
        with_somebody += seconds if jobs else 0
        now += seconds
    assert abs(sum(paid.values()) - with_somebody) < 1e-6


def test_what_others_bear_of_a_replica_is_not_on_this_bill() -> None:
    """An hour costs 3.60 dollars; of the 900 s since it was ready another job bore 400 s, heard late and twice."""
    made = bill()
    made.shared("own@v1", "own@v1#0", 400.0)
    made.shared("own@v1", "own@v1#0", 400.0)
    policy = Policy({"t": Task("t")})
    hooks = Hooks(lambda: 0.5, lambda _i, _a, _t: (), lambda body, _a, _w: body)
    lane = Lane(LaneSettings(0, "r"), Router(OWN, policy), OWN, policy, hooks, Budgets((), "r"))
    lines = made.closing_lines(lane.tally, "r", 1, 1960.0)
    assert sum(line.cost_nano for line in lines) == (60 + 900 - 400) * 1_000_000


async def keeper(state: Path, epoch: int) -> BillKeeper:
    """That of the driver which holds the run under this epoch."""
    made = BillKeeper(OWN, str(state), "r")
    made.hold(epoch, 1.0)
    await made.open(resumed=epoch > 1, now=1000.0 * epoch)
    return made


async def billed(state: Path, epoch: int) -> int:
    """What whoever goes on now would bill."""
    lines = (await keeper(state, epoch)).owed(Tally(), epoch, 9e9)
    return sum(line.cost_nano for line in lines)


async def test_a_driver_that_was_replaced_writes_no_older_clocks_over_newer_ones(tmp_path: Path) -> None:
    """It slept, or its last write was given up and comes now. An hour costs 3.60 dollars: a second a thousandth."""
    old = await keeper(tmp_path, 1)
    old.changed("starting", "vllm:own@v1", "own@v1#0", 1000.0)
    assert await old.save(1100.0)
    new = await keeper(tmp_path, 2)
    new.changed("starting", "vllm:own@v1", "own@v1#0", 2000.0)
    new.changed("stopped", "vllm:own@v1", "own@v1#0", 2200.0)
    assert await new.save(2200.0)
    assert not await old.save(8000.0)
    assert await billed(tmp_path, 3) == (100 + 200) * 1_000_000


async def test_a_write_of_a_drivers_clocks_that_comes_after_its_successor_began_is_refused(tmp_path: Path) -> None:
    """Else the successor's clocks, read before, would lack what a later one then finds."""
    old = await keeper(tmp_path, 1)
    await keeper(tmp_path, 2)
    old.changed("starting", "vllm:own@v1", "own@v1#0", 1000.0)
    assert not await old.save(1100.0)
    assert await billed(tmp_path, 3) == 0


async def test_a_run_that_is_begun_anew_has_clocks_of_its_own(tmp_path: Path) -> None:
    """`--fresh`: its epochs begin again, and the hours of its earlier life were that one's."""
    old = await keeper(tmp_path, 5)
    old.changed("starting", "vllm:own@v1", "own@v1#0", 5000.0)
    assert await old.save(5100.0)
    fresh = BillKeeper(OWN, str(tmp_path), "r")
    fresh.hold(1, 2.0)
    await fresh.open(resumed=False, now=6000.0)
    assert not await old.save(6100.0)
    assert await fresh.save(6100.0)
    assert sum(line.cost_nano for line in fresh.owed(Tally(), 1, 6200.0)) == 0


async def test_clocks_that_an_earlier_version_kept_go_on(tmp_path: Path) -> None:
    """It did not say whose they were."""
    FolderState(tmp_path).put("runs/r/gpu", bill().dump(1100.0), None)
    assert await billed(tmp_path, 2) == 100 * 1_000_000


class Hands:
    """Stands where a worker's handle would: every call goes well."""

    def __getattr__(self, name: str) -> Hands:
        return self

    async def remote(self, *arguments: object) -> None:
        """Nothing to do."""


async def test_an_engine_that_was_let_go_is_not_on_this_bill_while_other_jobs_go_on_to_use_it() -> None:
    """Its version is not in use here any more. The process lives on for others; taken back, it counts from then on."""
    kept, now = BillKeeper(OWN, "", "r"), 1000.0

    def changed(what: str, worker: Worker, why: str) -> None:
        kept.changed(what, worker.pool, f"{worker.pool}#{worker.number}", now)

    async def heard(*_: object) -> None:
        """Nobody listens."""

    fleet = Fleet(OWN, "r", None, 1, heard, heard, changed, print)
    worker = fleet.workers["vllm:own@v1", 0] = Worker("vllm:own@v1", 0)
    worker.handle, worker.gauges = Hands(), {"others_s": 30.0}
    changed("starting", worker, "")
    changed("ready", worker, "")
    now = 1100.0
    kept.shared(fleet.borne())
    fleet.let_go(["vllm:own@v1"])
    now = 8000.0
    kept.shared(fleet.borne())
    fleet.want("vllm:own@v1")
    await asyncio.gather(*fleet._tasks)  # pyright: ignore[reportPrivateUsage]
    kept.shared(fleet.borne())
    now = 8010.0
    assert sum(line.cost_nano for line in kept.owed(Tally(), 1, now)) == (100 - 30 + 10) * 1_000_000
    await fleet.close()
