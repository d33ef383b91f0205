"""Progress while a run goes: what is done, what it costs, when it ends. Live on a terminal, plain lines in a pipe.

`Meter` makes numbers of the run's status (pure: `now` is an argument); a display shows them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TextIO

import msgspec

from penstock.jobs.wording import counted, dollars, duration, escaped, share, tallied
from penstock.workers.status import RunState, RunStatus

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WINDOW_S = 15.0
"""Rates are means over so many seconds: long enough to smooth commits every 200 ms, short enough to see a change."""
PLAIN_EVERY_S = 5.0
BAR_WIDTH = 24
LATE_S = 5.0
"""Commits that are later than this are worth a word."""
QUIET_S = 60.0
"""Calls are out, and for so long none has come back: worth a word. A long answer of a slow model takes as long."""
NOTES_SHOWN = 3


class View(msgspec.Struct, frozen=True):
    """One moment of a run. Money in nano-dollars; None: not known yet."""

    status: RunStatus
    elapsed_s: float
    done: int
    total: int | None
    total_is_exact: bool
    items_per_s: float
    tokens_per_s: float
    forecast_nano: int | None
    eta_s: float | None
    quiet_s: float = 0.0
    """Since a call came back, while some are out."""

    @property
    def dead(self) -> int:
        return sum(self.status.tally.dead_letters.values())

    @property
    def in_flight(self) -> int:
        return sum(self.status.tally.in_flight.values())


class Meter:
    """Turns the statuses it sees into views. Call with `now` in Unix seconds, never going back."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()
        self._sent = False
        """At the last look this command had sent something, so its lanes have told how far they were."""
        self._back = (-1, 0.0)
        """Calls that came back, and since when there have been no more."""

    def see(self, status: RunStatus, now: float) -> View:
        done, tokens = done_items(status), _tokens(status)
        if status.resumed and not self._sent:
            self._seen.clear()  # what a resumed run finds done was not done by this command: no rate
        self._sent = status.first_dispatch_at is not None
        self._seen.append((now, done, tokens))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()
        then, done_then, tokens_then = self._seen[0]
        took = now - then
        items_per_s = (done - done_then) / took if took > 0 else 0.0
        total = expected_items(status)
        back = sum(model.calls for model in status.tally.models.values())
        if back != self._back[0] or not any(status.tally.in_flight.values()):
            self._back = back, now
        return View(
            status=status,
            elapsed_s=max(0.0, (status.ended_at or now) - status.since),
            done=done,
            total=total,
            total_is_exact=status.total_items is not None or status.state == "done",
            items_per_s=items_per_s,
            tokens_per_s=(tokens - tokens_then) / took if took > 0 else 0.0,
            forecast_nano=status.tally.cost_nano * total // done if total and done else None,
            eta_s=(total - done) / items_per_s if total and items_per_s > 0 else None,
            quiet_s=now - self._back[1],
        )


def done_items(status: RunStatus) -> int:
    return status.tally.results + sum(status.tally.dead_letters.values())


def expected_items(status: RunStatus) -> int | None:
    """The number of items where it is known, else what the finished share of the bytes says, and no fewer than were
    read; None: too early."""
    done = done_items(status)
    if status.state == "done":
        return done
    if status.total_items is not None:
        return max(status.total_items, done)
    if not status.tally.position_bytes or not status.total_bytes or not done:
        return None
    return max(done, status.tally.read, round(done * status.total_bytes / status.tally.position_bytes))


def _tokens(status: RunStatus) -> int:
    return sum(model.input_tokens + model.output_tokens for model in status.tally.models.values())


def plain_line(view: View) -> str:
    """One line for a log: everything that matters, separated by two spaces."""
    tally = view.status.tally
    parts = [f"{duration(view.elapsed_s):>11}", view.status.state, _items(view)]
    if view.items_per_s > 0:
        parts.append(f"{view.items_per_s:,.0f} items/s")
    if view.tokens_per_s > 0:
        parts.append(f"{view.tokens_per_s:,.0f} tokens/s")
    parts.append(_money(view))
    if view.in_flight:
        parts.append(f"{view.in_flight:,} in flight ({_by_tier(tally.in_flight)})")
    if tally.dead_letters:
        parts.append(counted(view.dead, "dead letter"))
    parts += _held(view)
    if view.eta_s is not None and view.status.state == "running":
        parts.append(f"ETA {duration(view.eta_s)}")
    return "  ".join(parts)


def _by_tier(flying: Mapping[int, int]) -> str:
    return ", ".join(f"tier {tier}: {flying[tier]:,}" for tier in sorted(flying) if flying[tier])


def _held(view: View) -> list[str]:
    """What stands for a share and an end where there are none; and who is held back."""
    status = view.status
    parts: list[str] = []
    if view.quiet_s >= QUIET_S:
        parts.append(f"no call has come back for {duration(view.quiet_s)}")
    if status.lag:
        unended = max(0, status.tally.read - view.done)  # of what was read: a window holds thousands
        parts.append(f"{sum(status.lag.values()) + unended:,} behind")
    if status.endless and status.commit_age_s >= LATE_S:
        parts.append(f"commits are {duration(status.commit_age_s)} late")
    if status.paused:
        parts.append("paused: " + ", ".join(f"tier {tier}" for tier in status.paused))
    if status.standstill is not None:
        parts.append(f"stands still: {status.standstill}")
    if status.waits_for_money is not None:
        parts.append(f"waits for tomorrow: {status.waits_for_money}")
    return parts


