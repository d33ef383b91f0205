"""Do two judges agree, beyond what chance would do? Fixed-size intervals: look once, when all labels are in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Literal

import msgspec
import numpy as np

from penstock.engine.errors import SpecError
from penstock.engine.measure.sample import Floats
from penstock.engine.quality import Interval, proportion_interval

Weights = Literal["none", "linear", "quadratic"]
"""How wrong a near miss is, for ordered labels. "none": any two different labels are equally wrong."""


class Agreement(msgspec.Struct, frozen=True):
    items: int
    rate: Interval
    """Share of items with the same label (Wilson's interval)."""
    kappa: Interval | None
    """Agreement beyond chance: 1 is perfect, 0 is chance. None: one label only, so chance alone agrees fully."""


def tally_labels(pairs: Iterable[tuple[str, str]], labels: Sequence[str]) -> list[list[int]]:
    """The table that `agreement` reads: rows are the first judge's labels. Raises `SpecError` for an unknown label."""
    at = {label: i for i, label in enumerate(labels)}
    table = [[0] * len(labels) for _ in labels]
    for first, second in pairs:
        if first not in at or second not in at:
            raise SpecError(f"the labels {first!r} and {second!r} are not both among {list(labels)}")
        table[at[first]][at[second]] += 1
    return table


def agreement(table: Sequence[Sequence[int]], weights: Weights = "none", confidence: float = 0.95) -> Agreement | None:
    """Cohen's kappa (1960; weighted 1968) with the large-sample error of Fleiss, Cohen & Everitt, Psychol. Bull. 72
    (1969). None: no items. Raises `SpecError` unless the table is square."""
    counts = np.array(table, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise SpecError(f"a table of agreement is square, not {counts.shape}")
    n = int(counts.sum())
    rate = proportion_interval(int(np.trace(counts)), n, confidence)
    return (
        None if rate is None else Agreement(n, rate, _kappa(counts / n, n, _weights(len(counts), weights), confidence))
    )


def _weights(labels: int, weights: Weights) -> Floats:
    """1 for equal labels, down to 0 for the farthest."""
    if weights == "none" or labels < 2:
        return np.eye(labels)
    apart = np.abs(np.subtract.outer(np.arange(labels), np.arange(labels))) / (labels - 1)
    return 1.0 - (apart if weights == "linear" else apart**2)


def _kappa(shares: Floats, n: int, weights: Floats, confidence: float) -> Interval | None:
    first, second = shares.sum(axis=1), shares.sum(axis=0)
    seen, chance = float((weights * shares).sum()), float(first @ weights @ second)
    if chance >= 1.0 - 1e-12:
        return None
    kappa = (seen - chance) / (1.0 - chance)
    usual = np.add.outer(weights @ second, first @ weights)
    spread = float((shares * (weights - usual * (1.0 - kappa)) ** 2).sum()) - (kappa - chance * (1.0 - kappa)) ** 2
    half = NormalDist().inv_cdf((1.0 + confidence) / 2) * math.sqrt(max(0.0, spread) / n) / (1.0 - chance)
    return Interval(kappa, max(-1.0, kappa - half), min(1.0, kappa + half))
