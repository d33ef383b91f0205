"""Which targets are good enough for an item that asks for a quality: measured where it can be, else as declared.

| state | what is known | may be chosen |
|---|---|---|
| clears | measured: the lower bound is at least what is asked for | yes |
| declared | the catalogue says it is good enough, and too little is measured to say otherwise | yes |
| unsure | measured, and neither shown to be good enough nor shown to be too poor | only where nothing else is left |
| unknown | neither measured nor declared | no; it may be explored |
| poor | measured: the upper bound is below; or declared so | no |

A declaration is believed until as many samples are in as a model of that quality needs to show it, at most `TRUST`.
Routes don't flap: the model that is chosen stays while its own bound holds and no other is cheaper by `MARGIN`; another
one enters only where its bound clears by `ENTER`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Literal

import msgspec

from penstock.engine.measure.intervals import bound
from penstock.engine.measure.sample import STEPS, Sample
from penstock.engine.registry.standing import Standing, read

State = Literal["clears", "declared", "unsure", "unknown", "poor"]
MAY: frozenset[State] = frozenset({"clears", "declared"})
EXPLORE = "explore"
"""The `experiment` of a candidate that is tried to learn how good it is; its arm is the model."""
MARGIN = 0.1
"""By how much of its cost another model must be cheaper before a route is left. A guess, above the noise of a mean cost
over some hundred items."""
ENTER = 0.005
"""Above the quality asked for, of the lower bound of a model that is not chosen now. A bound moves by less than that
within a few seconds of samples."""
TRUST = 500
"""Samples after which a declaration counts no more, however near to what is asked for it lies."""

Standings = Mapping[tuple[str, str, str], Standing]
"""(task, model, version) → standing."""


class Grade(msgspec.Struct, frozen=True):
    state: State
    words: str
    low: float = 0.0
    mean: float = 0.0


def grade(standing: Standing | None, declared: float | None, asked: float, *, chosen: bool) -> Grade:
    """`chosen`: items go there now."""
    found = read(standing, asked) if standing is not None else None
    if found is None or found.interval is None:
        if declared is None:
            return Grade("unknown", "quality unknown")
        return Grade("declared" if declared >= asked else "poor", f"quality {declared:.3g} declared", mean=declared)
    around = found.interval
    words = f"quality {around.mean:.3f} ({around.low:.3f}–{around.high:.3f}, n = {found.n:,}) measured"
    if found.dropped:
        words += f" since it changed, {found.dropped:,} earlier samples left out"
    state: State = "unsure"
    if around.low >= asked + (0.0 if chosen else ENTER):
        state = "clears"
    elif around.high < asked:
        state = "poor"
    elif declared is not None and declared >= asked and not found.dropped and found.n < _trusted(declared, asked):
        state, words = "declared", f"quality {declared:.3g} declared, so far {words.removeprefix('quality ')}"
    return Grade(state, words, around.low, around.mean)


@lru_cache(maxsize=256)
def _trusted(declared: float, asked: float) -> int:
    """About how many samples a model needs that is as good as declared until its lower bound clears."""
    n = 25
    while n < TRUST:
        good = round(declared * n)
        counts = tuple((step, k) for step, k in ((0, n - good), (STEPS, good)) if k)
        if bound(Sample(counts), 0.025, "up") >= asked:
            return n
        n = n * 5 // 4
    return TRUST


def explores(item_id: str, share: float) -> bool:
    """By the item's id alone: a rerun explores the same ones."""
    digest = blake2b(item_id.encode(), digest_size=8, person=b"pst-explore").digest()
    return int.from_bytes(digest) < share * 2**64


def which(item_id: str, among: int) -> int:
    """Which of so many is explored."""
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8, person=b"pst-explored").digest()) % among


class Option(msgspec.Struct, frozen=True):
    """A target that the wall permits. `nano`: what an accepted item of common size is expected to cost there."""

    grade: Grade
    nano: float


class Chosen(msgspec.Struct, frozen=True):
    """Indices of the options. `ranked`: none is good enough for sure, and the order is that of their lower bounds."""

    kept: tuple[int, ...]
    first: int
    ranked: bool = False
    explored: tuple[int, ...] = ()
    """Not known well enough, and cheaper than the first: worth money to learn."""


def choose(options: Sequence[Option], asked: float, now: int | None) -> Chosen | None:
    """`now`: the option that items go to at present. None: nobody is known to be good enough."""
    kept = [i for i, option in enumerate(options) if option.grade.state in MAY]
    ranked = not kept
    if ranked:
        unsure = [i for i, option in enumerate(options) if option.grade.state == "unsure"]
        kept = sorted(
            (i for i in unsure if options[i].grade.mean >= asked),
            key=lambda i: (-options[i].grade.low, options[i].nano),
        )
    if not kept:
        return None
    first = kept[0] if ranked else min(kept, key=lambda i: options[i].nano * (1.0 - MARGIN if i == now else 1.0))
    open_ones = [i for i, option in enumerate(options) if option.grade.state in ("unsure", "unknown")]
    worth = tuple(i for i in open_ones if i != first and options[i].nano < options[first].nano)
    return Chosen(tuple(kept), first, ranked, worth)
