"""Which machine an evaluation lives on, where the state is no folder.

Its rows and what was answered are files of one machine (`workers.here`); ledger, history, registry, labels and judges
stand in the state, and all machines share them. So the state remembers where the files are: the same name on another
machine is refused instead of paid for anew. A mark in both places tells them apart, whatever machines are called.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from penstock.connectors.base import this_process
from penstock.connectors.documents import ABSENT, Conflict, Tag
from penstock.connectors.filestore.disk import publish
from penstock.connectors.state import folder_of, open_state
from penstock.engine.errors import Corrupt, SpecError
from penstock.workers.here import VARIABLE

_FILE = "home.json"
_KEYS = "evals/"


class Home(msgspec.Struct, frozen=True):
    host: str
    folder: str
    mark: str


def mark_of(place: Path) -> str | None:
    """None: the evaluation's folder needs none, or nothing was begun in it."""
    home = _kept(place)
    return None if home is None else home.mark


def begin(state: str, place: Path) -> None:
    """Its folder is there and has its mark, where it needs one. Raises `SpecError` where it can't be written."""
    if folder_of(state) is None and _kept(place) is None:
        _keep(place, Home(this_process().host, str(place), secrets.token_hex(8)))


def claim(state: str, name: str, place: Path, *, anew: bool) -> None:
    """It lives here from now on: called before anything is paid for. `anew`: also where it lived elsewhere. Raises
    `SpecError` where it does, `Temporary`."""
    if (mine := _kept(place)) is None:
        return
    found = _known(state, name)
    if found is not None and found[0].mark == mine.mark:
        return
    if found is not None and not anew:
        raise _elsewhere(name, found[0], place)
    try:
        open_state(state).put(_key(name), msgspec.json.encode(mine), ABSENT if found is None else found[1])
    except Conflict as error:
        raise SpecError(f"another command has begun the evaluation {name} just now: try again") from error


def check(state: str, name: str, place: Path) -> None:
    """Raises `SpecError` where it lives elsewhere."""
    if (home := elsewhere(state, name, place)) is not None:
        raise _elsewhere(name, home, place)


def elsewhere(state: str, name: str, place: Path) -> Home | None:
    """None: it lives here, or nowhere yet."""
    found = None if folder_of(state) is not None else _known(state, name)
    return None if found is None or found[0].mark == mark_of(place) else found[0]


def names(state: str) -> set[str]:
    """Of evaluations that live somewhere, and need no folder of the state."""
    if folder_of(state) is not None:
        return set()
    return {key.removeprefix(_KEYS).removesuffix(".json") for key in open_state(state).list(_KEYS)}


def _elsewhere(name: str, home: Home, place: Path) -> SpecError:
    return SpecError(
        f"the evaluation {name} was begun on {home.host}: its rows and answers lie there, in {home.folder}, and not in "
        f"{place} of this machine. Go on there; or start over here with --fresh, or under another --name, either of "
        "which pays again"
    )


def _known(state: str, name: str) -> tuple[Home, Tag] | None:
    found = open_state(state).get(_key(name))
    return None if found is None else (_read(found[0], f"{_key(name)} in {state}"), found[1])


def _key(name: str) -> str:
    return f"{_KEYS}{name}.json"


def _kept(place: Path) -> Home | None:
    try:
        return _read((place / _FILE).read_bytes(), str(place / _FILE))
    except FileNotFoundError:
        return None


def _keep(place: Path, home: Home) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        publish(place / _FILE, msgspec.json.encode(home))
    except OSError as error:
        raise SpecError(f"{place} can't be written ({error}): name another folder by {VARIABLE}") from error


def _read(raw: bytes, what: str) -> Home:
    try:
        return msgspec.json.decode(raw, type=Home)
    except msgspec.DecodeError as error:
        raise Corrupt(f"{what} can't be read: {error}") from error
