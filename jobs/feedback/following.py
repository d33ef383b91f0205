"""Takes a job's `feedback:` while its run goes, and once more at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import msgspec

from penstock.connectors.settings import SourceSettings
from penstock.engine.errors import PenstockError

EVERY_S = 10.0
"""Outcomes are not urgent; a look at a topic costs a connection."""

LAST_S = 15.0
"""How long the last look may hold up a command that is done. What it misses, the next run or `pull` takes."""

Say = Callable[[str], None]


class Followed(msgspec.Struct, frozen=True):
    """The run whose outcomes are taken. `state`: its state URL."""

    source: SourceSettings | None
    state: str
    run_id: str
    every_s: float = EVERY_S


@contextmanager
def following(run: Followed, say: Say) -> Generator[None]:
    """A source that can't be read stops no run: it is said once, and tried again."""
    if run.source is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_follow, args=(run, run.source, say, over), name="penstock-feedback", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LAST_S)


def _follow(run: Followed, source: SourceSettings, say: Say, over: threading.Event) -> None:
    from penstock.connectors.state import open_state
    from penstock.jobs.feedback.taking import Kept, Took, added, write_down  # late: numpy comes with it

    kept: Kept | None = None
    took, said, ended = Took(), "", False
    while not ended:
        ended = over.wait(run.every_s)
        try:
            if kept is None:
                kept = Kept(open_state(run.state))
                kept.load()
            took = added(took, kept.pull(source))
            said = ""
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told: a run goes for weeks, and the next look may work
            why = (
                str(error) if isinstance(error, PenstockError) else f"unexpected {type(error).__name__}: {error}"[:300]
            )
            if why != said:
                said = why
                say(f"feedback can't be read now: {said}")
    try:
        write_down(took, run.state, "feedback of the job", run.run_id)
    except PenstockError as error:
        say(f"the audit log lacks what feedback was taken: {error}")
