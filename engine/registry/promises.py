"""Do answers that a cascade accepted keep what its calibration promised?

Of those that were scored, by all jobs, in the windows of the registry: the same watch as against a model that degrades
in silence (`standing`). While they are exactly as good as promised, it cries out once in `standing.ALARM` windows of a
model's version on average, or more rarely; answers without labels are not seen.
"""

from __future__ import annotations

import msgspec

from penstock.engine.policy import Promise
from penstock.engine.registry.document import Measured
from penstock.engine.registry.standing import fallen


class Short(msgspec.Struct, frozen=True):
    """Accepted answers of one `model@version` that fell short. `items`: those since the likeliest place of a change."""

    target: str
    items: int
    mean: float


def broken(shared: Measured, task: str, promise: Promise) -> Short | None:
    """The first that shows it; None: nothing does."""
    for one in shared.recent:
        if (one.task, one.accepted) == (task, promise.calibration):
            seen = fallen([window.scores.sample() for window in one.windows], promise.min_quality)
            if seen is not None and seen.mean is not None:
                return Short(f"{one.model}@{one.version}", seen.n, seen.mean)
    return None
