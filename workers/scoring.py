"""The scorers that need libraries, the user's own code or a limit of time: JSON schema, `module:function`, patterns."""

from __future__ import annotations

import logging
import sys

import msgspec

from penstock.engine.items import Answer, Item, OutputSpec, Score
from penstock.engine.policy import Scorer, Task
from penstock.engine.quality import Checks, score_all
from penstock.workers.answers import check, may_take_long
from penstock.workers.apart import PATIENCE_S, Apart, Question, TooLong


class Scoring:
    """Called by the lane for each sampled result. A scorer that fails scores 0: it never ends an item."""

    def __init__(self, scorer_path: str | None) -> None:
        if scorer_path is not None and scorer_path not in sys.path:
            sys.path.append(scorer_path)  # the other process has it from here
        self._apart = Apart()
        self._given_up: set[str] = set()
        """Patterns, schemas and functions that took too long: they score nothing any more here."""
        self._checks: Checks = {
            "regex": self._by_pattern,
            "json_schema": self._by_schema,
            "function": self._by_function,
        }

    def __call__(self, item: Item, answer: Answer, task: Task) -> tuple[Score, ...]:
        expected: object = None
        if item.attributes.expected_json is not None:
            expected = msgspec.json.decode(item.attributes.expected_json)
        return score_all(task.scorers, answer.text, expected, self._checks)

    def _by_pattern(self, scorer: Scorer, text: str, expected: object) -> float | None:
        found = self._asked("search", scorer.pattern or "", text)
        return None if found is None else float(found is True)

    def _by_schema(self, scorer: Scorer, answer: str, expected: object) -> float | None:
        schema = scorer.json_schema or b"{}"
        if not may_take_long(schema):
            return float(check(answer, OutputSpec(json_schema=schema))[0])
        found = self._asked("check", schema.decode(), answer)
        return float(found[0]) if isinstance(found, list) else None  # pyright: ignore[reportUnknownArgumentType]

    def _by_function(self, scorer: Scorer, answer: str, expected: object) -> float | None:
        score = self._asked("score", scorer.function or "", answer, expected)
        return score if isinstance(score, float) else None

    def _asked(self, question: Question, what: str, *about: object) -> object:
        """None: it takes too long, and is not tried again; or the process could not be had yet."""
        if what in self._given_up:
            return None
        try:
            return self._apart.ask(question, what, *about)
        except TooLong:
            self._given_up.add(what)
            logging.getLogger(__name__).error(
                "the scorer's %r took over %g s on an answer, or broke its process, and is not asked again here",
                what[:200],
                PATIENCE_S,
            )
            return None
