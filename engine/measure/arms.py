"""Traffic shares for several candidates while they are being measured: more for those that may be best, a floor for
all, so that none is ever unmeasured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.engine.errors import SpecError
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.sample import Floats, Sample

DRAWS = 4_000
"""Posterior draws: a share is off by less than 0.01 mostly (½ / √4000)."""
_TOP = 0.5
"""How often the likely best is tried rather than its nearest rival; ½ is near the best in all cases (Russo 2020)."""


def standing(samples: Sequence[Sample], confidence: float = 0.95) -> tuple[bool, ...]:
    """Which may still be the best: their interval reaches the best lower bound (successive elimination: Even-Dar,
    Mannor & Mansour, JMLR 7, 2006). The truly best is among them, at all times, with this confidence."""
    each = 1.0 - (1.0 - confidence) / max(1, len(samples))
    intervals = [anytime_interval(sample, each) for sample in samples]
    best = max((found.low for found in intervals if found is not None), default=0.0)
    return tuple(found is None or found.high >= best for found in intervals)


def shares(samples: Sequence[Sample], floor: float, seed: int, confidence: float = 0.95) -> tuple[float, ...]:
    """Top-two Thompson sampling (Russo, Simple Bayesian algorithms for best-arm identification, Oper. Res. 68, 2020) on
    scores 0…1 with Jeffreys' prior; those not `standing` get the floor alone. The shares sum to 1.

    The same seed gives the same shares. Raises `SpecError` where the floors don't fit into 1. Adaptive shares keep
    `standing` and all intervals valid; they do bias the plain means of arms that did badly early.
    """
    k = len(samples)
    if k == 0 or not 0.0 <= floor * k <= 1.0:
        raise SpecError(f"{k} candidates can't each have a floor of {floor}")
    wanted = _top_two(samples, seed) * np.array(standing(samples, confidence), dtype=np.float64)
    total = float(wanted.sum())
    wanted = wanted / total if total > 0 else np.full(k, 1.0 / k)
    return tuple((floor + (1.0 - k * floor) * wanted).tolist())


def _top_two(samples: Sequence[Sample], seed: int) -> Floats:
    """How often each is drawn best, or second where another is best."""
    good = np.array([(sample.mean or 0.0) * sample.n for sample in samples])
    bad = np.array([sample.n for sample in samples]) - good
    draws = np.random.default_rng(seed).beta(0.5 + good, 0.5 + bad, size=(DRAWS, len(samples)))
    order = np.argsort(-draws, axis=1, kind="stable")
    first = np.bincount(order[:, 0], minlength=len(samples)) / DRAWS
    if len(samples) == 1:
        return first
    # Russo draws anew until another is best; the second place of the same draw stands in for it and costs one draw.
    second = np.bincount(order[:, 1], minlength=len(samples)) / DRAWS
    return _TOP * first + (1.0 - _TOP) * second
