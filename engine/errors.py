"""Every error of Penstock. The type says what to do next.

    PenstockError
    ├── Permanent            doing the same again cannot help
    │   ├── SpecError        the job file or a command is wrong: mend it (exit code 2)
    │   │   └── NoInput      nothing is there where the job looks for its input
    │   ├── BadRecord        one input record is unusable: it becomes a dead letter
    │   ├── Refused          a wall, a policy or a lock said no
    │   │   ├── Held         another process holds the run: who, and how to take it over
    │   │   └── Taken        an output is another run's, or this one's by another name: say which is meant
    │   ├── Spent            a budget cannot hold it (exit code 3)
    │   └── Corrupt          stored progress or state cannot be read: refuse to go on
    ├── Temporary            the same again later may work; `retry_after_s` says when
    │   └── Away             a server can't be reached or can't serve now: wait until it is back
    └── Fenced               a newer epoch owns the lane or run: stop, write nothing, send nothing

A bad item is data (a dead letter); a broken machine is an exception. Foreign exceptions stop at the room's door
and are chained (`raise … from error`).
"""

from __future__ import annotations


class PenstockError(Exception):
    """What happened, to what, and what to do next, in one message."""


class Permanent(PenstockError):
    """Doing the same again cannot help."""


class SpecError(Permanent):
    """The job file, catalogue or command is wrong. `line` counts from 1 where it is known."""

    def __init__(self, message: str, *, path: str | None = None, line: int | None = None) -> None:
        self.path = path
        self.line = line
        where = f"{path or 'job'}:{line}: " if line is not None else (f"{path}: " if path else "")
        super().__init__(where + message)


class NoInput(SpecError):
    """Nothing is there where the job looks for its input. A run that has begun may have ended with all that was."""


class BadRecord(Permanent):
    """One input record is unusable. `reason` is one of `items.DeadLetterReason`."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class Refused(Permanent):
    """A wall, a policy or a lock said no."""


class Held(Refused):
    """Another process holds the run; the message says who, since when, and how to take it over."""


class Taken(Refused):
    """An output holds what another run put there, or this run under another name. Waiting changes nothing of it."""


class Spent(Permanent):
    """A hard budget cannot hold what was asked for."""


class Corrupt(Permanent):
    """Stored progress, plan or state cannot be read, or contradicts itself. Never guessed around."""


class Temporary(PenstockError):
    """The same again later may work."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Away(Temporary):
    """A server can't be reached, or can't serve now. Nothing of ours is at fault: it comes back, or a person brings it
    back, and the same works then."""


class Fenced(PenstockError):
    """A newer epoch owns the lane or the run. Stop: write nothing and send nothing more."""
