"""The process that `Apart` asks: a line of JSON in, a line of JSON out. All code of the user's runs here."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import resource
import signal
from collections.abc import Callable
from functools import lru_cache

from penstock.engine.items import OutputSpec
from penstock.workers.checking.answers import check, prepare
from penstock.workers.checking.apart import Question


def serve(memory_bytes: int, loads: list[str]) -> None:
    """Until nobody asks any more. Whoever began it may be gone: its own alarms end it as well. `loads`: functions that
    will be asked."""
    asked, said = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the user's code prints is no answer
    with contextlib.suppress(OSError, ValueError):  # less is allowed already
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    prepare(b"{}")  # its libraries take a second on a busy machine, which an answer would be blamed for
    for name in loads:
        with contextlib.suppress(Exception, SystemExit):  # said by `_score`
            _loaded(name)
    print(file=said, flush=True)
    for line in asked:
        patience_s, cpu_s, question, *about = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, 2 * patience_s)
        answer = _QUESTIONS[question](*about)
        # loading and compiling are done; a function's libraries may use all cores at once, which adds up to more
        signal.setitimer(signal.ITIMER_PROF, 0 if question == "score" else cpu_s)
        told = answer()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(told), file=said, flush=True)


def _search(pattern: str, text: str) -> Callable[[], bool]:
    """Is the pattern, which compiles, anywhere in the text?"""
    compiled = re.compile(pattern)
    return lambda: compiled.search(text) is not None


def _check(schema: str, text: str) -> Callable[[], tuple[bool, str, str]]:
    """As `answers.check`."""
    output = OutputSpec(json_schema=schema.encode())
    prepare(schema.encode())
    return lambda: check(text, output)


def _score(name: str, answer: str, expected: object) -> Callable[[], float | str]:
    """What the user's function `module:function` says; 0 where it fails. Words: this machine could not run it, which
    says nothing of the answer."""
    try:
        function = _loaded(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's own code
        words = f"it can't be loaded: {type(error).__name__}: {error}"[:300]
        return lambda: words

    def score() -> float | str:
        try:
            return float(function(answer, expected))  # pyright: ignore[reportArgumentType]
        except (MemoryError, ImportError) as error:
            return f"{type(error).__name__}: {error}"[:300]
        except (Exception, SystemExit):  # noqa: BLE001 - the user's own code: whatever it does, this sample scores 0
            return 0.0

    return score


@lru_cache(maxsize=64)
def _loaded(name: str) -> Callable[[str, object], object]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


_QUESTIONS: dict[Question, Callable[..., Callable[[], object]]] = {
    "search": _search,
    "check": _check,
    "score": _score,
}
