"""How each model behaves now: by the settings, and by what was told since."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import msgspec

from penstock.jobs.sandbox.settings import Behaviour, Settings

Fields = dict[str, Any]


class Behaviours:
    """`change` takes effect with the next request."""

    def __init__(self, settings: Settings) -> None:
        self._of = lru_cache(maxsize=1_000)(settings.of)
        self._told: dict[str, Behaviour] = {}

    def of(self, model: str) -> Behaviour:
        return self._told.get(model) or self._of(model)

    def change(self, model: str, body: bytes) -> None:
        """Merge a JSON object into the model's behaviour. Raises `ValueError` for what is none."""
        if not model:
            raise ValueError("say whose behaviour: POST /behaviour?model=NAME")
        now = cast("Fields", msgspec.to_builtins(self.of(model)))
        given = msgspec.json.decode(body, type=Fields)
        self._told[model] = msgspec.convert(_merged(now, given), Behaviour)


def _merged(now: Fields, given: Fields) -> Fields:
    return now | {name: _both(now.get(name), value) for name, value in given.items()}


def _both(now: Any, given: Any) -> Any:
    if isinstance(now, dict) and isinstance(given, dict):
        return _merged(cast("Fields", now), cast("Fields", given))
    return given
