"""Takes a job's `feedback:` while its run goes, and once more at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from penstock.connectors.settings import SourceSettings
from penstock.engine.errors import PenstockError

EVERY_S = 10.0
"""Outcomes are not urgent; a look at a topic costs a connection."""

LAST_S = 15.0
"""How long the last look may hold up a command that is done. What it misses, the next run or `pull` takes."""

Say = Callable[[str], None]


@contextmanager
def following(settings: SourceSettings | None, state: str, say: Say, every_s: float = EVERY_S) -> Generator[None]:
    """A source that can't be read stops no run: it is said once, and tried again."""
    if settings is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(
        target=_follow, args=(settings, state, say, every_s, over), name="penstock-feedback", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LAST_S)


def _follow(settings: SourceSettings, state: str, say: Say, every_s: float, over: threading.Event) -> None:
    from penstock.connectors.state import open_state
    from penstock.jobs.feedback.taking import Kept  # late: numpy comes with it

    kept: Kept | None = None
    said = ""
    ended = False
    while not ended:
        ended = over.wait(every_s)
        try:
            if kept is None:
                kept = Kept(open_state(state))
                kept.load()
            kept.pull(settings)
            said = ""
        except PenstockError as error:
            if str(error) != said:
                said = str(error)
                say(f"feedback can't be read now: {said}")
