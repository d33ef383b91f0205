"""One interface to everything that answers calls: an API account, an in-process vLLM, vLLM in processes of its own.

The shell around it (`workers.puller`) pulls calls from the lanes, renews their right to send, and delivers outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.engine.items import Call, Outcome, OutputSpec
from penstock.engine.plan import Epoch


class Right:
    """The right to send for one lane's owner; shared by all its tickets and renewed by the shell.

    Check `until > now` right before each send: so a stopped process that wakes up pays for nothing.
    """

    __slots__ = ("epoch", "lane", "run", "until")

    def __init__(self, run: str, lane: int, epoch: Epoch, until: float) -> None:
        self.run = run
        self.lane = lane
        self.epoch = epoch
        self.until = until
        """Unix seconds."""


class Ticket:
    """One call on a worker. `aborted`: nobody wants the answer any more; don't send, or cancel. `left`: an earlier
    command of its run made it; don't send, for the job of the present one may be another. `tariff`: what it costs, for
    the lane's next owner."""

    __slots__ = ("aborted", "call", "left", "output", "right", "tariff")

    def __init__(self, call: Call, right: Right, output: OutputSpec | None, tariff: bytes = b"") -> None:
        self.call = call
        self.right = right
        self.output = output
        self.tariff = tariff
        self.aborted = False
        self.left = False

    def lapsed(self, now: float) -> bool:
        """Whoever has not sent it yet must not any more."""
        return self.left or self.right.until <= now

    def late(self, now: float) -> bool:
        """Its deadline has passed."""
        return self.call.deadline is not None and self.call.deadline <= now


class Engine(Protocol):
    """`submit` never blocks and never raises for a bad call: every ticket gets exactly one outcome.

    An item's error is data (`Failure`). A dead engine raises `EngineDead` out of `outcomes`, after which the process
    must end; the shell reports what was in flight.
    """

    async def start(self) -> None: ...

    def room(self) -> int:
        """How many more tickets make sense now; 0: full."""
        ...

    def submit(self, tickets: Sequence[Ticket]) -> None: ...

    async def outcomes(self) -> list[tuple[Ticket, Outcome]]:
        """Wait for at least one outcome; return all that are there (a micro-batch, at most 256)."""
        ...

    def abort(self, tickets: Sequence[Ticket]) -> None:
        """Stop working on these; their outcome is `cancelled`."""
        ...

    def gauges(self) -> dict[str, float]:
        """Numbers for the operator and the price of a GPU hour: `running`, `waiting`, `output_tokens`, …; `progress`
        grows with every step of an engine of our own."""
        ...

    async def close(self) -> None: ...


class EngineDead(Exception):
    """The engine can't answer any more; only a new process can."""
