"""What a version touched, sent again: results that it gave, as a new generation of their items.

By the same machinery as a replay of dead letters (`jobs.replay`): a run of its own over a file of records, whose
originals are read again from the run's source (those that a replay has sent already: from its file). So a finished
run is never opened again, and a reader of all outputs takes, for each `item_id`, the record of the highest generation.

A run without an end is taken as far as it is committed, while it goes or not: a committed result is final. Its topics
are read from the first to the last offset that is wanted; what they hold no more is lost.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import NamedTuple

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.reading.envelope import seal
from penstock.connectors.reading.intake import Ids
from penstock.connectors.reading.records_from import to_the_end
from penstock.connectors.registry import open_source
from penstock.connectors.settings import KafkaSource, SourceSettings
from penstock.connectors.writing.records import readable
from penstock.engine.catalog import Price
from penstock.engine.errors import PenstockError, SpecError
from penstock.engine.items import Usage
from penstock.engine.plan import Split
from penstock.engine.pricing import cost_nano
from penstock.engine.steering.rollout import Rollout
from penstock.jobs import letter_files, replay
from penstock.jobs.forecasting.sampling import BATCH, next_batch
from penstock.jobs.history import History, goes_on, is_over, is_silent
from penstock.jobs.look import told
from penstock.jobs.look.reading import Outputs
from penstock.jobs.wording import at_state
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

CLOCKS_APART_S = 300.0
"""A record's time is its lane's, a rollout's that of whoever started it. A guess: clocks that nobody mends differ by
less. What the version answered in the minutes before its rollout, if anything, is priced and sent again with it."""

_encode = msgspec.json.Encoder().encode


Spans = dict[str, tuple[int, int]]
"""Object of the input → first and last position of what is wanted of it."""


class Touched(msgspec.Struct):
    """Items of one run whose last record is the version's. `generations`: item id (its bytes) → that record's."""

    run_id: str
    number: int
    """The replay's, where nobody begins another one of the run first."""
    generations: dict[bytes, int] = {}
    cost_nano: int = 0
    """What they cost: the tokens of their answers at the price of the version that answers now, where both are known;
    else what was paid the first time."""
    priced: int = 0
    """How many are reckoned at that price."""
    spans: Spans = {}
    """Where they stand in the run's input: of one without an end, which is not read as a whole."""
    goes_on: bool = False
    """What the version had under way may still be committed."""


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
    original_encoding: str = "utf-8"
    generation: int = 0
    envelope: str | None = None

    @property
    def bytes(self) -> bytes:
        if self.original_encoding == "base64":
            return base64.b64decode(self.original)
        return self.original.encode("utf-8", "surrogatepass")


_decode = msgspec.json.Decoder(_Line).decode


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
    number = replay.next_number(history, run.run_id)
    runs = [run, *map(history.status_or_starting, replay.of_this_life(history, run.run_id))]
    if all(_ended_before(each, since) for each in runs):
        return []
    ending = runs[1:] if spec.endless else runs
    unfinished = [Left(each.run_id, why) for each in ending if (why := _unfinished(each, history.url)) is not None]
    if unfinished:  # what it has under way may end well: sent again now, it would be paid for twice
        return unfinished
    one = _of_run(history, runs, number, at, since)
    return one if one.generations else []


def _unfinished(run: RunStatus, state: str) -> str | None:
    """What has to happen first; None: it is finished."""
    if goes_on(run) and not is_silent(run, time.time()):
        return f"it has not ended ({run.state}); give --requeue again when it has"
    if replay.is_finished(run):
        return None
    was = run.state if is_over(run) else "its command is gone"
    return f"it was not finished ({was}): penstock run {run.run_id} {at_state(state)} finishes it; then --requeue again"


def _ended_before(run: RunStatus, since: float) -> bool:
    return bool(run.started_at) and run.ended_at is not None and run.ended_at < since


def _of_run(history: History, runs: list[RunStatus], number: int, at: Rollout, since: float) -> Touched:
    """`runs`: one, and its replays in order. What a replay sent is told by its own records alone."""
    spec = history.spec(runs[0].run_id)
    found = Touched(runs[0].run_id, number, {}, goes_on=goes_on(runs[0]), spans={})
    costs, price = dict[bytes, tuple[int, bool]](), _price(spec, at)
    for run in runs:
        for item in replay.sent_ids(history, run.run_id) if run is not runs[0] else ():
            found.generations.pop(item, None)
        outputs = Outputs(history.spec(run.run_id), run)
        for record in told.blocks(outputs.records("results")):
            item = bytes.fromhex(record.item_id)
            late = record.finished_at is not None and record.finished_at.timestamp() >= since
            if late and (record.model, record.model_version) == (at.model, at.candidate):
                found.generations[item], costs[item] = record.generation, _cost(record, price)
                if run is runs[0] and spec.endless and record.source is not None:
                    _widen(found.spans, record.source)
            else:  # a later generation was answered by another
                found.generations.pop(item, None)
    found.cost_nano = sum(costs[item][0] for item in found.generations)
    found.priced = sum(costs[item][1] for item in found.generations)
    return found


