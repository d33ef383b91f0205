"""Who answered as each version of a model: `fingerprints.json` at the state, so that a later command of whatever job
notices another one. All calls block: call them in a thread."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from penstock.connectors.documents import ABSENT, until_won
from penstock.connectors.state import open_state
from penstock.engine.errors import Corrupt

KEY = "fingerprints.json"


class Met(msgspec.Struct, frozen=True):
    """What one version's answers said of who gave them, as the last command found it that met anything new."""

    model: str
    """What was asked for: answers to another name are no comparison."""
    fingerprints: tuple[str, ...]
    run: str
    at: float
    """Unix seconds."""
    names: tuple[str, ...] = ()
    """Of models, where `model` is an alias of theirs."""


def read_met(url: str) -> dict[str, Met]:
    """By `model@version`. Raises `SpecError`, `Corrupt`, `Temporary`."""
    found = open_state(url).get(KEY)
    return {} if found is None else _decoded(found[0])


def write_met(url: str, met: Mapping[str, Met]) -> None:
    """These in place of what was known of them; the others stay. Raises as `read_met`."""
    state = open_state(url)

    def attempt() -> None:
        there = state.get(KEY)
        before = {} if there is None else _decoded(there[0])
        data = msgspec.json.format(msgspec.json.encode({**before, **met}))
        state.put(KEY, data, ABSENT if there is None else there[1])

    until_won(attempt, KEY)


def _decoded(data: bytes) -> dict[str, Met]:
    try:
        return msgspec.json.decode(data, type=dict[str, Met])
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{KEY} at the state URL can't be read ({error}); delete it: it is made anew") from error
