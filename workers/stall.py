"""Notices an engine that has work and gets nowhere: a step of vLLM that never returns raises nothing."""

from __future__ import annotations

from collections.abc import Mapping

STALLED_S = 900.0
"""An engine of our own that has work and makes no step for so long hangs. The longest step known is a long prompt on a
slow CPU (minutes); loading and compiling are over before it has work. A guess."""


class Stall:
    def __init__(self) -> None:
        self._progress: float | None = None
        self._since = 0.0

    def see(self, gauges: Mapping[str, float], busy: bool, tick: float) -> bool:
        """True where the engine hangs. `gauges`: as it tells them now; one that tells no `progress` is none of ours.
        `busy`: it owes outcomes. `tick`: monotonic seconds."""
        progress = gauges.get("progress")
        if not busy or progress is None or progress != self._progress:
            self._progress, self._since = progress, tick
            return False
        return tick - self._since > STALLED_S
