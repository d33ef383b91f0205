"""What a version touched, sent again: results that it gave, as a new generation of their items.

By the same machinery as a replay of dead letters (`jobs.replay`): a run of its own over a file of records, whose
originals are read again from the run's source. So a finished run is never opened again, and a reader of all outputs
takes, for each `item_id`, the record of the highest generation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.reading.envelope import seal
from penstock.connectors.reading.intake import Ids
from penstock.connectors.registry import open_source
from penstock.connectors.writing.records import readable
from penstock.engine.errors import PenstockError, SpecError, Temporary
from penstock.engine.items import NANO_PER_USD
from penstock.engine.steering.rollout import Rollout
from penstock.jobs import replay
from penstock.jobs.forecasting.sampling import BATCH, next_batch
from penstock.jobs.history import History, is_over, is_silent
from penstock.jobs.look import told
from penstock.jobs.look.reading import Outputs
from penstock.jobs.wording import at_state
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

CLOCKS_APART_S = 300.0
"""A record's time is its lane's, a rollout's that of whoever started it. A guess: clocks that nobody mends differ by
less. What the version answered in the minutes before its rollout, if anything, is priced and sent again with it."""

_encode = msgspec.json.Encoder().encode


class Touched(msgspec.Struct):
    """Items of one run whose last record is the version's. `generations`: item id (its bytes) → that record's."""

    run_id: str
    generations: dict[bytes, int] = {}
    cost_nano: int = 0
    """What their answers cost the first time."""


class Prepared(msgspec.Struct, frozen=True):
    spec: RunSpec
    sent: int
    lost: int
    """Items that are not in the source any more, or were kept only in part."""


class Left(NamedTuple):
    """A run of which nothing is sent now. `error`: what has to be mended first; None: it only has to end."""

    run_id: str
    why: str
    error: PenstockError | None = None


class _Line(msgspec.Struct, frozen=True):
    """As much of a dead-letter record as `ReplayIntake` needs."""

    item_id: str
    original: str
    original_encoding: str
    generation: int
    envelope: str | None


def touched(history: History, at: Rollout) -> tuple[list[Touched], list[Left]]:
    """(by run, those left out, replays among them). Of each item the record of the highest generation counts. A run
    that can't be read holds up no other. Raises `SpecError` where nobody knows when the version's answers begin."""
    if at.since is None:
        raise SpecError(
            f"nothing is sent again: {at.model}@{at.candidate} was live before any rollout that is known here, so it "
            f"can't be told since when its answers are bad; {at.baseline} is live for all"
        )
    found: list[Touched] = []
    left: list[Left] = []

    def unread(run_id: str, error: PenstockError) -> None:
        left.append(Left(run_id, str(error), error))

    for run in history.runs(unread):
        try:
            one = _touched(history, run, at, at.since - CLOCKS_APART_S)
        except PenstockError as error:
            left.append(Left(run.run_id, str(error), error))
            continue
        if isinstance(one, Touched):
            found.append(one)
        else:
            left += one
    return found, left


def _touched(history: History, run: RunStatus, at: Rollout, since: float) -> Touched | list[Left]:
    """What it touched in one run; else those that must end first, or none. What an evaluation or a trial
    answered is nobody's result."""
    spec = None if replay.MARK in run.run_id else history.spec(run.run_id)
    if spec is None or spec.pinned or spec.limit is not None or at.model not in spec.catalog.models:
        return []
    runs = [run, *map(history.status_or_starting, replay.of_this_life(history, run.run_id))]
    if all(_ended_before(each, since) for each in runs):
        return []
    unfinished = [Left(each.run_id, why) for each in runs if (why := _unfinished(each, history.url)) is not None]
    if unfinished:  # what it has under way may end well: sent again now, it would be paid for twice
        return unfinished
    one = _of_run(history, runs, at, since)
    return one if one.generations else []


def _unfinished(run: RunStatus, state: str) -> str | None:
    """What has to happen first; None: it is finished."""
    if not is_over(run) and not is_silent(run, time.time()):
        return f"it has not ended ({run.state}); give --requeue again when it has"
    if is_over(run) and run.state not in ("interrupted", "cancelled", "failed"):
        return None
    was = run.state if is_over(run) else "its command is gone"
    return f"it was not finished ({was}): penstock run {run.run_id} {at_state(state)} finishes it; then --requeue again"


def _ended_before(run: RunStatus, since: float) -> bool:
    return bool(run.started_at) and run.ended_at is not None and run.ended_at < since


def _of_run(history: History, runs: list[RunStatus], at: Rollout, since: float) -> Touched:
    """`runs`: one, and its replays in order. What a replay sent is told by its own records alone."""
    found, paid = Touched(runs[0].run_id, {}), dict[bytes, int]()
    for run in runs:
        for item in replay.sent_ids(history, run.run_id) if run is not runs[0] else ():
            found.generations.pop(item, None)
        outputs = Outputs(history.spec(run.run_id), run)
        for record in told.blocks(outputs.records("results")):
            item = bytes.fromhex(record.item_id)
            late = record.finished_at is not None and record.finished_at.timestamp() >= since
            if late and (record.model, record.model_version) == (at.model, at.candidate):
                found.generations[item], paid[item] = record.generation, round(record.cost_usd * NANO_PER_USD)
            else:  # a later generation was answered by another
                found.generations.pop(item, None)
    found.cost_nano = sum(paid[item] for item in found.generations)
    return found


def prepare(history: History, of: Touched) -> Prepared:
    """Write the file of records, and make the spec of the run that sends them. Raises `SpecError`, `Temporary`."""
    spec = history.spec(of.run_id)
    if spec.endless:
        raise SpecError(f"{of.run_id} reads a stream without an end: what it touched can't be read again from there")
    number = len(replay.replays(history, of.run_id)) + 1
    path = replay.source_path(history.url, of.run_id, number)
    lines = asyncio.run(_collect(spec, of))
    if not lines:
        raise SpecError(f"none of the {len(of.generations):,} items of {of.run_id} is in its source any more")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(line + b"\n" for line, _ in lines))
    except OSError as error:
        raise Temporary(f"can't write {path}: {error.strerror}") from error
    batch = any(replay.is_batch(original) for _, original in lines)
    generation = replay.next_generation(history, of.run_id)
    made = replay.again(spec, number, path, generation=generation, batch=batch)
    return Prepared(made, len(lines), len(of.generations) - len(lines))


async def _collect(spec: RunSpec, of: Touched) -> list[tuple[bytes, bytes]]:
    """(line, original) of each. Held in memory: what a bad version touched is a share of the run."""
    ids, lines = Ids(spec.run_id), list[tuple[bytes, bytes]]()
    async for raw in records(spec):
        item_id = ids.of(raw)
        generation = of.generations.get(bytes.fromhex(item_id))
        original = raw.data or raw.row_json or b""
        if generation is not None and raw.length <= len(original):
            text, encoding = readable(original)
            lines.append((_encode(_Line(item_id, text, encoding, generation, seal(raw.key, raw.headers))), original))
    return lines


async def records(spec: RunSpec) -> AsyncIterator[Raw]:
    """The whole input of a run, once more."""
    source = open_source(spec.source)
    splits = await source.splits(1)
    reader = await source.open([(split, split.start) for split in splits])
    try:
        while True:
            batch = await next_batch(reader, *BATCH)
            for raw in batch.records:
                yield raw
            if batch.done:
                return
    finally:
        await reader.close()
