"""From settings to open connectors: which store is the primary, who follows, and where each sink lives."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from penstock.connectors.base import Primary, SinkName, Source, Store
from penstock.connectors.filestore.run import claim_home, marker, run_epoch
from penstock.connectors.settings import FilesSink, FilesSource, MemorySink, MemorySource, SinkSettings, SourceSettings
from penstock.engine.errors import Held, SpecError
from penstock.engine.plan import Plan

PRIMARY = "primary"


@runtime_checkable
class _Finishing(Protocol):
    async def finish(self, plan: Plan) -> dict[str, list[str]]: ...


class Stores(msgspec.Struct, frozen=True):
    """primary: the store of the results. followers: key → store. placement: sink → `primary` or a follower's key."""

    primary: Primary
    followers: dict[str, Store]
    placement: dict[SinkName, str]

    async def finish(self, plan: Plan) -> dict[str, list[str]]:
        """Assemble the outputs of every store. Sink name → paths."""
        done = await self.primary.finish(plan)
        for store in self.followers.values():
            if isinstance(store, _Finishing):
                done |= await store.finish(plan)
        return {sink: done[sink] for sink in self.placement if sink in done}


class _Home(msgspec.Struct, frozen=True):
    """One folder's sinks, and the working folder beside them."""

    folder: Path
    sinks: dict[SinkName, FilesSink]

    @property
    def path(self) -> Path:
        """Named after the first sink: two jobs may write into one folder as long as their outputs differ."""
        return self.folder / f".{Path(next(iter(self.sinks.values())).path).stem}.penstock"


def open_stores(sinks: dict[SinkName, SinkSettings], run_id: str) -> Stores:
    """Open the stores of one run; called by every process that needs them. Raises `Refused` where a folder holds
    another run's output, `SpecError` where no results sink is named or two sinks share a path."""
    if "results" not in sinks:
        raise SpecError("no results sink. Name one under sinks:, or give -o FILE.")
    _check_paths(sinks)
    groups = _groups(sinks)
    primary_key = _key(sinks["results"])
    opened = {key: _open(group, run_id) for key, group in groups.items()}
    placement: dict[SinkName, str] = {
        sink: PRIMARY if _key(settings) == primary_key else _key(settings) for sink, settings in sinks.items()
    }
    return Stores(opened.pop(primary_key), dict(opened), placement)


def discard_stores(sinks: dict[SinkName, SinkSettings]) -> None:
    """Throw away everything that earlier runs left at these sinks' working folders (`--fresh`). Outputs already
    assembled stay until they are replaced. Raises `Held` where a command that is alive holds one of them."""
    from penstock.connectors import memory

    for group in _groups(sinks).values():
        match group:
            case _Home():
                _discard_home(group.path)
            case str():
                memory.forget(group)


def refuse_held(sinks: dict[SinkName, SinkSettings]) -> None:
    """Raises `Held` where a command that is alive holds one of these sinks: asked before anything is thrown away."""
    for group in _groups(sinks).values():
        if isinstance(group, _Home):
            lock = _hold_home(group.path)
            if lock is not None:
                os.close(lock)


def homes(sinks: dict[SinkName, SinkSettings]) -> dict[SinkName, Path]:
    """The working folder of each sink that lives in files (for `tables.iter_committed`). Opens nothing."""
    found = [group for group in _groups(sinks).values() if isinstance(group, _Home)]
    return {sink: home.path for home in found for sink in home.sinks}


def open_source(settings: SourceSettings) -> Source:
    """Open what the items come from."""
    match settings:
        case FilesSource():
            from penstock.connectors.files import FileSource

            return FileSource(settings)
        case MemorySource():
            from penstock.connectors import memory

            return memory.source(settings.name)


def _key(settings: SinkSettings) -> str:
    match settings:
        case FilesSink():
            return str(_folder(settings))
        case MemorySink():
            return f"memory:{settings.name}"


def _folder(settings: FilesSink) -> Path:
    return Path(os.path.normpath(settings.path)).parent


def _groups(sinks: dict[SinkName, SinkSettings]) -> dict[str, _Home | str]:
    """Store key → its folder and sinks, or the name of a memory store. The results' sinks come first."""
    groups: dict[str, _Home | str] = {}
    for sink in sorted(sinks, key=lambda s: (s != "results", s)):
        settings = sinks[sink]
        match settings:
            case FilesSink():
                home = groups.setdefault(_key(settings), _Home(_folder(settings), {}))
                if isinstance(home, _Home):
                    home.sinks[sink] = settings
            case MemorySink():
                groups[_key(settings)] = settings.name
    return groups


def _open(group: _Home | str, run_id: str) -> Primary:
    match group:
        case _Home():
            from penstock.connectors.filestore.store import FileStore

            claim_home(group.path, run_id)
            return FileStore(group.path, {str(sink): output for sink, output in group.sinks.items()})
        case str():
            from penstock.connectors.memory import MemoryStore

            return MemoryStore(group)


def _check_paths(sinks: dict[SinkName, SinkSettings]) -> None:
    seen: dict[str, SinkName] = {}
    for sink, settings in sinks.items():
        match settings:
            case FilesSink():
                path = os.path.normpath(settings.path)
                if path in seen:
                    raise SpecError(f"sinks {seen[path]} and {sink} share the path {path}. Give each its own.")
                seen[path] = sink
            case MemorySink():
                pass


def _hold_home(home: Path) -> int | None:
    """The lock of its last command; None: nobody ever held it."""
    from penstock.connectors.filestore.disk import try_lock
    from penstock.connectors.filestore.run import describe

    epoch = run_epoch(home)
    lock = try_lock(marker(home, epoch)) if epoch else None
    if epoch and lock is None:
        raise Held(describe(home, epoch))
    return lock


def _discard_home(home: Path) -> None:
    lock = _hold_home(home)
    try:
        shutil.rmtree(home, ignore_errors=False) if home.exists() else None
    finally:
        if lock is not None:
            os.close(lock)
