"""Workers that froze: a call at one that is not heard any more must not hold its item for ever."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.engine.flow.slots import Slot


class Silence:
    def __init__(self) -> None:
        self._heard: dict[str, float] = {}
        """Worker → when it last took calls or renewed its right to send them."""
        self._looked_at = 0.0

    def heard(self, worker: str, now: float) -> None:
        self._heard[worker] = now

    def forget(self, worker: str) -> None:
        self._heard.pop(worker, None)

    def set_back(self, by_s: float) -> None:
        """The clock was: who froze must not look as if it had been heard just now, for so long."""
        self._heard = {worker: at - by_s for worker, at in self._heard.items()}

    def lost(self, flying: Sequence[Slot], now: float, slack_s: float) -> list[Slot]:
        """Those whose call should have timed out long ago, and of whose worker there is no word. To be asked every few
        seconds."""
        slept, self._looked_at = now - self._looked_at > slack_s, now
        if slept:  # we were stopped ourselves, the machine slept, or its clock was set: nobody could be heard
            self._heard |= {slot.worker: now for slot in flying}
        return [slot for slot in flying if now - self._word_of(slot) > slot.timeout_s + slack_s]

    def _word_of(self, slot: Slot) -> float:
        return max(slot.sent_at, self._heard.get(slot.worker, 0.0))
