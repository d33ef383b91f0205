"""One folder's sinks, and the working folder beside them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path

from penstock.connectors.base import SinkName
from penstock.connectors.filestore.assembly import shown_by
from penstock.connectors.filestore.disk import try_lock
from penstock.connectors.filestore.run import (
    claim,
    describe,
    home_of,
    marker,
    read_owner,
    refuse_another,
    refuse_old_names,
    run_epoch,
    throw_away,
)
from penstock.connectors.filestore.spool import iter_values
from penstock.connectors.filestore.store import FileStore, committed_spools
from penstock.connectors.settings import FilesSink
from penstock.engine.errors import Held


def folder(settings: FilesSink) -> Path:
    """The folder that a sink stands in: all sinks there are one store."""
    return Path(os.path.normpath(settings.path)).parent


class FilesPlace:
    """Implements `base.Place`. `sinks`: those of one folder, not empty."""

    def __init__(self, sinks: dict[SinkName, FilesSink], run_id: str) -> None:
        self.home = home_of(next(iter(sinks.values())))
        """Named after the first sink: two jobs may write into one folder as long as their outputs differ."""
        self._sinks = sinks
        self._run_id = run_id

    def open(self) -> FileStore:
        for output in self._sinks.values():  # all of them before any is taken
            owner = read_owner(output)
            refuse_another(output, shown_by(output) if owner is None else owner, self._run_id)
        refuse_old_names(self._sinks.values(), self._run_id)
        for output in self._sinks.values():
            claim(output, self._run_id)
        return FileStore(self.home, {str(sink): output for sink, output in self._sinks.items()})

    async def refuse_held(self) -> None:
        with self._locked():
            pass

    async def discard(self) -> None:
        with self._locked():
            for output in self._sinks.values():
                throw_away(output)
            for output in self._sinks.values():  # so what another run shows there may be replaced
                claim(output, self._run_id)

    def committed(self, sink: SinkName) -> Iterator[bytes]:
        for spool in committed_spools(self.home, sink):
            yield from iter_values(spool)

    def _homes(self) -> list[Path]:
        return list(dict.fromkeys(home_of(output) for output in self._sinks.values()))

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        """Nobody's command holds a run here. Raises `Held`."""
        with contextlib.ExitStack() as locks:
            for home in self._homes():
                epoch = run_epoch(home)
                lock = try_lock(marker(home, epoch)) if epoch else None
                if lock is not None:
                    locks.callback(os.close, lock)
                elif epoch:
                    raise Held(describe(home, epoch))
            yield
