"""One item in a hundred takes a minute: no partition waits for it, and the lane's memory and progress stay small.

A lane on virtual time, with workers that answer when the clock says so. Everything is scaled together: rate, window and
the finished-beyond limit.
"""

from __future__ import annotations

import heapq
from collections import Counter

from penstock.engine.budget import Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Hooks, LaneSettings
from penstock.engine.flow.progress import saved_in
from penstock.engine.items import Answer, Attributes, Call, Item, Outcome, Position, Request, Usage
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Task
from penstock.engine.router import Router

STEP_S, COMMIT_S, FAST_S, SLOW_S = 0.02, 0.2, 0.1, 60.0
REQUEST = Request(b'{"messages":[]}', input_hash="0")
CATALOG = Catalog(
    {"a": Account("a", "openai", "http://localhost")},
    {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=Price(10**9, 10**9), context=8000)},
    {3: ("m",)},
)
POLICY = Policy({"t": Task("t", max_tokens=10)}, default_task="t")


class Simulated:
    """`rate` items a second come to `partitions` partitions of one lane."""

    def __init__(self, rate: int, partitions: int = 2) -> None:
        share = rate / 2000
        self.disk: dict[str, bytes] = {}
        settings = LaneSettings(0, "r", round(4096 * share), beyond_max=round(65_536 * share))
        hooks = Hooks(lambda: 0.5, lambda item, answer, task: (), lambda body, answer, message: body)
        self.lane = Lane(settings, Router(CATALOG, POLICY), CATALOG, POLICY, hooks, Budgets((), "r"))
        self.lane.begin([Split(f"s{p}", f"o{p}", p, 0, "u", 0, None, "rows") for p in range(partitions)], {}, 0)
        self.rate, self.partitions = rate, partitions
        self.now, self.count, self.owed = 0.0, 0, 0.0
        self.calls: list[tuple[float, int, Call]] = []
        self.read = Counter[int]()
        self.most = Counter[str]()
        self.ended = 0

    def run(self, seconds: float, *, slow: bool) -> None:
        until = self.now + seconds
        committed = self.now
        while self.now < until:
            self.now += STEP_S
            self.owed += self.rate * STEP_S
            self.offer()
            self.work(slow)
            if self.now - committed >= COMMIT_S:
                committed = self.now
                self.commit()

    def offer(self) -> None:
        for _ in range(min(self.lane.wants(), int(self.owed))):
            partition = self.count % self.partitions
            where = Position(f"s{partition}", partition, self.read[partition])
            item = Item(f"i{self.count}", where, Attributes(tier=3), REQUEST, b"x" * 200, self.now)
            self.lane.offer(item, self.now)
            self.read[partition] += 1
            self.count += 1
            self.owed -= 1

    def work(self, slow: bool) -> None:
        for n, call in enumerate(self.lane.take("api:a", 256, 1 << 30, "w", self.now)):
            takes = SLOW_S if slow and int(call.item_id[1:]) % 100 == 7 else FAST_S
            heapq.heappush(self.calls, (self.now + takes, self.count * 1000 + n, call))
        self.lane.heard("w", self.now)
        while self.calls and self.calls[0][0] <= self.now:
            call = heapq.heappop(self.calls)[-1]
            answer = Answer("a", "stop", b"{}")
            usage = Usage(10, output=1)
            self.lane.outcome(Outcome(call.item_id, 0, call.attempt, self.now, 1.0, answer, None, usage), self.now)

    def commit(self) -> None:
        batch = self.lane.commit(self.now)
        self.ended += len(batch.results)
        self.disk |= batch.chunks
        self.lane.committed(self.now)
        self.most["progress"] = max(self.most["progress"], len(batch.chunks["progress"]))
        self.most["shelf"] = max(self.most["shelf"], self.lane.shelf.count)
        self.most["beyond"] = max(self.most["beyond"], self.lane.progress.beyond)

    @property
    def lag(self) -> int:
        """Records that came and were not read."""
        return int(self.owed)


def test_one_in_a_hundred_that_takes_a_minute_holds_up_no_partition() -> None:
    """The lag stays small while they come, the progress record and the shelf stay bounded; then all goes to zero."""
    lane = Simulated(rate=200)
    lane.run(150.0, slow=True)
    assert lane.lag < lane.rate, "reading fell behind: a slow item held up its partition"
    assert lane.most["beyond"] < lane.lane.settings.beyond_max
    assert 0 < lane.most["shelf"] <= lane.rate // 100 * 60
    assert lane.most["progress"] < 100_000
    lane.run(75.0, slow=False)
    assert lane.lag < lane.rate * COMMIT_S
    assert lane.lane.shelf.count == 0
    assert lane.lane.progress.beyond < lane.rate
    assert lane.ended > lane.count - lane.rate


class OneForEver(Simulated):
    """The first item of the first partition never comes back."""

    def work(self, slow: bool) -> None:
        super().work(slow)
        self.calls = [entry for entry in self.calls if entry[-1].item_id != "i0"]
        heapq.heapify(self.calls)


def test_a_lane_of_which_only_the_shelf_is_left_is_not_done_for_its_next_owner() -> None:
    """All else has ended and its owner is killed: the next one says so with its first commit, before the shelf's items
    are back. Else the run would end without them."""
    lane = OneForEver(rate=200)
    lane.run(20.0, slow=False)
    lane.rate, lane.owed = 0, 0.0
    for partition in range(lane.partitions):
        lane.lane.split_ended(partition)
    lane.run(5.0, slow=False)
    assert [slot.shelved for slot in lane.lane.slots.values()] == [True]
    assert lane.lane.progress.all_closed
    chunks = {name: value for name, value in lane.disk.items() if value}
    seq, lane = lane.lane.seq, OneForEver(rate=200)
    lane.lane.begin([Split(f"s{p}", f"o{p}", p, 0, "u", 0, None, "rows") for p in range(lane.partitions)], chunks, seq)
    lane.commit()
    assert not saved_in(lane.disk).done
    assert not lane.lane.finished_all
    lane.lane.restore_shelf(lane.now)
    Simulated.work(lane, slow=False)
    lane.now += 1.0
    Simulated.work(lane, slow=False)
    lane.commit()
    assert lane.ended == 1
    assert saved_in(lane.disk).done


if __name__ == "__main__":
    full = Simulated(rate=2000)
    for what, slow in ((180.0, True), (75.0, False)):
        full.run(what, slow=slow)
        print(f"after {what} s more: {full.count} read, lag {full.lag}; at most: {dict(full.most)}")
