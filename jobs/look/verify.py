"""Compares what was offered, what a provider served, and what was committed.

Nothing here trusts the run's own counters: it reads the output files and the provider's journal. The crash tests use
it after every kill, and the demo prints its sums.

A *second payment* is a served call that no committed record tells of: its answer died with a process, so the item was
asked again. Each must be marked `maybe_paid` on its item, and there may be only so many of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from penstock.jobs.look.committed import Finished, Line, Outputs, Tried

Kind = Literal[
    "lost",  # offered, in no output
    "duplicate",  # twice in results, or twice in dead letters
    "both",  # in results and in dead letters
    "not_offered",  # committed, never offered
    "cost_line_missing",  # a billed attempt without a line in costs
    "cost_line_duplicate",  # two lines for one attempt, or one entry_id twice
    "cost_line_orphan",  # a line for an attempt that no record tells of
    "wrong_bill",  # a line, record or sum that disagrees with another, or with what was served
    "unserved",  # billed as metered, and the provider never served it
    "unmarked",  # a second payment whose item isn't marked maybe_paid
    "unknown_payment",  # a second payment that belongs to no committed item
    "too_many",  # more second payments than promised
    "sample_missing",  # a sampled result without its line in quality
    "sample_duplicate",
    "sample_orphan",  # a line in quality whose item isn't a sampled result
    "review_missing",  # a result that is for people, and not in their sink
    "review_duplicate",
    "review_orphan",  # in the sink for people, and no result that is for them
]


class Violation(msgspec.Struct, frozen=True):
    kind: Kind
    item: str
    """The item's key (its label, or `split@position`), an entry id, or a request id."""
    message: str


class Paid(msgspec.Struct, frozen=True):
    """One call that the provider served and would charge for."""

    request_id: str
    key: str = ""
    """Equal for equal requests (an item's label, or a hash of the body): links a lost answer to its item."""
    at: float = 0.0
    input: int | None = None
    output: int | None = None


class Report(msgspec.Struct, frozen=True):
    """What was found. `repeated`: second payments, as the provider's journal shows them."""

    violations: tuple[Violation, ...]
    offered: int
    results: int
    dead_letters: int
    lost: int
    twice: int
    repeated: int
    marked: int
    """Items that say `maybe_paid`."""
    cost_nano: int
    samples: int = 0
    """Lines in quality."""

    @property
    def clean(self) -> bool:
        return not self.violations

    def __str__(self) -> str:
        head = f"{self.lost} lost, {self.twice} twice, {self.repeated} repeated"
        return "\n".join([head, *(f"  {v.kind}: {v.item}: {v.message}" for v in self.violations)])


def journal_of(path: Path) -> list[Paid]:
    """The sandbox's journal (`penstock sandbox --journal`)."""
    from penstock.jobs.sandbox.ledger import read_journal

    return [Paid(e.request_id, e.key, e.at, e.input, e.output) for e in read_journal(path)]


Price = Callable[[Line], int | None]
"""What a cost line's tokens cost, in nano-dollars; None: not known here."""


Chosen = Callable[[Finished], bool]


def check(
    offered: Iterable[str],
    outputs: Outputs,
    journal: Sequence[Paid] | None = None,
    *,
    bound: int | None = None,
    price: Price | None = None,
    chosen: Chosen | None = None,
) -> Report:
    """Every way in which the three can disagree.

    offered: the items' keys as the outputs name them (see `committed.read_outputs`), each as often as it was offered.
    journal: None where nobody kept one (then payments aren't checked). bound: second payments that are allowed. chosen:
    which results are for people; None: not known.
    """
    wanted = Counter(offered)
    found = [*_presence(wanted, outputs), *_bills(outputs), *_samples(outputs)]
    found += _prices(outputs, price) if price is not None else ()
    found += _reviews(outputs, chosen)
    seconds: list[Paid] = []
    if journal is not None:
        seconds = _second_payments(outputs, journal)
        found += _payments(outputs, journal, seconds, bound)
    kinds = Counter(v.kind for v in found)
    return Report(
        violations=tuple(found),
        offered=wanted.total(),
        results=len(outputs.results),
        dead_letters=len(outputs.dead_letters),
        lost=kinds["lost"],
        twice=kinds["duplicate"] + kinds["both"],
        repeated=len(seconds),
        marked=sum(f.maybe_paid for f in outputs.finished),
        cost_nano=sum(line.cost_nano for line in outputs.costs),
        samples=len(outputs.quality),
    )


