"""Which of many findings are real: corrections for having looked at several.

Evidence comes as logarithms of e-values (`betting.log_evidence`), which may be read at any time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from penstock.engine.measure.betting import log_evidence
from penstock.engine.measure.sample import DIFFERENCE, Sample, Support


def log_two_sided(sample: Sample, mean: float = 0.0, support: Support = DIFFERENCE) -> float:
    """Evidence that the true mean is another than `mean`: half the money on each side."""
    up, down = log_evidence(sample, mean, "up", support), log_evidence(sample, mean, "down", support)
    return float(np.logaddexp(up, down)) - math.log(2.0)


def p_value(log_e: float) -> float:
    """1/e, at most 1: valid at any time (Vovk & Wang, E-values, Ann. Statist. 49, 2021)."""
    return math.exp(-max(0.0, log_e))


def real_by_holm(p_values: Sequence[float], chance: float = 0.05) -> frozenset[int]:
    """Which findings are kept so that any of them is false with at most `chance` (Holm, Scand. J. Statist. 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    kept = 0
    while kept < len(order) and p_values[order[kept]] <= chance / (len(order) - kept):
        kept += 1
    return frozenset(order[:kept])