def _price(spec: RunSpec, at: Rollout) -> Price | None:
    """Of the version that answers now. None: it is not known, as that of own engines is not before the end."""
    model = spec.catalog.models[at.model]
    version = next((one for one in model.versions if one.id == at.baseline), None)
    return None if version is None else version.price or model.price


def _cost(record: told.Told, price: Price | None) -> tuple[int, bool]:
    """Nano-dollars, and whether they are at that price."""
    tokens = record.answer_tokens or record.tokens
    if price is None or tokens is None:
        return told.nano(record.cost_usd), False
    usage = Usage(tokens.input, tokens.cached, tokens.cache_write, 0, tokens.output, tokens.reasoning)
    return cost_nano(usage, price), True


def _widen(spans: Spans, at: told.SourceTold) -> None:
    """A split is named by its object, a `#`, and the range that it had then."""
    name = at.split.rpartition("#")[0] or at.split
    first, last = spans.get(name, (at.position, at.position))
    spans[name] = min(first, at.position), max(last, at.position)


def prepare(history: History, of: Touched) -> Prepared:
    """Write the file of records, and make the spec of the run that sends them. Raises `SpecError`, `Temporary`."""
    spec = history.spec(of.run_id)
    lines = list(_sent_before(history, of))
    rest = msgspec.structs.replace(of, generations=dict(of.generations))
    for item, _, _ in lines:
        del rest.generations[item]
    if rest.generations:
        lines += asyncio.run(_collect(spec, rest))
    if not lines:
        raise SpecError(f"none of the {len(of.generations):,} items of {of.run_id} is in its source any more")
    file = letter_files.new(history.url, of.run_id, of.number)
    letter_files.write(file, (line for _, line, _ in lines), history.url)
    batch = any(replay.is_batch(spec.source, original) for _, _, original in lines)
    generation = max(replay.next_generation(history, of.run_id), 1 + max(of.generations.values()))
    made = replay.again(spec, of.number, file, generation=generation, batch=batch)
    return Prepared(made, len(lines), len(of.generations) - len(lines))


Sent = tuple[bytes, bytes, bytes]
"""An item (its id), its line, and its original. Held in memory: what a bad version touched is a share of the run."""


def _sent_before(history: History, of: Touched) -> Iterator[Sent]:
    """What replays of the run have sent is in their files still, whatever became of the source."""
    kept = dict[bytes, Sent]()
    for run_id in replay.of_this_life(history, of.run_id):
        for line in letter_files.read(letter_files.of(history.spec(run_id).source)):
            letter = _decode(line)
            item = bytes.fromhex(letter.item_id)
            generation = of.generations.get(item)
            if generation == letter.generation + 1:
                again = msgspec.structs.replace(letter, generation=generation)
                kept[item] = item, _encode(again), letter.bytes
    yield from kept.values()


async def _collect(spec: RunSpec, of: Touched) -> list[Sent]:
    ids, lines = Ids(spec.run_id), list[Sent]()
    async for raw in records(spec, of.spans):
        item_id = ids.of(raw)
        item = bytes.fromhex(item_id)
        generation = of.generations.get(item)
        original = raw.row_json or raw.data  # of what a registry's schema is wanted to read, the row that it made
        if generation is not None and raw.error is None:
            text, encoding = readable(original)
            line = _Line(item_id, text, encoding, generation, seal(raw.key, raw.headers))
            lines.append((item, _encode(line), original))
    return lines


async def records(spec: RunSpec, spans: Mapping[str, tuple[int, int]] | None = None) -> AsyncIterator[Raw]:
    """The whole input of a run, once more; of one without an end what `spans` says of it."""
    source = open_source(_as_it_is_now(spec.source) if spec.endless else spec.source)
    splits = await source.splits(1)
    if spec.endless:
        splits = [part for split in splits for part in _within(split, spans or {})]
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


def _as_it_is_now(source: SourceSettings) -> SourceSettings:
    """All that a topic still holds, whatever the run's first start was. Nothing is mirrored to its group."""
    if isinstance(source, KafkaSource):
        source = msgspec.structs.replace(source, start="earliest", group=None)
    return to_the_end(source)


def _within(split: Split, spans: Mapping[str, tuple[int, int]]) -> Iterator[Split]:
    """As much of it as is wanted and still there."""
    if split.object_id not in spans:
        return
    first, last = spans[split.object_id]
    start, end = max(split.start, first), last + 1 if split.end is None else min(split.end, last + 1)
    if start < end:
        yield msgspec.structs.replace(split, start=start, end=end)
