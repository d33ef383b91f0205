"""What readers of a prefix sink are told: the objects that make it up. The truth, of which the manifest is a copy.

It is one small object for each sink in the working prefix, `told/<sink>`, that changes by compare-and-swap alone. It
says which objects count, and of each lane how many of its finals are among them: so a lane may forget finals that are
told, and what a merge costs does not grow with what was merged before. Files over `LIST_FILES` move into lists,
objects below the sink's `_manifest/` that never change. A list is put before the swap that names it; one that nothing
names, since its maker was killed, is removed at the run's end (`leftovers.sweep`).

Everything here blocks.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection, Iterator, Mapping

import msgspec

from penstock.connectors.filestore.disk import Faults
from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import Stored
from penstock.connectors.s3.fence import Lost
from penstock.connectors.s3.store import parts
from penstock.connectors.s3.store.home import Home
from penstock.connectors.s3.store.parts import Made
from penstock.connectors.s3.store.progress import Final, Progress
from penstock.connectors.s3.store.run import Life
from penstock.engine.errors import Corrupt, PenstockError

LIST_FILES = 1_000
"""Files that stand in the manifest itself, and in each list: some 200 kB. Few runs have more than that."""
LISTS = "_manifest/"
PUBLISH_STEPS = ("publish.listed", "publish.told")


class Entry(msgspec.Struct, frozen=True):
    """key: of the whole bucket."""

    key: str
    rows: int
    bytes: int
    sink: str


class FileList(msgspec.Struct, frozen=True):
    """A list and what its files hold together. files: how many they are."""

    key: str
    rows: int
    bytes: int
    files: int


class Listing(msgspec.Struct, frozen=True):
    """What stands in a list."""

    files: list[Entry]


class Told(msgspec.Struct, frozen=True):
    """lanes: how many of each lane's finals (of all sinks) were looked at. lists, files: as the manifest shows them."""

    token: str = ""
    """Unique to each write: see `fence`."""
    lanes: dict[int, int] = {}
    lists: list[FileList] = []
    files: list[Entry] = []


class Snapshot(msgspec.Struct, frozen=True):
    """One moment of a sink: what is told, and all lanes."""

    told: Told
    lanes: dict[int, Progress]


def read(home: Home, sink: str) -> tuple[Told, str | None]:
    """What is told, and its ETag (None: nothing was ever told)."""
    found = fence.read(home.s3, home.bucket, home.key(_name(sink)))
    if found is None:
        return Told(), None
    try:
        return msgspec.json.decode(found.data, type=Told), found.etag
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{home}{_name(sink)} cannot be read ({error}). Restore it, or start with --fresh.") from error


def tell(
    life: Life, sink: str, prefix: str, made: Mapping[int, Made], before: Told, stored: Stored, faults: Faults
) -> Told:
    """Add what lanes have made since; returns what is told then. `before`: what it begins with where nothing is there
    (it was never told, or somebody deleted it)."""
    home = life.home
    while True:
        old, etag = read(home, sink)
        known = set[str]()
        if etag is None:
            old, known = before, set(keys(home, before))
        news = [one for lane, all in made.items() for one in all.since(old.lanes.get(lane, 0)) if one.sink == sink]
        if etag is not None and not news:
            return old
        files = [*old.files, *(Entry(one.key, one.rows, one.bytes, sink) for one in news if one.key not in known)]
        lanes = old.lanes | {lane: max(all.end, old.lanes.get(lane, 0)) for lane, all in made.items()}
        lists, files = _listed(life, prefix, files, stored)
        if lists:
            faults("publish.listed")
        new = Told(secrets.token_hex(8), lanes, [*old.lists, *lists], files)
        try:
            _swap(home, sink, new, etag)
        except Lost:
            _drop(home, sink, lists)
            continue
        faults("publish.told")
        return new


def _swap(home: Home, sink: str, new: Told, etag: str | None) -> None:
    fence.swap(home.s3, home.bucket, home.key(_name(sink)), msgspec.json.encode(new), etag, home.stored)


def _drop(home: Home, sink: str, lists: list[FileList]) -> None:
    """But for those that are told: our swap may have succeeded, its answer got lost, and another came on top of it."""
    with contextlib.suppress(PenstockError):  # at worst they stay until the next sweep
        named = read(home, sink)[0].lists
        home.s3.delete(home.bucket, [one.key for one in lists if one not in named])


def _listed(life: Life, prefix: str, files: list[Entry], stored: Stored) -> tuple[list[FileList], list[Entry]]:
    """The oldest files in new lists, as many as must; and the rest."""
    home, lists = life.home, list[FileList]()
    while len(files) > LIST_FILES:
        some, files = files[:LIST_FILES], files[LIST_FILES:]
        key = f"{lists_of(life, prefix)}{secrets.token_hex(8)}.json"
        fence.swap(home.s3, home.bucket, key, _pretty(Listing(some)), None, stored)
        lists.append(FileList(key, sum(one.rows for one in some), sum(one.bytes for one in some), len(some)))
    return lists, files


def _pretty(what: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(what), indent=1) + b"\n"


def keys(home: Home, told: Told) -> Iterator[str]:
    """Of all objects that are told, oldest first. Raises `Missing` where a list is gone."""
    for one in told.lists:
        data = home.s3.get(home.bucket, one.key).data
        yield from (entry.key for entry in msgspec.json.decode(data, type=Listing).files)
    yield from (entry.key for entry in told.files)


def snapshot(home: Home, sink: str) -> Snapshot:
    """What is told and what lanes hold beyond it, so that nothing is in both or in neither."""
    while True:
        told, etag = read(home, sink)
        lanes = parts.lanes(home, parts.lane_numbers(home))
        if read(home, sink)[1] == etag:  # else a lane may have forgotten what was told meanwhile
            return Snapshot(told, lanes)


def untold(home: Home, sink: str, seen: Snapshot) -> Iterator[Final]:
    """Finals of that moment that no reader was told of yet."""
    for lane, state in seen.lanes.items():
        new = parts.made(home, lane, state).since(seen.told.lanes.get(lane, 0))
        yield from (final for final in new if final.sink == sink)


def forget_lists(home: Home, sink: str, told: Told, etag: str | None, found: Collection[str]) -> None:
    """Delete those lists among `found` that nothing names. `told`: as it was before they were looked for. Whoever has
    put one and not named it yet is kept from it first."""
    named = {one.key for one in told.lists}
    if orphans := [key for key in found if key not in named]:
        with contextlib.suppress(Lost):  # somebody tells right now: the next sweep
            _swap(home, sink, msgspec.structs.replace(told, token=secrets.token_hex(8)), etag)
            home.s3.delete(home.bucket, orphans)


def lists_of(life: Life, prefix: str) -> str:
    return f"{prefix}{LISTS}{life.name}-"


def _name(sink: str) -> str:
    return f"told/{sink}"
