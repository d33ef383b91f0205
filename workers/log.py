"""Structured logs of a run's processes: a JSON object a line, in the state folder. No prompt text and no key, ever."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import msgspec


class Log:
    """Appends to `<state>/logs/<run_id>/<process>.jsonl`. A state that is no folder: nothing is written here."""

    def __init__(self, state: str, run_id: str, process: str) -> None:
        self._process = process
        self._handle: int | None = None
        if "://" not in state:
            folder = Path(state) / "logs" / run_id
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(folder / f"{process}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """`fields`: names, numbers and reasons only."""
        if self._handle is not None:
            line = {"at": time.time(), "level": level, "event": event, "process": self._process, **fields}
            with contextlib.suppress(OSError):  # a full disk must not keep a run from ending as it should
                os.write(self._handle, msgspec.json.encode(line) + b"\n")
