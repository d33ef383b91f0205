"""From a source into the state: outcomes are kept first, then how far the source was read. So a kill loses none, and
what is read again is known by its key."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import msgspec

from penstock.connectors.appending import Appending
from penstock.connectors.base import Raw
from penstock.connectors.documents import State
from penstock.connectors.reading.records_from import records_from, to_the_end
from penstock.connectors.registry import open_source
from penstock.connectors.settings import KafkaSource, SourceSettings
from penstock.engine.errors import Corrupt
from penstock.engine.fingerprints import short_hash
from penstock.engine.outcomes import Finished, Joined, Keys, Outcome, Outcomes, together
from penstock.jobs.audited import record
from penstock.jobs.feedback.reading import read
from penstock.jobs.history import open_history

PREFIX = "outcomes/"
EXAMPLES = 3
HELD = 500_000
"""Outcomes in memory while they are joined: some 150 MB."""

_outcome = msgspec.json.Decoder(Outcome)


class Took(msgspec.Struct, frozen=True):
    """What came of reading a source, in outcomes. `malformed`: why → how many; `examples`: the first few, in full."""

    new: int = 0
    repeated: int = 0
    contradicted: int = 0
    malformed: int = 0
    examples: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return self.new + self.repeated + self.contradicted + self.malformed


class Kept:
    """The outcomes of one state URL."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._log = Appending(state, PREFIX)
        self._known = Keys()
        self._doubtful = False
        """An append failed: some of what is known may not be kept."""

    def load(self) -> None:
        """Learn what is kept, before anything is taken. Raises `Corrupt`."""
        self._known = Keys()
        for outcome in self._all():
            self._known.add(outcome)
        self._doubtful = False

    def joined(
        self, results: Callable[[], Iterable[Finished]], ended_at: str | None = None, held: int = HELD
    ) -> Joined:
        """All that are kept, joined to results. `results` is asked once for so many outcomes as are `held` in memory
        at a time. `ended_at`: when the run ended. Raises `Corrupt`."""
        parts = max(1, math.ceil(sum(1 for _ in self._log.lines()) / held))
        return together([self._part(part, parts).join(results(), ended_at) for part in range(parts)])

    def _part(self, part: int, parts: int) -> Outcomes:
        made = Outcomes(part, parts)
        for outcome in self._all():
            made.add(outcome)
        return made

    def _all(self) -> Iterator[Outcome]:
        for line in self._log.lines():
            try:
                yield _outcome.decode(line)
            except msgspec.DecodeError as error:
                raise Corrupt(f"an outcome under {PREFIX} can't be read ({error}); was it changed?") from error

    def take(self, outcomes: list[Outcome]) -> Took:
        """Keep the new ones, durable when it returns. Raises `Temporary`, and then takes the same ones again."""
        if self._doubtful:
            self.load()
        self._doubtful = True
        told = [(outcome, self._known.add(outcome)) for outcome in outcomes]
        new = [outcome for outcome, first in told if first is None]
        self._log.append([msgspec.json.encode(outcome) for outcome in new])
        self._doubtful = False
        repeated = sum(first == outcome.value for outcome, first in told)
        return Took(len(new), repeated, len(told) - len(new) - repeated)

    def pull(self, settings: SourceSettings) -> Took:
        """Read what is new in a source, to its present end. Raises what sources raise, and `Temporary`."""
        return asyncio.run(self._pull(to_the_end(settings), f"feedback/{short_hash(msgspec.json.encode(settings))}"))

    async def _pull(self, settings: SourceSettings, key: str) -> Took:
        found = self._state.get(f"{key}.json")
        if found is not None:
            cursors = msgspec.json.decode(found[0], type=dict[str, int])
        else:
            cursors = await _begins(settings)
            self._state.put(f"{key}.json", msgspec.json.encode(cursors), None)
        source, took = open_source(_from_there_on(settings)), Took()
        splits = await source.splits(1)
        if not isinstance(settings, KafkaSource):  # a file that grew is another object: else one more at each look
            cursors = {split.object_id: cursors[split.object_id] for split in splits if split.object_id in cursors}
        async for split, records in records_from(source, splits, cursors):
            took = added(took, self._take(records))
            cursors[split.object_id] = records[-1].position.position + 1
            self._state.put(f"{key}.json", msgspec.json.encode(cursors), None)
        return took

    def _take(self, records: list[Raw]) -> Took:
        now = time.time()
        told = [(raw, read(raw, now)) for raw in records]
        good = [outcome for _, outcome in told if isinstance(outcome, Outcome)]
        bad = [f"at {raw.position.position}: {why}" for raw, why in told if isinstance(why, str)]
        return msgspec.structs.replace(self.take(good), malformed=len(bad), examples=tuple(bad[:EXAMPLES]))


async def _begins(settings: SourceSettings) -> dict[str, int]:
    """Where a topic is begun is asked once: `latest`, or where a group stands, is elsewhere at each look, and what came
    between two of them would never be read."""
    if not isinstance(settings, KafkaSource) or settings.start == "earliest":
        return {}
    return {split.object_id: split.start for split in await open_source(settings).splits(1)}


def _from_there_on(settings: SourceSettings) -> SourceSettings:
    """What is not known yet by then, as a partition that was added, is wanted whole."""
    return msgspec.structs.replace(settings, start="earliest") if isinstance(settings, KafkaSource) else settings


def added(a: Took, b: Took) -> Took:
    counts = Counter(_counts(a)) + Counter(_counts(b))
    return Took(**counts, examples=(a.examples + b.examples)[:EXAMPLES])


def write_down(took: Took, url: str, source: str, run_id: str) -> None:
    """Into the audit log, where anything was learned. Raises `Temporary`, `Corrupt`."""
    if took.new or took.contradicted:
        record(open_history(url), "feedback", run_id, {"source": source, **_counts(took)})


def _counts(took: Took) -> dict[str, int]:
    return {name: getattr(took, name) for name in ("new", "repeated", "contradicted", "malformed")}