def _presence(wanted: Counter[str], outputs: Outputs) -> Iterator[Violation]:
    good, dead = (_by_item(part) for part in (outputs.results, outputs.dead_letters))
    for part, name in ((good, "results"), (dead, "dead letters")):
        for one in part.values():
            if len(one) > 1:
                yield Violation("duplicate", one[0].key, f"{len(one)} times in {name}")
    for both in good.keys() & dead.keys():
        yield Violation("both", good[both][0].key, "in results and in dead letters")
    items = {(f.key, f.item_id) for f in outputs.finished}
    seen = Counter(key for key, _ in items)
    for key in wanted.keys() | seen.keys():
        if seen[key] < wanted[key]:
            yield Violation("lost", key, f"offered {wanted[key]} times, found {seen[key]} times")
        elif seen[key] > wanted[key]:
            yield Violation("not_offered", key, f"offered {wanted[key]} times, found {seen[key]} times")


def _by_item(part: Iterable[Finished]) -> dict[tuple[str, int], list[Finished]]:
    grouped: defaultdict[tuple[str, int], list[Finished]] = defaultdict(list)
    for one in part:
        grouped[one.item_id, one.generation].append(one)
    return grouped


def _bills(outputs: Outputs) -> Iterator[Violation]:
    """Records against the costs sink: a line for each billed attempt, equal sums."""
    for entry, n in Counter(line.entry_id for line in outputs.costs).items():
        if n > 1:
            yield Violation("cost_line_duplicate", entry, f"entry_id stands {n} times in costs")
    lines: defaultdict[tuple[str, int], list[Line]] = defaultdict(list)
    for line in outputs.costs:
        if line.role != "adjustment":
            lines[line.item_id or "", line.generation].append(line)
    for one in outputs.finished:
        yield from _bill(one, lines.pop((one.item_id, one.generation), []))
    for (item, _), orphans in lines.items():
        yield Violation("cost_line_orphan", item or "?", f"{len(orphans)} lines, and no record has this item_id")
    billed = sum(one.cost_nano for one in outputs.finished)
    booked = sum(line.cost_nano for line in outputs.costs if line.role != "adjustment")
    if billed != booked:
        yield Violation("wrong_bill", "the sum", f"records say {billed} nano-dollars, costs say {booked}")


def _bill(one: Finished, lines: list[Line]) -> Iterator[Violation]:
    tried = sum(t.cost_nano for t in one.tried)
    if tried != one.cost_nano:
        yield Violation("wrong_bill", one.key, f"cost_usd is {one.cost_nano} nano-dollars, its attempts {tried}")
    for t in one.tried:
        mine = [line for line in lines if line.attempt == t.n and line.role == t.role]
        if len({line.entry_id for line in mine}) > 1:
            yield Violation("cost_line_duplicate", one.key, f"{len(mine)} lines for attempt {t.n}")
        elif not mine and t.cost_nano:
            yield Violation("cost_line_missing", one.key, f"attempt {t.n} cost {t.cost_nano} nano-dollars: no line")
        elif mine and mine[0].cost_nano != t.cost_nano:
            yield Violation("wrong_bill", one.key, f"attempt {t.n}: {t.cost_nano}, its line {mine[0].cost_nano}")
    known = {(t.n, t.role) for t in one.tried}
    for line in lines:
        if (line.attempt, line.role) not in known:
            yield Violation("cost_line_orphan", one.key, f"a line for attempt {line.attempt}, which its record lacks")


def _prices(outputs: Outputs, price: Price) -> Iterator[Violation]:
    for line in outputs.costs:
        right = price(line) if line.basis == "metered" else None
        if right is not None and right != line.cost_nano:
            yield Violation("wrong_bill", line.entry_id, f"{line.cost_nano} nano-dollars, its tokens cost {right}")


def _samples(outputs: Outputs) -> Iterator[Violation]:
    lines = Counter((s.item_id, s.scorer, s.role, s.model) for s in outputs.quality)
    scored = {sample.item_id for sample in outputs.quality}
    sampled = {one.item_id: one.key for one in outputs.results if one.sampled}
    judged = {one.item_id for one in outputs.results if any(tried.role == "judge" for tried in one.tried)}
    for item in sampled.keys() - scored - judged:  # a judge may have been left out
        yield Violation("sample_missing", sampled[item], "sampled, and not in quality")
    for item in scored - sampled.keys():
        yield Violation("sample_orphan", item, "in quality, and not a sampled result")
    for (item, scorer, _, _), n in lines.items():
        if n > 1:
            yield Violation("sample_duplicate", sampled.get(item, item), f"{n} lines of scorer {scorer}")


