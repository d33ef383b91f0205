"""Structured logs of a run's processes: a JSON object a line, in the state folder, or beside it (`here`).

No prompt, answer or key, ever: fields are names, numbers and reasons of ours. Messages of dead letters are left out,
for providers and parsers quote what they were given; `penstock dead-letters` and `penstock explain` show them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from penstock.engine.errors import SpecError
from penstock.engine.flow.lane_types import CommitBatch
from penstock.engine.flow.tally import Tally
from penstock.engine.plan import Epoch
from penstock.engine.results import DeadLetter, last_asked
from penstock.workers.here import logs_here
from penstock.workers.lanes.report import LaneReport

DEAD_A_MINUTE = 100
"""Dead letters of one lane that get a line of their own; the rest of the minute is counted."""
SUM_EVERY_S = 60.0
MOST_BYTES = 32 * 1024 * 1024
"""Of one file; the one before it is kept too. A day of a lane that logs as many dead letters as it may. A guess."""
MOST_FOREIGN = 500
"""Characters of a library's message."""

Field = str | int | float | None


class Log:
    """Appends to `<state>/logs/<run_id>/<process>.jsonl`, on this machine (`here.folder_here`).

    Opened at its first line. Where that fails, or the disk is full, nothing is said: no run ends for its log. A file
    that is full becomes `<process>.old.jsonl`, in the place of an earlier one.
    """

    def __init__(self, state: str, run_id: str, process: str) -> None:
        self._process = process
        self._path: Path | None = None
        with contextlib.suppress(SpecError):
            self._path = logs_here(state, run_id) / f"{process}.jsonl"
        self._handle: int | None = None

    def __call__(self, level: str, event: str, **fields: Field) -> None:
        """`fields`: names, numbers and reasons only."""
        if self._path is None:
            return
        line = {"at": time.time(), "level": level, "event": event, "process": self._process, **fields}
        with contextlib.suppress(OSError):
            if self._handle is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(self._handle, msgspec.json.encode(line) + b"\n")
            if os.fstat(self._handle).st_size > MOST_BYTES:
                self.close()
                self._path.replace(self._path.with_suffix(".old.jsonl"))

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


class _Foreign(logging.Handler):
    """Warnings of the libraries that speak to Kafka, and of our own rooms below, as lines of the process's log."""

    def __init__(self, log: Log, now: Callable[[], float]) -> None:
        super().__init__(logging.WARNING)
        self._write = log
        self._now = now
        self._said: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """A client that can't connect says so 50 times a second: the same words get one line a minute."""
        now = self._now()
        self._said = {words: at for words, at in self._said.items() if now - at < SUM_EVERY_S}
        if str(record.msg) in self._said:
            return
        self._said[str(record.msg)] = now
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self._write(level, record.getMessage()[:MOST_FOREIGN], logger=record.name)


def collect(log: Log, now: Callable[[], float] = time.time) -> None:
    """From here on, what this process's libraries warn of goes to `log` too. Called once a process."""
    handler = _Foreign(log, now)
    for name in ("aiokafka", "penstock"):
        logging.getLogger(name).addHandler(handler)


class LaneLog:
    """What one lane tells: who took it, its dead letters, and once a minute what went wrong how often."""

    def __init__(self, log: Log, lane: int, now: Callable[[], float] = time.time) -> None:
        self._log = log
        self._lane = lane
        self._now = now
        self._summed_at = now()
        self._listed = self._unlisted = 0
        self._sent = False
        self._seen: dict[str, int] = {}
        self._tally = Tally()

    def taken(self, epoch: Epoch, tally: Tally) -> None:
        """`tally`: as the last owner left it."""
        again = "lane reopened" if epoch[1] > 1 else "lane taken"
        self._tally, self._seen = tally, _counts(tally)
        self._say("info", again, epoch=f"{epoch[0]}.{epoch[1]}", results=tally.results)

    def failed(self, fenced: bool, corrupt: bool) -> None:
        """The driver's log says why."""
        self._say("warning", "lane fenced" if fenced else "lane failed", corrupt=corrupt)

    def closed(self) -> None:
        self._sum_up(self._now())
        self._say("info", "lane closed", results=self._tally.results)
        self._log.close()

    def committed(self, batch: CommitBatch) -> None:
        if batch.dead_letters:
            self._turn(self._now())
            for dead in batch.dead_letters:
                self._dead(dead)

    def see(self, report: LaneReport) -> None:
        self._tally = report.tally
        if not self._sent and report.first_dispatch_at is not None:
            self._sent = True
            self._say("info", "first call handed out")
        self._turn(self._now())

    def _dead(self, dead: DeadLetter) -> None:
        if self._listed >= DEAD_A_MINUTE:
            self._unlisted += 1
            return
        self._listed += 1
        last = last_asked(dead.attempts)
        more: dict[str, Field] = {} if last is None else {"model": last.model, "last": last.outcome}
        self._say(
            "warning", "dead letter", item_id=dead.item_id, reason=dead.reason, attempts=len(dead.attempts), **more
        )

    def _turn(self, now: float) -> None:
        if now - self._summed_at >= SUM_EVERY_S:
            self._sum_up(now)

    def _sum_up(self, now: float) -> None:
        """One line for each thing that grew."""
        self._summed_at = now
        counts = _counts(self._tally)
        for what, n in counts.items():
            if n > self._seen.get(what, 0):
                event, _, which = what.partition(": ")
                self._say("info", event, reason=which, count=n - self._seen.get(what, 0))
        if self._unlisted:
            self._say("warning", "dead letters without a line of their own", count=self._unlisted)
        self._seen, self._listed, self._unlisted = counts, 0, 0

    def _say(self, level: str, event: str, **fields: Field) -> None:
        self._log(level, event, lane=self._lane, **fields)


def _counts(tally: Tally) -> dict[str, int]:
    retried = {f"calls made again: {reason}": n for reason, n in tally.retried.items()}
    return retried | {f"sent to another model: {pair.replace('|', ' → ')}": n for pair, n in tally.fallen.items()}
