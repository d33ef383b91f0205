"""Did items come to the arms in the shares that were meant? If not, no comparison of the arms can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from penstock.engine.errors import SpecError

PRIOR_ITEMS = 100.0
"""Weight of the meant shares in the alternative, in items: the larger, the smaller the mismatch it is tuned for. 100 is
a guess; the error rate holds for any value."""


class Mismatch(msgspec.Struct, frozen=True):
    p_value: float
    """Valid whenever it is looked at. A run's smallest so far counts."""
    found: bool


def mismatch(counts: Sequence[int], shares: Sequence[float], alarm_rate: float = 0.001) -> Mismatch:
    """The sequential multinomial test with a Dirichlet mixture (Lindon & Malek, Anytime-valid inference for multinomial
    count data, NeurIPS 2022). `shares` may be any positive weights. Counts of many processes may be summed.

    Raises `SpecError` where counts and shares don't fit. The default alarm is rare: a mismatch is a fault, no finding.
    """
    if len(counts) != len(shares) or len(counts) < 2 or min(shares) <= 0 or min(counts) < 0:
        raise SpecError(f"counts {list(counts)} need as many positive shares, not {list(shares)}")
    whole, n = math.fsum(shares), sum(counts)
    log_e = math.lgamma(PRIOR_ITEMS) - math.lgamma(PRIOR_ITEMS + n)
    for count, share in zip(counts, (each / whole for each in shares), strict=True):
        prior = PRIOR_ITEMS * share
        log_e += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return Mismatch(math.exp(-max(0.0, log_e)), log_e >= math.log(1.0 / alarm_rate))


def sampled_mismatch(level: int, counts: Sequence[int], shares: Sequence[float], alarm_rate: float = 0.001) -> Mismatch:
    """The same of a sample that was thinned to a level (`measure.distinct`). Each level is a sequence of its own that
    is tested: its part of the alarm rate is half of the one before it, so all of them together keep to it."""
    part = 0.5 ** (level + 1)
    found = mismatch(counts, shares, alarm_rate * part)
    return Mismatch(min(1.0, found.p_value / part), found.found)
