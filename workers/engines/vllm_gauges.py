"""What an engine counts of itself: for operators, for hang detection, and for the price of its hours."""

from __future__ import annotations

import time

from penstock.engine.items import Usage


class Counters:
    """Single numbers, each written by one thread and read by any: torn reads can't be."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.finished = 0
        self.progress = 0
        """Steps, tokens made and requests ended; while something runs and this stands still, the engine hangs."""
        self.busy_s = 0.0
        """Seconds with work in the engine."""
        self.load_s = 0.0
        self._up_since: float | None = None

    def loaded(self, began: float) -> None:
        """`began`: when loading began, by `time.perf_counter`."""
        self._up_since = time.perf_counter()
        self.load_s = self._up_since - began

    def add(self, usage: Usage | None) -> None:
        self.finished += 1
        self.progress += 1
        if usage is not None:
            self.prompt_tokens += usage.input
            self.cached_tokens += usage.cached
            self.output_tokens += usage.output

    def gauges(self, *, running: int, waiting: int, kv_cache_usage: float, seats: int) -> dict[str, float]:
        return {
            "running": running,
            "waiting": waiting,
            "kv_cache_usage": kv_cache_usage,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "finished": self.finished,
            "progress": self.progress,
            "busy_s": self.busy_s,
            "load_s": self.load_s,
            "up_s": 0.0 if self._up_since is None else time.perf_counter() - self._up_since,
            "seats": seats,
        }
