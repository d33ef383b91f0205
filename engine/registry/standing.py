"""What is known of one (task, model, version): how good, how sure, and what an accepted item costs. Read by the router.

**Old samples must not hide that a model has become worse.** Scores come in windows (`windows`); for each place where a
change may have begun, what came after it bets that the mean is below the quality asked for (an e-detector of Shiryaev
and Roberts' kind, as in `measure.drift`, over windows instead of items, so that all jobs' sums can feed it). Once the
bets together have won `ALARM` times their stake, only what came after the likeliest place counts. While nothing
changes and the model is as good as asked for, that happens once in `ALARM` windows on average, or more rarely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np

from penstock.engine.measure.betting import log_evidence
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.moments import Moments, asymptotic_interval
from penstock.engine.measure.sample import STEPS, UNIT, Sample, merge
from penstock.engine.quality import PASS_MARK, Interval

ALARM = 200
"""Windows (10,000 samples and more) between false alarms of a model that is exactly as good as asked for."""


class Standing(msgspec.Struct, frozen=True):
    """One (task, model, version), as far as it was measured."""

    task: str
    model: str
    version: str
    windows: tuple[Sample, ...] = ()
    """Scores, the oldest first."""
    items: int = 0
    results: int = 0
    input: int = 0
    output: int = 0
    """Tokens of all calls."""
    cost: Moments = Moments()
    """Of an item, in nano-dollars at present prices."""
    aside: float = 0.0
    """What judging and idle hours add to it, as a share of it."""
    log_ms: Moments = Moments()
    engine_s: float | None = None
    """Seconds of its engine's time that an item takes. None: not known, or an API's."""

    @property
    def sample(self) -> Sample:
        return merge(*self.windows)

    @property
    def weight(self) -> float:
        """What an accepted item costs, as a multiple of what one call costs: failures, answers that don't pass,
        judging and idle hours. 1 where nothing is known."""
        share = self.accepted
        return (1.0 + self.aside) / share if share else 1.0

    @property
    def accepted(self) -> float:
        """Share of items that were sent here and ended in an answer that passes."""
        passed = _passed(self.sample)
        return (self.results / self.items if self.items else 1.0) * (1.0 if passed is None else max(passed, 1e-6))


class Known(msgspec.Struct, frozen=True):
    """What lanes are told of what was measured. `drifted`: tasks whose cascade accepts nothing any more."""

    standings: tuple[Standing, ...] = ()
    drifted: tuple[str, ...] = ()


class Reading(msgspec.Struct, frozen=True):
    """A standing, read against a quality that is asked for. `now`: without the scores from before a change: what an
    accepted item costs follows from those that count too."""

    now: Standing
    n: int
    interval: Interval | None
    dropped: int = 0
    """Scores from before a change, which count no more."""


@lru_cache(maxsize=1024)
def read(standing: Standing, asked: float) -> Reading:
    """How good it is now, read against this quality."""
    first = changed_at(standing.windows, asked)
    now = msgspec.structs.replace(standing, windows=standing.windows[first:]) if first else standing
    kept = now.sample
    return Reading(now, kept.n, anytime_interval(kept), merge(*standing.windows[:first]).n)


def changed_at(windows: Sequence[Sample], asked: float) -> int:
    """The window from which on the quality is another than before: below `asked`. 0: nothing shows that."""
    return (_fallen_at(windows, asked) or 0) if len(windows) > 1 else 0


def fallen(windows: Sequence[Sample], asked: float) -> Sample | None:
    """Scores that show the quality to be below `asked`: all since the likeliest place of a change. None: nothing shows
    it."""
    first = _fallen_at(windows, asked)
    return None if first is None else merge(*windows[first:])


def _fallen_at(windows: Sequence[Sample], asked: float) -> int | None:
    bets, later = list[float](), Sample()
    for window in reversed(windows):
        later = merge(later, window)
        bets.append(log_evidence(later, asked, "down", UNIT))
    bets.reverse()
    if not bets or float(np.logaddexp.reduce(bets)) < math.log(ALARM):
        return None
    return max(range(len(bets)), key=bets.__getitem__)


def cost_per_accepted(standing: Standing, confidence: float = 0.95) -> Interval | None:
    """In nano-dollars. Approximate: of the mean cost for many items (`measure.moments`), of the share that passes at
    any time; each has half of the chance to be wrong. None: too little is known. `standing`: as it is now
    (`Reading`)."""
    each = 1.0 - (1.0 - confidence) / 2
    item, share = asymptotic_interval(standing.cost, each), anytime_interval(_passes(standing.sample), each)
    if item is None or share is None or not standing.items or not standing.results:
        return None
    ended, aside = standing.results / standing.items, 1.0 + standing.aside
    ends = (item.mean, share.mean), (item.low, share.high), (item.high, share.low)
    mean, low, high = (max(0.0, nano) * aside / (ended * max(passed, 1e-9)) for nano, passed in ends)
    return Interval(mean, low, high)


def _passes(sample: Sample) -> Sample:
    """As 0 and 1: does it pass?"""
    good = sum(n for step, n in sample.counts if step >= PASS_MARK * STEPS)
    counts = ((0, sample.n - good), (STEPS, good))
    return Sample(tuple((step, n) for step, n in counts if n))


def _passed(sample: Sample) -> float | None:
    return _passes(sample).mean
