"""Structured logs of a run, as its processes wrote them: `<state>/logs/<run_id>/<process>.jsonl`, a JSON object a line
(`workers.here` says where, for a state that is no folder).

Known fields: `at` (Unix seconds), `level`, `event`, `process`, `lane`, `item_id`; others are shown as they are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from penstock.connectors.state import folder_of
from penstock.workers.here import logs_here

LEVELS = ("debug", "info", "warning", "error")
LONGEST_LINE = 1_000_000
"""Characters of one line that are read; longer ones are cut and shown as text."""


class LogLine(msgspec.Struct, frozen=True):
    at: float
    level: str
    event: str
    item_id: str | None
    rest: dict[str, object]
    raw: str


def unseen(state: str, run_id: str) -> str | None:
    """What a person has to know of logs that are not here. None: the state's folder has them all. Raises `SpecError`,
    as `logs_here`."""
    if folder_of(state) is not None:
        return None
    where = logs_here(state, run_id)
    here = f"this is what was logged on this machine, in {where}" if where.is_dir() else f"this one has no {where}"
    return f"the state is no folder, so each machine keeps the logs of its own processes: {here}"


def read(where: Path, *, level: str | None = None, item: str | None = None) -> Iterator[LogLine]:
    """All files merged by time (each is in order by itself), one line of each in memory. `item`: the start of an id."""
    least = LEVELS.index(level.lower()) if level else 0
    files = [_lines(path) for path in sorted(where.glob("*.jsonl"))]
    for line in heapq.merge(*files, key=lambda line: line.at):
        if _rank(line.level) >= least and (item is None or (line.item_id or "").startswith(item)):
            yield line


def _rank(level: str) -> int:
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


def _lines(path: Path) -> Iterator[LogLine]:
    with path.open(encoding="utf-8", errors="replace") as file:
        before = 0.0
        while text := file.readline(LONGEST_LINE):
            if text.strip():
                line = parse(text.rstrip("\n"), before)
                before = line.at
                yield line


def parse(text: str, before: float = 0.0) -> LogLine:
    """A line that is no JSON object (its writer died) is shown as text, at the time of the one before it."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.DecodeError:
        fields = dict[str, object](event=text)
    at = fields.pop("at", None)
    item = fields.pop("item_id", None)
    return LogLine(
        at=float(at) if isinstance(at, int | float) else before,
        level=str(fields.pop("level", "info")).lower(),
        event=str(fields.pop("event", "")),
        item_id=str(item) if item is not None else None,
        rest=fields,
        raw=text,
    )


def told(line: LogLine) -> str:
    """`13:05:07.120 warning lane moved  lane=2 item_id=…`."""
    time = datetime.fromtimestamp(line.at).astimezone().strftime("%H:%M:%S.%f")[:-3]
    item = {"item_id": line.item_id} if line.item_id else {}
    rest = " ".join(f"{name}={value}" for name, value in {**line.rest, **item}.items() if value != "")
    return f"{time} {line.level:<7} {line.event}" + (f"  {rest}" if rest else "")
