"""Shadows and judges where a lane is killed: pairs are whole, each call is billed under its role, nothing is lost."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from tests.crash.bench import Shape, bench
from tests.crash.test_kills import UNCOMMITTED_S

pytestmark = pytest.mark.ray

PRICE = "price: {input_per_million: 1, output_per_million: 2, version: pretend}"
OTHERS = f"""\
  - {{name: other, account: a, model: another, {PRICE}}}
  - {{name: judge, account: a, model: judge, {PRICE}}}
"""
MORE = """\
params: {temperature: 1}
sample: 0.3
shadow: {models: [other], share: 0.2}
scorers:
  - {type: judge, model: judge, rubric: "Is it friendly?", scale: [1, 5]}
  - {type: judge, model: judge, rubric: "Which one is friendlier?", pairwise: true}
"""
SHADOW_USD = 0.001
"""Enough for a part of the shadows only: a call costs some 30 millionths, and sets aside some hundred."""


class Sample(msgspec.Struct, frozen=True):
    item_id: str
    scorer: str
    score: float
    judge_model: str
    role: str
    model: str


class Cost(msgspec.Struct, frozen=True):
    role: str
    model: str
    usd: float
    item_id: str | None = None


@pytest.mark.long
def test_pairs_survive_the_kill_of_a_lane_and_every_call_is_billed_under_its_role(tmp_path: Path, mark: str) -> None:
    """One lane actor is killed in the middle; shadows have a budget that lasts for some of them only."""
    budgets = f"budgets: [{{usd: 5}}, {{usd: {SHADOW_USD}, for: shadow}}]\n"
    with bench(tmp_path, Shape(items=800, lanes=2, others=OTHERS, scored="", more=MORE + budgets)) as b:
        command = b.start()
        b.wait_served(400, command)
        assert b.kill("lane", command, random.Random(1))
        assert b.end(command) == 0, b.log(command)
        b.check(bound=round(b.shape.concurrency + b.fastest_rate() * UNCOMMITTED_S))
        paths = b.outputs()
        samples = [msgspec.json.decode(line, type=Sample) for line in paths["quality"][0].read_bytes().splitlines()]
        costs = [msgspec.json.decode(line, type=Cost) for line in paths["costs"][0].read_bytes().splitlines()]
    calls = Counter((line.role, line.model) for line in costs if line.role in ("judge", "shadow"))
    assert calls.keys() == {("shadow", "other"), ("judge", "judge")}
    assert sum(line.usd for line in costs if line.role == "shadow") <= SHADOW_USD
    scores = {(s.item_id, s.scorer, s.role): s.score for s in samples}
    assert len(scores) == len(samples)
    shadowed = {s.item_id for s in samples if s.role == "shadow"}
    assert 0 < len(shadowed) <= calls["shadow", "other"]
    assert {s.model for s in samples if s.role == "shadow"} == {"other"}
    assert {s.model for s in samples if s.role == "primary"} == {"m"}
    for item in shadowed:
        assert (item, "judge", "primary") in scores, "a pair without its first half"
        assert scores[item, "judge pairwise", "primary"] + scores[item, "judge pairwise", "shadow"] == 1.0
    assert 150 < len({s.item_id for s in samples}) < 330, "three in ten are sampled"
