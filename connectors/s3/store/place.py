"""One bucket's sinks of one run, and the working prefix among them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from penstock.connectors.base import SinkName
from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import Stored, client
from penstock.connectors.s3.store import manifest, parts, told
from penstock.connectors.s3.store import run as s3_run
from penstock.connectors.s3.store.beacon import BEAT_S
from penstock.connectors.s3.store.home import Home
from penstock.connectors.s3.urls import Where
from penstock.engine.errors import SpecError

if TYPE_CHECKING:
    from penstock.connectors.s3.store.store import S3Store
    from penstock.connectors.settings import S3Sink


def bucket_of(settings: S3Sink) -> str:
    """Names the store: all sinks of one bucket."""
    return f"s3:{settings.endpoint or ''}/{settings.bucket}"


def root_of(settings: S3Sink) -> str:
    """The working prefix beside a sink; readers of data sets pass over names that start with a dot. Its name is all of
    the sink's but the ending: `results.replay-1.jsonl` is another run's place than `results.jsonl`."""
    folder, _, name = settings.prefix.rpartition("/")
    inside = f"{folder}/" if folder else ""
    return f"{inside}.{PurePosixPath(name).stem}.penstock/" if name else f"{inside}.penstock/"


class S3Place:
    """Implements `base.Place`. `sinks`: those of one bucket, not empty."""

    def __init__(self, sinks: dict[SinkName, S3Sink], run_id: str) -> None:
        self._sinks = sinks
        self._run_id = run_id

    @cached_property
    def base(self) -> s3_run.Base:
        first = next(iter(self._sinks.values()))
        stored = Stored(sse=first.sse, sse_kms_key_id=first.sse_kms_key_id)
        return s3_run.Base(client(first.endpoint, first.region), first.bucket, root_of(first), stored)

    def open(self) -> S3Store:
        from penstock.connectors.s3.store.store import S3Store, is_prefix

        for sink, output in self._sinks.items():
            if output.partition_by and not is_prefix(output):
                raise SpecError(
                    f"sink {sink}: partition_by wants a prefix, and {output.prefix!r} is one object. "
                    "End it with a slash."
                )
        fence.prove(self.base.s3, self.base.bucket, self.base.root, self.base.stored)
        life = s3_run.claim(self.base, self._run_id)
        return S3Store(life, {str(sink): output for sink, output in self._sinks.items()})

    async def refuse_held(self) -> None:
        home = await asyncio.to_thread(self._home)
        held = await s3_run.read_hold(home) if home is not None else None
        if home is not None and held is not None:
            await s3_run.refuse_live(home, held[0], BEAT_S)

    async def discard(self) -> None:
        await self.refuse_held()
        await asyncio.to_thread(self._discard)

    def _discard(self) -> None:
        """From the new life on nothing of the old one counts; then it is deleted, lanes' progress first: an owner that
        sleeps looks there before it sends anything."""
        old = s3_run.begin_anew(self.base, self._run_id)
        if old is None:
            return
        home = self.base.home(old)
        self.base.s3.delete(self.base.bucket, [home.key(name) for name in home.list("progress/")])
        for page in self.base.s3.pages(self.base.bucket, home.root):
            self.base.s3.delete(self.base.bucket, [one.key for one in page])
        self._delete_unlisted(old)

    def _delete_unlisted(self, life: str) -> None:
        """Objects of that life that readers were never told of."""
        shown: set[str] = set()
        for output in self._sinks.values():
            found, _ = manifest.read(self.base, f"{output.prefix}{manifest.NAME}")
            shown |= set(manifest.keys(self.base, found)) if found is not None else set()
        for output in self._sinks.values():
            for page in self.base.s3.pages(self.base.bucket, output.prefix):
                ours = [one.key for one in page if one.key.rpartition("/")[2].startswith(f"part-{life}-")]
                self.base.s3.delete(self.base.bucket, [key for key in ours if key not in shown])

    def committed(self, sink: SinkName) -> Iterator[bytes]:
        from penstock.connectors.writing.tables import read_records

        home, output = self._home(), self._sinks[sink]
        if home is None:
            return
        seen = told.snapshot(home, sink)
        untold = [final.key for final in told.untold(home, sink, seen)]
        for key in itertools.chain(told.keys(home, seen.told), untold):
            yield from read_records(Where(output.bucket, key, output.endpoint, output.region).url)
        yield from parts.committed(home, seen.lanes, sink)

    def _home(self) -> Home | None:
        """None: nothing of this run is here."""
        found = s3_run.read_mark(self.base)
        if found is None or found[0].run_id != self._run_id:
            return None
        return self.base.home(found[0].life)
