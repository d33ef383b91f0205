"""What a command's exit code says (SURFACES §4), and the one line that goes with an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from penstock.engine.errors import Corrupt, Fenced, PenstockError, Refused, SpecError, Spent, Temporary

if TYPE_CHECKING:  # every command imports this module, and a status brings the statistics (numpy) with it
    from penstock.workers.status import RunStatus

DONE: Final = 0
UNEXPECTED: Final = 1
"""A failure of ours."""
USAGE: Final = 2
BUDGET: Final = 3
INFRASTRUCTURE: Final = 4
DEAD_LETTERS: Final = 5
BROKEN: Final = 6
"""The audit log does not hold."""
INTERRUPTED: Final = 130


def of_error(error: PenstockError) -> int:
    """A lost machine is 4, a wrong command or job file 2, an empty purse 3. Anything else of ours is 1."""
    match error:
        case Spent():
            return BUDGET
        case SpecError() | Refused():
            return USAGE
        case Temporary() | Fenced() | Corrupt():
            return INFRASTRUCTURE
        case _:
            return UNEXPECTED


def of_status(status: RunStatus, max_dead_letters: int | float | None) -> int:
    """`max_dead_letters` as the job says it: None: none allowed; a whole number: a count; a fraction: a share."""
    match status.state:
        case "handed_over":  # as it was asked to: the run goes on elsewhere, and nobody should start this command again
            return DONE
        case "done":
            return DONE if dead_letters_allowed(status, max_dead_letters) else DEAD_LETTERS
        case "too_many_dead_letters":
            return DEAD_LETTERS
        case "stopped_by_budget":
            return BUDGET
        case "failed":
            return UNEXPECTED if status.unexpected else INFRASTRUCTURE
        case "starting" | "running" | "draining" | "assembling" | "cancelled" | "interrupted":
            return INTERRUPTED


def dead_letters_allowed(status: RunStatus, max_dead_letters: int | float | None) -> bool:
    dead = sum(status.tally.dead_letters.values())
    match max_dead_letters:
        case None:
            return dead == 0
        case int():
            return dead <= max_dead_letters
        case _:
            return dead <= max_dead_letters * (dead + status.tally.results)


def explain(status: RunStatus, max_dead_letters: int | float | None) -> list[str]:
    """Why a run that reached its end still is no success; empty where it is one."""
    if status.state != "done" or dead_letters_allowed(status, max_dead_letters):
        return []
    dead = sum(status.tally.dead_letters.values())
    allowed = (
        "none is allowed unless the job sets max_dead_letters"
        if max_dead_letters is None
        else (f"max_dead_letters allows {max_dead_letters:g}")
    )
    return [f"exit code {DEAD_LETTERS}: {dead:,} dead letter{'' if dead == 1 else 's'}, {allowed}"]
