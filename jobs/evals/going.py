"""An evaluation under way: it is looked at every few seconds, and drains when it has seen enough."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from penstock.connectors.calibrations import read_judges
from penstock.connectors.state import open_state
from penstock.engine.errors import PenstockError
from penstock.engine.measure.evaluation import Row, compared
from penstock.engine.measure.stopping import Stop, StopRule, look
from penstock.engine.steering import judges
from penstock.jobs.evals.asked import Asked, deciding
from penstock.jobs.evals.dataset import Indexed
from penstock.jobs.evals.records import Seen, read
from penstock.jobs.look.reading import Outputs
from penstock.workers.runspec import RunSpec

LOOK_S = 3.0
"""Between two looks; a look at many rows takes longer, and then so does the pause."""
PAUSE = 4.0
"""Times what a look took: looking costs at most a fifth of a core."""

SEEN_ENOUGH = ("winner", "same", "narrow")
"""Reasons that end an evaluation before all rows are used."""

Say = Callable[[str], None]


def enough(asked: Asked, rows: Sequence[Row], *, to_the_end: bool) -> Stop | None:
    """Why it may stop before all rows are used; None: it may not. `to_the_end`: so it was asked, or nothing decides."""
    if not rows or to_the_end:
        return None
    stop = look(compared(asked.names, rows), rule_of(asked, decides=True))
    return stop if stop.reason in SEEN_ENOUGH else None


def rule_of(asked: Asked, *, decides: bool) -> StopRule:
    """`decides`: the scorer may name a winner."""
    within, same = (asked.within, asked.same_within) if decides else (None, None)
    winner = decides and asked.within is None
    return StopRule(confidence=asked.confidence, winner=winner, same_within=same, half_width=within)


def informs(spec: RunSpec, asked: Asked) -> str | None:
    """Why no winner is named, and nothing ends before all rows are used: the scorer is a judge that is not known to
    agree with people. None: it decides. Raises what the state raises."""
    scorer = deciding(spec.policy.tasks[asked.task], asked.scorer)
    if scorer.type != "judge":
        return None
    return judges.informs(scorer, spec.catalog.models[scorer.model or ""].live, read_judges(open_state(spec.state)))


class Watch:
    """Looks in a thread of its own. `ask`: stop the run, as ctrl-c would. `ours`: what there is to see is its own."""

    def __init__(
        self,
        outputs: Outputs,
        asked: Asked,
        index: Sequence[Indexed],
        ask: Callable[[], None],
        ours: Callable[[], bool],
        *,
        to_the_end: bool,
    ) -> None:
        self._outputs = outputs
        self._asked = asked
        self._index = index
        self._ask = ask
        self._ours = ours
        self._to_the_end = to_the_end
        self._over = threading.Event()
        self.stop: Stop | None = None
        """Why it was stopped; None: it was not."""
        self._thread = threading.Thread(target=self._go, name="penstock-eval", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(LOOK_S)

    def _go(self) -> None:
        pause = LOOK_S
        while not self._over.wait(pause):
            started = time.monotonic()
            try:
                if not self._ours():
                    continue
                self.stop = enough(self._asked, self._look().rows, to_the_end=self._to_the_end)
            except (PenstockError, OSError):
                continue  # nothing is committed yet, or a file is being replaced: the next look sees it
            if self.stop is not None:
                self._ask()
                return
            pause = max(LOOK_S, PAUSE * (time.monotonic() - started))

    def _look(self) -> Seen:
        return read(self._outputs, self._asked, self._index)
