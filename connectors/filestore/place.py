"""One folder's sinks, and the working folder beside them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from penstock.connectors.base import SinkName
from penstock.connectors.filestore.disk import try_lock
from penstock.connectors.filestore.run import claim_home, describe, marker, run_epoch
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
        first = next(iter(sinks.values()))
        self.home = folder(first) / f".{Path(first.path).stem}.penstock"
        """Named after the first sink: two jobs may write into one folder as long as their outputs differ."""
        self._sinks = sinks
        self._run_id = run_id

    def open(self) -> FileStore:
        claim_home(self.home, self._run_id)
        return FileStore(self.home, {str(sink): output for sink, output in self._sinks.items()})

    async def refuse_held(self) -> None:
        lock = self._lock()
        if lock is not None:
            os.close(lock)

    async def discard(self) -> None:
        lock = self._lock()
        try:
            if self.home.exists():
                shutil.rmtree(self.home)
        finally:
            if lock is not None:
                os.close(lock)

    def committed(self, sink: SinkName) -> Iterator[bytes]:
        for spool in committed_spools(self.home, sink):
            yield from iter_values(spool)

    def _lock(self) -> int | None:
        """The lock of the run's last command; None: nobody ever held it."""
        epoch = run_epoch(self.home)
        lock = try_lock(marker(self.home, epoch)) if epoch else None
        if epoch and lock is None:
            raise Held(describe(self.home, epoch))
        return lock
