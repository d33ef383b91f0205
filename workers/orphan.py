"""An actor's process ends when its raylet is gone, so that a killed command leaves nobody behind who pays.

Ray's own check asks whether the parent has become process 1; under a subreaper (systemd's user sessions, many
container launchers, test runners) it never does, and the actors of a killed command would finish its run unseen.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

LOOK_S = 0.5
"""Twice a second costs nothing; a killed command's calls go on for about so long."""


def end_with_raylet() -> None:
    """Watch from a thread. Nothing where the parent is no raylet (tests) or can't be known (no /proc)."""
    raylet = os.getppid()
    try:
        is_raylet = Path(f"/proc/{raylet}/comm").read_text().strip() == "raylet"
    except OSError:
        return
    if is_raylet:
        threading.Thread(target=_watch, args=(raylet,), daemon=True, name="penstock-orphan").start()


def _watch(raylet: int) -> None:
    while os.getppid() == raylet:
        time.sleep(LOOK_S)
    os._exit(1)
