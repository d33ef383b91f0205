"""Closing lines of own engines: the sum of the cost records is hours × price, however often it is asked."""

from __future__ import annotations

from penstock.engine.budget import Budgets
from penstock.engine.catalog import Catalog, Model, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.policy import Policy, Task
from penstock.engine.router import Router
from penstock.workers.gpu_bill import GpuBill

OWN = Catalog({}, {"own": Model("own", (Version("v1", "x"),), "v1", worker="vllm", hour_usd=3.6)}, {3: ("own",)})


def bill() -> GpuBill:
    made = GpuBill(OWN)
    made.starting("own", "own#0", 1000.0)
    made.ready("own", "own#0", 1060.0)
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
