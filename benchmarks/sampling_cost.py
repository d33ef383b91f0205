"""What evaluating 2 % of the answers costs: CPU of the lane's process, and money of the judge's calls.

    python benchmarks/sampling_cost.py [--items 4000] [--rounds 60]

Beside it stands the same work without sampling, in turn (A B C A B C …), in one process and one run: the lane machine
with its records as JSON, from offer to commit. Of many short rounds the quickest of each way count: what else the
machine does only adds. Wanted: less than 2 % of the throughput, less than 5 % of the cost. Caveat: calls are answered
at once and nothing is sent or written; a judge's call costs a dispatcher as much as any call (so 2 % more of them), and
what it costs in money hangs on prices and lengths, which are made up here and printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

from penstock.connectors.writing.records import Encoder
from penstock.engine.budget import Budgets
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import CommitBatch, Hooks, LaneSettings
from penstock.engine.items import Answer, Attributes, Call, Item, Outcome, Position, Request, Usage
from penstock.engine.plan import Split
from penstock.engine.policy import Policy, Scorer, Task
from penstock.engine.router import Router
from penstock.workers.checking.answers import ask_again_body
from penstock.workers.checking.scoring import Scoring

BATCH = 256
SHARE = 0.02
EXACT = Scorer("exact")
JUDGE = Scorer("judge", model="judge", rubric="Does it answer the question?", choices=("bad", "good"))
WAYS: dict[str, tuple[float, tuple[Scorer, ...]]] = {
    "no sampling": (0.0, ()),
    "2 %, a scorer": (SHARE, (EXACT,)),
    "2 %, a scorer and a judge": (SHARE, (EXACT, JUDGE)),
}
ANSWERED, JUDGED = Usage(500, output=100), Usage(800, output=2)
"""Tokens of an item and of a judge's call: what it is shown is the item, its answer and the rubric. Guesses."""


def lane(share: float, scorers: tuple[Scorer, ...]) -> Lane:
    price = Price(input=10**9, output=4 * 10**9)
    models = {n: Model(n, (Version("v1", n),), "v1", account="a", price=price, context=128_000) for n in ("m", "judge")}
    catalog = Catalog({"a": Account("a", "openai", "http://localhost")}, models, {1: ("m",)})
    task = Task("t", tier=1, max_tokens=64, sample=share, scorers=scorers)
    policy = Policy({"t": task}, default_task="t")
    hooks = Hooks(lambda: 0.5, Scoring(None), ask_again_body)
    return Lane(LaneSettings(0, "r"), Router(catalog, policy), catalog, policy, hooks, Budgets((), "r"))


def measure(n: int, share: float, scorers: tuple[Scorer, ...]) -> tuple[float, float]:
    """(µs of CPU an item, what judges cost as a share of the rest)."""
    machine, encoder = lane(share, scorers), Encoder("r", "openai-batch")
    machine.begin([Split("s", "o", 0, 0, "u", 0, None)], {}, 0)
    request = Request(b'{"messages":[{"role":"user","content":"' + b"x" * 400 + b'"}]}', input_hash="h")
    right = Attributes(expected_json=b'"yes"')
    items = [Item(f"{i:032x}", Position("s", 0, i), right, request, b"o" * 400, 0.0) for i in range(n)]
    read = calls = told = 0
    now = 0.0
    started = time.process_time()
    machine.commit(0.0)
    machine.committed(0.0)
    while machine.tally.results < n:
        now = 1.0 + calls / 10_000
        for item in items[read : read + min(BATCH, machine.wants())]:
            machine.offer(item, now)
            read += 1
        taken = machine.take("api:a", BATCH, 1 << 40, "w", now)
        for call in taken:
            machine.outcome(_outcome(call, now), now)
        calls += len(taken)
        if calls - told >= 8 * BATCH or not taken:
            told = calls
            _write(encoder, machine.commit(now))
            machine.committed(now)
    _write(encoder, machine.commit(now))
    took = (time.process_time() - started) / n * 1e6
    judges = machine.tally.steps_nano.get("judge", 0)
    return took, judges / (machine.tally.cost_nano - judges)


def _outcome(call: Call, now: float) -> Outcome:
    said, usage = ("good", JUDGED) if call.role == "judge" else ("yes", ANSWERED)
    return Outcome(call.item_id, 0, call.attempt, now, 200.0, Answer(said, "stop", b"{}"), None, usage)


def _write(encoder: Encoder, batch: CommitBatch) -> None:
    for result in batch.results:
        encoder.result(result)
        for score in result.scores:
            encoder.quality(result, score)
    for line, _ in batch.costs:
        encoder.cost(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    print(f"Python {platform.python_version()} on {platform.machine()}, {args.items:,} items, {args.rounds} rounds")
    found = {name: list[tuple[float, float]]() for name in WAYS}
    for _ in range(args.rounds):
        for name, way in WAYS.items():
            found[name].append(measure(args.items, *way))
    plain = _quickest(found["no sampling"])
    for name, seen in found.items():
        took = _quickest(seen)
        print(
            f"{name:>26}: {took:.1f} µs an item, {took / plain - 1:+.1%}; "
            f"judges cost {seen[0][1]:.1%} of what the answers do"
        )
    item, judge = (each.input + 4 * each.output for each in (ANSWERED, JUDGED))
    print(
        f"An item has {ANSWERED.input} + {ANSWERED.output} tokens, a judge's call {JUDGED.input} + {JUDGED.output}, "
        f"both at $1 and $4 a million: a judge {0.05 / SHARE * item / judge:.1f} times as dear would cost 5 %."
    )


def _quickest(seen: list[tuple[float, float]]) -> float:
    """The mean of the best tenth."""
    took = sorted(took for took, _ in seen)
    return statistics.mean(took[: max(1, len(took) // 10)])


if __name__ == "__main__":
    main()
