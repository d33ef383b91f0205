"""One bucket's sinks of one run, and the working prefix among them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from penstock.connectors.base import SinkName
from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import Stored, client, threads
from penstock.connectors.s3.store import manifest, parts, told
from penstock.connectors.s3.store import run as s3_run
from penstock.connectors.s3.store.beacon import BEAT_S
from penstock.connectors.s3.store.home import Home
from penstock.connectors.s3.urls import Where
from penstock.engine.errors import Corrupt, SpecError, Temporary

if TYPE_CHECKING:
    from penstock.connectors.s3.store.store import S3Store
    from penstock.connectors.settings import S3Sink


def bucket_of(settings: S3Sink) -> str:
    """Names the store: all sinks of one bucket."""
    return f"s3:{settings.endpoint or ''}/{settings.bucket}"


class S3Place:
    """Implements `base.Place`. `sinks`: those of one bucket, not empty."""

    def __init__(self, sinks: dict[SinkName, S3Sink], run_id: str) -> None:
        self._sinks = sinks
        self._run_id = run_id

    @cached_property
    def base(self) -> s3_run.Base:
        first = next(iter(self._sinks.values()))
        stored = Stored(sse=first.sse, sse_kms_key_id=first.sse_kms_key_id)
        return s3_run.Base(client(first.endpoint, first.region), first.bucket, s3_run.root_of(first.prefix), stored)

    def open(self) -> S3Store:
        from penstock.connectors.s3.store.store import S3Store, is_prefix

        for sink, output in self._sinks.items():
            if output.partition_by and not is_prefix(output):
                raise SpecError(
                    f"sink {sink}: partition_by wants a prefix, and {output.prefix!r} is one object. "
                    "End it with a slash."
                )
        single = not all(map(is_prefix, self._sinks.values()))
        fence.prove(self.base.s3, self.base.bucket, self.base.root, self.base.stored, parts=single)
        marks = dict(zip(self._bases(), threads().map(s3_run.read_mark, self._bases()), strict=True))
        life, *_ = self._claimed({base: mark[0] if mark is not None else None for base, mark in marks.items()})
        return S3Store(life, {str(sink): output for sink, output in self._sinks.items()})

    def _claimed(self, marks: Mapping[s3_run.Base, s3_run.RunMark | None]) -> Iterator[s3_run.Life]:
        """All outputs are asked for before any is taken. `marks`: what was just read there."""

        def owner(output: S3Sink) -> str | None:
            mark = marks[self.base.at(output.prefix)]
            return mark.run_id if mark is not None else self._shown(output)

        def claim(base: s3_run.Base) -> s3_run.Life:
            return s3_run.claim(base, self._run_id, marks[base])

        outputs = list(self._sinks.values())
        for output, run_id in zip(outputs, threads().map(owner, outputs), strict=True):
            s3_run.refuse_another(self.base, output.prefix, run_id, self._run_id)
        s3_run.refuse_old_names(self.base, [output.prefix for output in outputs], self._run_id)
        return threads().map(claim, marks)

    def _bases(self) -> list[s3_run.Base]:
        """Of all outputs, the first one's first."""
        return list(dict.fromkeys(self.base.at(output.prefix) for output in self._sinks.values()))

    def _shown(self, output: S3Sink) -> str | None:
        """The run whose manifest readers are shown there."""
        from penstock.connectors.s3.store.store import is_prefix

        shown, _ = manifest.read(self.base, f"{output.prefix}{manifest.NAME}") if is_prefix(output) else (None, None)
        return shown.run_id if shown is not None else None

    async def refuse_held(self) -> None:
        for base in self._bases():
            mark = await asyncio.to_thread(s3_run.read_mark, base)
            held = await s3_run.read_hold(base.home(mark[0].life)) if mark is not None else None
            if mark is not None and held is not None:
                await s3_run.refuse_live(base.home(mark[0].life), held[0], BEAT_S)

    async def discard(self) -> None:
        await self.refuse_held()
        await asyncio.to_thread(self._discard)

    def _discard(self) -> None:
        """From the new life on nothing of the old one counts; then it is deleted, lanes' progress first: an owner that
        sleeps looks there before it sends anything."""
        lives = [(base, life) for base in self._bases() if (life := s3_run.begin_anew(base, self._run_id)) is not None]
        for base, life in lives:
            home = base.home(life)
            base.s3.delete(base.bucket, [home.key(name) for name in home.list("progress/")])
            for page in base.s3.pages(base.bucket, home.root):
                base.s3.delete(base.bucket, [one.key for one in page])
        self._delete_unlisted(tuple(f"part-{life}-" for _, life in lives))

    def _delete_unlisted(self, names: tuple[str, ...]) -> None:
        """Objects of those names that readers were never told of."""
        shown: set[str] = set()
        for output in self._sinks.values():
            found, _ = manifest.read(self.base, f"{output.prefix}{manifest.NAME}")
            shown |= set(manifest.keys(self.base, found)) if found is not None else set()
        for output in self._sinks.values():
            for page in self.base.s3.pages(self.base.bucket, output.prefix):
                ours = [one.key for one in page if one.key.rpartition("/")[2].startswith(names)]
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
        try:
            yield from parts.committed(home, seen.lanes, sink)
        except Corrupt as error:
            if parts.lanes(home, list(seen.lanes)) == seen.lanes:
                raise
            raise Temporary(
                f"{home} changed while it was read: the run put its records together. Try again."
            ) from error

    def _home(self) -> Home | None:
        """None: nothing of this run is here."""
        found = s3_run.read_mark(self.base)
        if found is None or found[0].run_id != self._run_id:
            return None
        return self.base.home(found[0].life)
