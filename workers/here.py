"""What of a state stands on this machine: its folder, or a folder in the place of one that is elsewhere.

Logs, and the files that an evaluation works on, lie there. For a state on S3 that is `$PENSTOCK_LOCAL/<state>/`, by
default `~/.local/state/penstock/<state>/` of the machine that a process runs on: no cache, for answers that were paid
for lie there too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from penstock.connectors.s3.urls import SCHEME, parsed
from penstock.connectors.state import folder_of
from penstock.engine.errors import SpecError
from penstock.engine.fingerprints import short_hash

VARIABLE = "PENSTOCK_LOCAL"
_SHOWN = 60
"""Characters of a state's URL in its folder's name; a hash behind them tells it from all others."""


def folder_here(state: str) -> Path:
    """Nothing is made there. Raises `SpecError` where the state is elsewhere, and it is not known where to keep files
    of it."""
    there = folder_of(state)
    return _root() / _name(state) if there is None else there


def logs_here(state: str, run_id: str) -> Path:
    """Raises `SpecError`, as `folder_here`."""
    return folder_here(state) / "logs" / run_id


def _root() -> Path:
    """The same for all processes of a run, whatever folder each stands in."""
    if said := os.environ.get(VARIABLE):
        if os.path.isabs(said):
            return Path(said)
        raise SpecError(f"{VARIABLE}={said} is relative, and a run's processes stand in folders of their own: write /…")
    given = os.environ.get("XDG_STATE_HOME", "")
    try:
        return (Path(given) if os.path.isabs(given) else Path.home() / ".local" / "state") / "penstock"
    except RuntimeError as error:
        raise SpecError(f"this user has no home folder: name a folder for local files by {VARIABLE}") from error


def _name(state: str) -> str:
    """However its URL is written: its region, how it is encrypted and a last slash make no other state."""
    if state.startswith(SCHEME):
        where = parsed(state)
        at = where.at(where.key.rstrip("/"))
        state = msgspec.structs.replace(at, region=None).url
    words = re.sub(r"[^A-Za-z0-9.]+", "-", state.partition("?")[0].replace("://", "-"))[:_SHOWN].strip("-.")
    return f"{words}-{short_hash(state.encode())}"
