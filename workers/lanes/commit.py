"""A lane's way out: what the machine finished becomes records; the primary commits them, followers come after."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from penstock.connectors.base import OutRecord, Records, SinkName
from penstock.connectors.registry import Stores
from penstock.connectors.writing.records import Encoder
from penstock.engine.errors import Corrupt
from penstock.engine.flow.cells import CELLS
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import CommitBatch
from penstock.engine.items import Position
from penstock.engine.plan import Epoch
from penstock.engine.results import DeadLetter, Result, Score, ShadowAnswer
from penstock.workers.lanes.letters import fitted

_LAST = 1 << 31
"""Sorts closing lines behind all items."""

Batches = dict[str, list[OutRecord]]


class LaneCommit:
    def __init__(
        self, lane: int, epoch: Epoch, machine: Lane, stores: Stores, encoder: Encoder, now: Callable[[], float]
    ) -> None:
        self.at = 0.0
        """When the last commit was durable."""
        self.due_at: float | None = None
        """Since when something waits for a commit that is not durable yet."""
        self.done = False
        """All of the lane's items have ended and are committed."""
        self.cells = b""
        """The committed ones, as the progress holds them."""
        self.committed: Callable[[CommitBatch], object] = _nobody
        self._lane = lane
        self._epoch = epoch
        self._machine = machine
        self._stores = stores
        self._encoder = encoder
        self._now = now
        self._placement: dict[str, str] = {**stores.placement}
        self._bounds = {sink: stores.bounded(sink) for sink in ("results", "quality", "dead_letters", "review")}
        self._encoded: dict[tuple[str, int], OutRecord] = {}
        """Results that were looked at and wait for their commit."""
        self._applied: dict[str, int] = {}
        """Follower → the last batch it has."""

    def begin(self) -> None:
        """The machine has taken up the last owner's progress: what it finishes from here on is looked at."""
        if self._bounds["results"] is not None:
            self._machine.ends.unfit = self._unfit

    def due(self, due: bool, now: float) -> bool:
        """While no commit is under way: is one wanted?"""
        self.due_at = (now if self.due_at is None else self.due_at) if due else None
        return due

    async def commit(self) -> float:
        """One commit on the primary; returns when it began. Raises what `Store.commit` raises."""
        started = self._now()
        batch = self._machine.commit(started)
        own, follow = self._place(self._encode(batch))
        chunks = batch.chunks
        if follow:
            name, data = self._machine.outbox.add(msgspec.msgpack.encode(follow))
            chunks[name] = data
        await self._stores.primary.commit(self._lane, self._epoch, batch.seq, own, chunks)
        self.at, self.due_at = self._now(), None
        self.done, self.cells = batch.saved.done, chunks[CELLS]
        self._machine.committed(self.at)
        self.committed(batch)
        return started

    async def take_followers(self, *, force: bool) -> None:
        """Fence older owners there too, and learn how far each has come. Raises `Corrupt` where a follower is not the
        one that the batches were made for."""
        for key, store in self._stores.followers.items():
            self._applied[key] = (await store.take(self._lane, self._epoch, force=force)).seq
            self._check(key)
        await self.apply_outbox()

    def _check(self, key: str) -> None:
        sinks = " and ".join(sink for sink, place in self._placement.items() if place == key)
        has, last = self._applied[key], self._machine.outbox.next_number - 1
        match self._machine.outbox.lacks(has):
            case "ahead":
                raise Corrupt(
                    f"{sinks} at {key} have batch {has} of lane {self._lane}, the results only {last}: they are of "
                    f"another life of this run (its results were moved, pruned or restored). What comes now would be "
                    f"taken for what they have. Put the results back, or begin anew with --fresh."
                )
            case "behind":
                raise Corrupt(
                    f"{sinks} at {key} have batch {has} of lane {self._lane}, and the results go on behind {last}: the "
                    f"sink was moved or emptied. Put it back where it was until the run has ended, or begin anew with "
                    f"--fresh."
                )
            case None:
                pass

    async def apply_outbox(self) -> None:
        """Bring followers up to date, batch by batch, each from where it stands."""
        for number, data in self._machine.outbox.waiting():
            batches = msgspec.msgpack.decode(data, type=dict[str, Batches])
            if moved := [key for key in batches if key not in self._stores.followers]:
                raise Corrupt(
                    f"records wait for {', '.join(moved)}, which is no sink of this run any more. Put the sink back "
                    f"where it was and run once, so that they get there; or begin anew with --fresh."
                )
            for key, store in self._stores.followers.items():
                if number > self._applied[key]:
                    records: Records = batches.get(key, {})
                    await store.commit(self._lane, self._epoch, number, records, {})
                    self._applied[key] = number
            self._machine.outbox.applied(number)

    def _encode(self, batch: CommitBatch) -> Batches:
        results, quality, review = self._results(batch)
        dead = [self._dead(letter) for letter in batch.dead_letters]
        costs: list[OutRecord] = []
        for line, item in batch.costs:
            ordinal, position = (item.source.ordinal, item.source.position) if item else (_LAST, line.attempt)
            name = line.item_id or ""
            costs.append(OutRecord(ordinal, position, self._encoder.cost(line), line.attempt, item_id=name))
        records = {"results": results, "costs": costs, "quality": quality, "dead_letters": dead, "review": review}
        return {sink: lines for sink, lines in records.items() if lines}

    def _results(self, batch: CommitBatch) -> tuple[list[OutRecord], list[OutRecord], list[OutRecord]]:
        """Results, quality samples, and results for people to look at."""
        results: list[OutRecord] = []
        quality: list[OutRecord] = []
        review: list[OutRecord] = []
        for result in batch.results:
            item = result.item
            results.append(self._encoded.pop((item.item_id, item.generation), None) or self._result(result))
            redact = self._machine.catalog.redacts(result.route.wall)
            if redact is None:  # nothing of it may stand elsewhere
                continue
            if result.scores or result.shadows or result.doubted:
                quality += self._samples(result, redact=redact)
            if why := self._encoder.reasons(result):
                review.append(self._review(result, why, redact=redact))
        return results, quality, review

    def _samples(self, result: Result, *, redact: bool) -> list[OutRecord]:
        """Of the answer, of its shadows', and of those that its cascade did not believe."""
        scored = [(score, None) for score in result.scores]
        scored += [(score, other) for other in (*result.shadows, *result.doubted) for score in other.scores]
        return [self._quality(result, each, shadow, sub, redact=redact) for sub, (each, shadow) in enumerate(scored)]

    def _result(self, result: Result) -> OutRecord:
        item, place, value = result.item, result.item.source, self._encoder.result(result)
        return OutRecord(place.ordinal, place.position, value, key=item.key, headers=item.headers, item_id=item.item_id)

    def _unfit(self, result: Result) -> str | None:
        """Why the results' store can't take it: asked before it counts as a result."""
        record, store = self._result(result), self._bounds["results"]
        message = store.refuses("results", record) if store is not None else None
        if message is None:
            self._encoded[result.item.item_id, result.item.generation] = record
        return message

    def _quality(
        self, result: Result, score: Score, shadow: ShadowAnswer | None, sub: int, *, redact: bool
    ) -> OutRecord:
        def line(hide: bool) -> bytes:
            return self._encoder.quality(result, score, shadow=shadow, redact=hide)

        return self._fitting("quality", result, line, sub, redact=redact)

    def _review(self, result: Result, why: tuple[str, ...], *, redact: bool) -> OutRecord:
        def line(hide: bool) -> bytes:
            return self._encoder.review(result, why, redact=hide)

        return self._fitting("review", result, line, redact=redact)

    def _fitting(
        self, sink: SinkName, result: Result, line: Callable[[bool], bytes], sub: int = 0, *, redact: bool
    ) -> OutRecord:
        """Where what was said is too large for the sink, the rest goes alone. `line`: makes it, redacted if True."""
        item, store = result.item, self._bounds[sink]
        record = _record(item.source, line(redact), sub, item.item_id)
        if redact or store is None or store.refuses(sink, record) is None:
            return record
        return _record(item.source, line(True), sub, item.item_id)

    def _dead(self, letter: DeadLetter) -> OutRecord:
        """As much of it as the sink takes."""
        store = self._bounds["dead_letters"]
        if store is None:
            return self._letter(letter)
        return self._letter(fitted(letter, lambda one: store.refuses("dead_letters", self._letter(one)) is None))

    def _letter(self, letter: DeadLetter) -> OutRecord:
        place, source, value = letter.source, letter.item or letter, self._encoder.dead_letter(letter)
        return OutRecord(
            place.ordinal, place.position, value, key=source.key, headers=source.headers, item_id=letter.item_id
        )

    def _place(self, records: Batches) -> tuple[Batches, dict[str, Batches]]:
        """Records of the primary's own sinks, and those of each follower."""
        own: Batches = {}
        follow: dict[str, Batches] = {}
        for sink, lines in records.items():
            where = self._placement[sink]
            if where in self._stores.followers:
                follow.setdefault(where, {})[sink] = lines
            else:
                own[sink] = lines
        return own, follow


def _nobody(batch: CommitBatch) -> None:
    """Listens."""


def _record(place: Position, value: bytes, sub: int, item_id: str) -> OutRecord:
    return OutRecord(place.ordinal, place.position, value, sub, item_id=item_id)
