"""The scorers that need libraries, the user's own code or a limit of time: JSON schema, `module:function`, patterns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Iterable

import msgspec

from penstock.engine.items import Answer, Item, OutputSpec
from penstock.engine.policy import Scorer, Task
from penstock.engine.quality import Checks, score_all
from penstock.engine.results import Score
from penstock.workers.checking.answers import check, may_take_long
from penstock.workers.checking.apart import PATIENCE_S, Apart, Question, TooLong

START_S = 25.0
"""Results wait so long for the process, with the user's libraries, before they are taken unscored. Twice that
is less than a lane has to open."""
LOOK_S = 0.05
BREATH_S = 0.5
"""Scoring that took so long lets all else go first: lanes report, renew their rights, commit."""
SPENT_S = 2.0
"""Nothing more is asked in one turn of the loop after so long: with the question under way it stands still for 6 s, or
8.5 s where that one's process is killed; a lane that is silent for 10 s is replaced."""


class Scoring:
    """Called by the lanes of one actor for each sampled result. A scorer that fails scores 0: it never ends an item."""

    def __init__(self, scorer_path: str | None, scorers: Iterable[Scorer] = ()) -> None:
        """`scorers`: that may be called. The process for them starts at once."""
        if scorer_path is not None and scorer_path not in sys.path:
            sys.path.append(scorer_path)  # the other process has it from here
        self._apart = Apart()
        apart = [scorer for scorer in scorers if _is_apart(scorer)]
        self._apart.loads = tuple(dict.fromkeys(scorer.function for scorer in apart if scorer.function))
        self._needed = bool(apart)
        if self._needed:
            self._apart.up()
        self._away_since: float | None = None
        self._spent_s = 0.0
        """In this turn of the loop."""
        self._told: set[str] = set()
        """Functions of which it was told that they can't be run."""
        self._given_up: set[str] = set()
        """Patterns, schemas and functions that took too long: they score nothing any more here."""
        self._checks: Checks = {
            "regex": self._by_pattern,
            "json_schema": self._by_schema,
            "function": self._by_function,
        }

    async def turn(self) -> None:
        """Before results are taken, which score some: until the process is up, and all others have had their turn."""
        while self._needed and not self._apart.up():
            now = time.monotonic()
            self._away_since = since = now if self._away_since is None else self._away_since
            if now - since > START_S:
                if not self._apart.loads:
                    return
                self._apart.loads = ()  # one may never end its loading: the others are scored without it
                self._apart.close()
                self._away_since = None
                logging.getLogger(__name__).error("loading scorers' functions took over %g s", START_S)
            await asyncio.sleep(LOOK_S)
        self._away_since = None
        while self._spent_s > BREATH_S:  # noqa: ASYNC110 - `_rested` follows in the next turn
            await asyncio.sleep(0)

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
        name = scorer.function or ""
        score = self._asked("score", name, answer, expected)
        if isinstance(score, str) and name not in self._told:
            self._told.add(name)
            logging.getLogger(__name__).error("answers go unscored by %r: %s", name[:200], score)
        return score if isinstance(score, float) else None

    def _asked(self, question: Question, what: str, *about: object) -> object:
        """None: it takes too long, and is not tried again; or the process could not be had yet."""
        if what in self._given_up or self._spent_s > SPENT_S:
            return None
        began = time.monotonic()
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
        finally:
            self._count(time.monotonic() - began)

    def _count(self, seconds: float) -> None:
        with contextlib.suppress(RuntimeError):  # without a loop nothing waits
            loop = asyncio.get_running_loop()
            if not self._spent_s:
                loop.call_soon(self._rested)
            self._spent_s += seconds

    def _rested(self) -> None:
        self._spent_s = 0.0


def _is_apart(scorer: Scorer) -> bool:
    """Is it called in the other process?"""
    if scorer.type == "json_schema":
        return may_take_long(scorer.json_schema or b"{}")
    return scorer.type in ("regex", "function")