def _items(view: View) -> str:
    if view.total is None:
        return f"{view.done:,} items"
    about = "" if view.total_is_exact else "~"
    return f"{view.done:,} of {about}{view.total:,} items ({share(view.done, view.total)})"


def _money(view: View) -> str:
    text = dollars(view.status.tally.cost_nano)
    if view.forecast_nano is not None and view.done != view.total:
        text += f" of about {dollars(view.forecast_nano)}"
    if view.status.budget_limit_nano is not None:
        text += f" (budget {dollars(view.status.budget_limit_nano)})"
    return text


def live_lines(view: View, hint: str = "") -> list[str]:
    """The live display as rich markup, a line each; fits 80 columns."""
    status = view.status
    lines = [
        f"[bold]{escaped(status.name)}[/]  {_state(status)}  {duration(view.elapsed_s)}",
        f"{_bar(view)} {_items(view)}" + _eta(view),
        f"[green]{_money(view)}[/]  {view.tokens_per_s:,.0f} tokens/s  {view.items_per_s:,.0f} items/s",
    ]
    tiers = sorted(status.tally.tiers.keys() | status.tally.in_flight.keys())
    for tier in tiers:
        flying, done = status.tally.in_flight.get(tier, 0), status.tally.tiers.get(tier, 0)
        lines.append(f"  tier {tier}  {done:>11,} done  {flying:>7,} in flight")
    if status.tally.dead_letters:
        dead = counted(view.dead, "dead letter")
        lines.append(f"[yellow]  {dead}[/] ({tallied(status.tally.dead_letters)})")
    if held := _held(view):
        lines.append("  " + escaped("  ".join(held)))
    if status.tally.shelved:
        lines.append(f"  {status.tally.shelved:,} waiting on the shelf")
    lines += [f"[dim]  {escaped(note)}[/]" for note in status.notes[-NOTES_SHOWN:]]
    return [*lines, f"[dim]{hint}[/]"] if hint else lines


def _bar(view: View) -> str:
    if view.total is None:
        return "[dim]" + "─" * BAR_WIDTH + "[/]"
    full = round(BAR_WIDTH * view.done / view.total) if view.total else BAR_WIDTH
    return f"[cyan]{'━' * full}[/][dim]{'─' * (BAR_WIDTH - full)}[/]"


def _eta(view: View) -> str:
    return f"  ETA {duration(view.eta_s)}" if view.eta_s is not None and view.status.state == "running" else ""


def _state(status: RunStatus) -> str:
    colour = _COLOURS.get(status.state, "cyan")
    return f"[{colour}]{escaped(state_told(status))}[/]"


def state_told(status: RunStatus) -> str:
    """`failed: the disk is full`; a message that begins with the state stands alone."""
    state = status.state.replace("_", " ")
    if not status.message:
        return state
    return status.message if status.message.startswith(state) else f"{state}: {status.message}"


_COLOURS: dict[RunState, str] = {
    "done": "green",
    "failed": "red",
    "too_many_dead_letters": "red",
    "stopped_by_budget": "yellow",
    "draining": "yellow",
    "interrupted": "yellow",
    "handed_over": "green",
    "cancelled": "yellow",
}


class Display(Protocol):
    """Where progress is shown. `say` is for a sentence that must be seen; `close` may be called twice."""

    def show(self, view: View) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


class Silent:
    def show(self, view: View) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class PlainDisplay:
    """A line every five seconds, and one whenever the state changes or there is a new note."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state: RunState | None = None
        self._told_at = 0.0
        self._noted = 0

    def show(self, view: View) -> None:
        notes, noted = view.status.notes, view.status.noted
        for note in notes[max(0, len(notes) - (noted - self._noted)) :]:
            self.say(f"note: {note}")
        self._noted = noted
        if view.status.state != self._state or view.elapsed_s - self._told_at >= PLAIN_EVERY_S:
            self._state, self._told_at = view.status.state, view.elapsed_s
            self.say(plain_line(view))

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        pass


class LiveDisplay:
    """Redraws a few lines in place; leaves nothing behind but what was said."""

    def __init__(self, console: Console, hint: str = "") -> None:
        from rich.live import Live

        self._console = console
        self._hint = hint
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def show(self, view: View) -> None:
        self._live.start()  # hides the cursor, so not before there is something to show; again: nothing
        self._live.update(shown(live_lines(view, self._hint)), refresh=True)

    def say(self, text: str) -> None:
        self._hint = ""
        self._console.print(text, markup=False)

    def close(self) -> None:
        self._live.stop()


def shown(lines: list[str]) -> RenderableType:
    """Lines of markup; one that is too long goes on as far in as it began."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    made: list[RenderableType] = []
    for line in lines:
        text = Text.from_markup(line, overflow="ellipsis")
        margin = len(text.plain) - len(text.plain.lstrip())
        made.append(Padding(text[margin:], (0, 0, 0, margin), expand=False))
    return Group(*made)


def display_for(stream: TextIO, hint: str = "") -> Display:
    """Live where a person looks at a terminal, plain lines elsewhere; nothing any more once nobody reads them."""
    from penstock.jobs.outlet import lasting_console

    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return LiveDisplay(lasting_console(stream, whatever=True), hint)
    return PlainDisplay(lasting_console(stream, plain=True, whatever=True))
