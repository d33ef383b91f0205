"""What the lane machine is told and what it says: settings, hooks, commit batches, shelf entries."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from penstock.engine.flow.progress import Saved
from penstock.engine.items import Answer, Item, Outcome, Position, Role
from penstock.engine.policy import Task
from penstock.engine.results import CostLine, DeadLetter, Result, Score


class Hooks(msgspec.Struct, frozen=True):
    """What the lane asks of the world outside: chance, scorers and the wording of a second question."""

    chance: Callable[[], float]
    """Uniform in [0, 1): jitter."""
    score: Callable[[Item, Answer, Task], tuple[Score, ...]]
    ask_again: Callable[[bytes, str, str], bytes]
    """(request body, answer, what is wrong with it) → the next request body."""


class LaneSettings(msgspec.Struct, frozen=True):
    lane: int
    run: str
    window: int = 4096
    """Items read and not yet committed."""
    window_bytes: int = 64_000_000
    beyond_max: int = 65_536
    """Finished positions kept beyond watermarks before reading pauses: 128 kB of progress at 2 bytes each."""
    horizon_floor: int = 64
    """Items that may be dispatched before the first commit says more. A kill repeats at most what was under it."""
    shelf_after_s: float = 10.0
    shelf_max: int = 4096
    """As many as a window holds: one item in a hundred that takes a minute, at 2,000 items/s, is 1,200 at a time."""
    shelf_bytes: int = 16_000_000
    by_key: bool = False
    """Records of one key and split are sent one after another, in input order."""
    endless: bool = False
    """The run goes on tomorrow: what a day's or a month's budget can't hold today waits."""
    call_slack_s: float = 60.0
    """A call whose outcome has not come so long after its own timeout is counted as lost with its worker."""


class CommitBatch(msgspec.Struct, frozen=True):
    """One commit: what is written in one act. The shell encodes the records and adds the outbox."""

    seq: int
    chunks: dict[str, bytes]
    results: list[Result]
    dead_letters: list[DeadLetter]
    costs: list[tuple[CostLine, Item | None]]
    saved: Saved


class Adopted(msgspec.Struct, frozen=True):
    """A call of the last owner: its answer, or (None) it goes on at the worker that has it."""

    item_id: str
    generation: int
    attempt: int
    model: str
    worker: str
    """Empty: the one that tells of it."""
    outcome: Outcome | None = None
    role: Role = "primary"
    version: str = ""
    """Of the model, that was asked; empty: not told."""
    made_by: tuple[str, str] = ("", "")
    """Versions of policy and prompt that the call was made by; empty: not told."""
    tariff: bytes = b""
    """What it costs (`settle.Priced`); empty: not told."""
    source: Position | None = None
    """Of its item, where the lane itself had the answer. None: not told."""


class ShelfEntry(msgspec.Struct, frozen=True):
    """An item that waits long, with its bytes: it no longer holds up its split."""

    item: Item
    attempt: int
    maybe_paid: bool = True
    """False only where a drained lane left it so: the next owner doubts it again before it sends anything."""
    prompt: str = ""
    """Version of the prompt that its request was made with; empty: not told."""
