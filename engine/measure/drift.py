"""Did something that held when it was measured stop holding? A watch that starts anew all the time.

The evidence of `betting.py`, summed over all places where the change may have begun: an e-detector (Shin, Ramdas &
Rinaldo, E-detectors: a nonparametric framework for sequential change detection, NEJSDS 2023), of Shiryaev and Roberts'
kind. While nothing changes, it alarms once in `items_between_alarms` items on average, or more rarely.

Values count in the order they come, so one process keeps the watch; it can't be merged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np

from penstock.engine.measure.betting import Side, log_factors, log_mixed
from penstock.engine.measure.sample import UNIT, Support


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """Alarms once the mean is `worse` than `line`: the quality of accepted answers below the one promised, or the
    accepted share below or above what calibration saw (leave room there for its own error)."""

    line: float
    worse: Literal["lower", "higher"] = "lower"
    items_between_alarms: int = 10_000
    support: Support = UNIT
    items: int = 0
    log_sums: tuple[float, ...] = ()
    """Of each bet. Empty before the first value."""

    @property
    def alarm(self) -> bool:
        return bool(self.log_sums) and self.log_evidence >= math.log(self.items_between_alarms)

    @property
    def log_evidence(self) -> float:
        return float(log_mixed(np.array(self.log_sums), self.support)) if self.log_sums else -math.inf


def watch(on: Watch, values: Iterable[float]) -> Watch:
    """The watch after more values. Look at `alarm` after as many as you like; it may fall again, so obey the first."""
    side: Side = "down" if on.worse == "lower" else "up"
    seen = np.array(list(values), dtype=np.float64)
    if not seen.size:
        return on
    factors = log_factors(seen, on.line, side, on.support)
    sums = np.array(on.log_sums) if on.log_sums else np.full(factors.shape[-1], -np.inf)
    for factor in factors:
        sums = np.logaddexp(sums, 0.0) + factor
    return msgspec.structs.replace(on, items=on.items + len(seen), log_sums=tuple(sums.tolist()))
