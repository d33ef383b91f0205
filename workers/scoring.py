"""The scorers that need libraries, the user's own code or a limit of time: JSON schema, `module:function`, patterns."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable
from functools import lru_cache

import msgspec

from penstock.engine.errors import SpecError
from penstock.engine.items import Answer, Item, OutputSpec, Score
from penstock.engine.policy import Scorer, Task
from penstock.engine.quality import Checks, score_all
from penstock.workers.answers import check
from penstock.workers.matching import Matcher

Function = Callable[[str, object], object]

PATIENCE_S = 4.0
"""A function of the user's may take so long over one answer: the lane waits, and one that is silent for 10 s is
replaced, which pays for its window again."""


class Scoring:
    """Called by the lane for each sampled result. A scorer that fails scores 0: it never ends an item."""

    def __init__(self, scorer_path: str | None) -> None:
        if scorer_path is not None and scorer_path not in sys.path:
            sys.path.append(scorer_path)
        self._matcher = Matcher()
        self._checks: Checks = {"regex": self._by_pattern, "json_schema": _by_schema, "function": _by_function}

    def __call__(self, item: Item, answer: Answer, task: Task) -> tuple[Score, ...]:
        expected: object = None
        if item.attributes.expected_json is not None:
            expected = msgspec.json.decode(item.attributes.expected_json)
        return score_all(task.scorers, answer.text, expected, self._checks)

    def _by_pattern(self, scorer: Scorer, text: str, expected: object) -> float | None:
        found = self._matcher.found(scorer.pattern or "", text)
        return None if found is None else float(found)


def _by_schema(scorer: Scorer, answer: str, expected: object) -> float:
    return float(check(answer, OutputSpec(json_schema=scorer.json_schema))[0])


_hung: set[str] = set()
"""Functions that did not come back in time: they score nothing any more in this process."""


def _by_function(scorer: Scorer, answer: str, expected: object) -> float | None:
    name = scorer.function or ""
    if name in _hung:
        return None
    scores: list[float] = []
    # A thread can't be ended, only left behind; a daemon holds up no end of the process.
    thread = threading.Thread(target=lambda: scores.append(_called(name, answer, expected)), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    if not scores:
        _hung.add(name)
        logging.getLogger(__name__).error("scorer %s took over %g s and is not asked again here", name, PATIENCE_S)
        return None
    return scores[0]


def _called(name: str, answer: str, expected: object) -> float:
    try:
        return float(load(name)(answer, expected))  # pyright: ignore[reportArgumentType]
    except (Exception, SystemExit):  # noqa: BLE001 - the user's own code: whatever it does, this sample scores 0
        return 0.0


@lru_cache(maxsize=64)
def load(name: str) -> Function:
    """`module:function` → the function. Raises `SpecError` where it can't be imported."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise SpecError(f"scorer function {name} can't be imported: {error}") from error
    if not callable(found):
        raise SpecError(f"scorer function {name} is not a function")
    return found
