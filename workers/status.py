"""What a run tells of itself: counters that lanes add up, and what the driver makes of them."""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.engine.flow.cells import Cell
from penstock.engine.flow.tally import ModelTally, Slow, Tally, TaskTally

__all__ = ["ModelTally", "RunState", "RunStatus", "Slow", "Tally", "TaskTally"]

RunState = Literal[
    "starting",
    "running",
    "draining",
    "assembling",
    "done",
    "stopped_by_budget",
    "too_many_dead_letters",
    "failed",
    "cancelled",
    "interrupted",
    "handed_over",
]


class RunStatus(msgspec.Struct, omit_defaults=True):
    run_id: str
    name: str
    state: RunState
    message: str = ""
    started_at: float = 0.0
    """When its driver was."""
    asked_at: float | None = None
    """When the command was, by its clock: before Ray was up."""
    updated_at: float = 0.0
    """When the command had it from the driver, by the command's clock; of one that was submitted: when it was."""
    submitted: bool = False
    """It was handed to a cluster, and no command has told anything of it since."""
    first_dispatch_at: float | None = None
    ended_at: float | None = None
    lanes: int = 0
    lanes_ended: int = 0
    endless: bool = False
    """It has no size and no end of its own: what counts is rate, lag and the age of its commits."""
    lag: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Topic → records that are there and not read yet."""
    commit_age_s: float = 0.0
    """How late the latest lane is: since when there was something to commit, or nothing was heard of it."""
    paused: list[int] = msgspec.field(default_factory=list[int])
    """Tiers whose items wait until a person resumes them."""
    waits_for_money: str | None = None
    """Why items of an endless run wait for the next day."""
    standstill: str | None = None
    """Why nothing moves, and will not by itself."""
    total_bytes: int = 0
    total_items: int | None = None
    """Known once the whole input was read."""
    cells: list[Cell] = msgspec.field(default_factory=list[Cell])
    """What was measured of each model; committed items only."""
    tally: Tally = msgspec.field(default_factory=Tally)
    budget_limit_nano: int | None = None
    budget_spent_nano: int = 0
    outputs: dict[str, list[str]] = msgspec.field(default_factory=dict[str, list[str]])
    resumed: bool = False
    notes: list[str] = msgspec.field(default_factory=list[str])
    """Things worth telling: a lane moved, an engine restarted, a budget nearly used. The latest ones."""
    noted: int = 0
    """How many there were, those that are gone from `notes` among them."""
    unexpected: bool = False
    """It failed by an error of ours, not by one of the machines around it."""
    drifted: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Task → why the calibration of its cascade does not hold any more."""
    epoch: int = 0
    """Of the command that tells this: what an older one says, after it was taken over, is not news."""
    generation: int | None = None
    """Of the items of its plan; None: not known yet."""

    @property
    def since(self) -> float:
        """From when on people wait for it."""
        return self.started_at if self.asked_at is None else self.asked_at