def _reviews(outputs: Outputs, chosen: Chosen | None) -> Iterator[Violation]:
    lines = Counter((line.item_id, line.generation) for line in outputs.review)
    results = {(one.item_id, one.generation): one for one in outputs.results}
    due = {place for place, one in results.items() if chosen(one)} if chosen is not None else lines.keys()
    for place in due - lines.keys():
        yield Violation("review_missing", results[place].key, "for people, and not in review")
    for item, generation in lines.keys() - (due & results.keys()):
        yield Violation("review_orphan", item, f"in review (generation {generation}), and no result that is for people")
    for (item, _), n in lines.items():
        if n > 1:
            yield Violation("review_duplicate", item, f"{n} lines in review")


def _second_payments(outputs: Outputs, journal: Sequence[Paid]) -> list[Paid]:
    told = {t.request_id for one in outputs.finished for t in one.tried if t.request_id}
    return [paid for paid in journal if paid.request_id not in told]


def _payments(
    outputs: Outputs, journal: Sequence[Paid], seconds: Sequence[Paid], bound: int | None
) -> Iterator[Violation]:
    served = {paid.request_id: paid for paid in journal}
    owners = _owners(outputs, served)
    orphans = _orphans(outputs, served, [paid.key for paid in seconds if paid.key not in owners])
    for paid in seconds:
        items = owners.get(paid.key, [])
        if paid.key in orphans:
            yield Violation("unknown_payment", paid.request_id, f"{paid.key or '?'}: no committed item made this call")
        elif items and not any(item.maybe_paid for item in items):
            yield Violation("unmarked", items[0].key, f"call {paid.request_id} was served too: not marked maybe_paid")
    if bound is not None and len(seconds) > bound:
        yield Violation("too_many", "the sum", f"{len(seconds)} second payments, {bound} allowed")
    yield from _unserved(outputs, served)


def _orphans(outputs: Outputs, served: Mapping[str, Paid], unknown: Iterable[str]) -> set[str]:
    """Of these keys those that can be no item's. One whose every answer died with a process has no call that is known,
    and is marked: each such item explains one key."""
    silent = [o for o in outputs.finished if o.maybe_paid and not any(t.request_id in served for t in o.tried)]
    return {*list(dict.fromkeys(unknown))[len(silent) :]}


def _owners(outputs: Outputs, served: Mapping[str, Paid]) -> dict[str, list[Finished]]:
    """A journal's key → the items that it stands for: by their labels, and by their calls that are known."""
    owners: defaultdict[str, list[Finished]] = defaultdict(list)
    for one in outputs.finished:
        calls = (served.get(t.request_id or "") for t in one.tried)
        keys = {paid.key for paid in calls if paid is not None}
        for key in keys | {one.key, one.item_id}:
            owners[key].append(one)
    return owners


def _unserved(outputs: Outputs, served: Mapping[str, Paid]) -> Iterator[Violation]:
    metered = {(line.item_id, line.generation, line.attempt): line for line in outputs.costs if line.basis == "metered"}
    claimed: dict[str, str] = {}
    for one in outputs.finished:
        for t in one.tried:
            line = metered.get((one.item_id, one.generation, t.n))
            if not t.request_id or not t.cost_nano or line is None:
                continue
            if claimed.setdefault(t.request_id, one.item_id) != one.item_id:
                yield Violation("wrong_bill", one.key, f"call {t.request_id} is billed to two items")
            yield from _served_as_billed(one.key, t, line, served.get(t.request_id))


def _served_as_billed(key: str, t: Tried, line: Line, paid: Paid | None) -> Iterator[Violation]:
    if paid is None:
        yield Violation("unserved", key, f"attempt {t.n} was billed: call {t.request_id} was never served")
    elif paid.input is not None and (paid.input, paid.output) != (line.input, line.output):
        said, true = f"{line.input}+{line.output}", f"{paid.input}+{paid.output}"
        yield Violation("wrong_bill", key, f"attempt {t.n}: {said} tokens booked, {true} served")
