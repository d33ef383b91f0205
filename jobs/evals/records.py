"""What is committed of an evaluation → rows with what each candidate did on them.

Records are read in this order: results, dead letters, quality, costs. They are committed together, so what is read
later holds all that belongs to what was read before, also while the run goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from penstock.engine.catalog import Catalog
from penstock.engine.measure.evaluation import Answered, Row
from penstock.engine.results import DeadLetterReason
from penstock.engine.texts import text_of
from penstock.jobs.evals.asked import Asked
from penstock.jobs.evals.dataset import VARIANT_MARK, Indexed
from penstock.jobs.look import told
from penstock.jobs.look.reading import Outputs

FAILED: frozenset[DeadLetterReason] = frozenset(
    ("refused", "invalid_output", "attempts_exhausted", "too_long", "bad_request", "result_too_large")
)
"""Dead letters that are the candidates' doing: every one of them was asked, and failed. Others never were."""
OWN_ROLES = ("primary", "retry", "fallback", "hedge", "cascade", "shadow")


class Sample(msgspec.Struct, frozen=True):
    item_id: str
    scorer: str = ""
    score: float = 0.0
    model: str = ""
    model_version: str = ""
    output: str | None = None
    judge_model: str | None = None


class Item(msgspec.Struct):
    """One (row, variant) that has ended."""

    row: int
    variant: str
    attempts: tuple[told.TriedTold, ...]
    failed: bool = False
    """It ended in dead letters, by the candidates' doing."""
    unasked: bool = False
    """It ended in dead letters before anybody was asked."""
    copied_from: str | None = None
    """The item whose equal request was asked in its place."""
    tried: tuple[str, ...] = ()
    """Candidates of which a call failed. (Attempts name no version: of two versions, either may be meant.)"""


class Seen(msgspec.Struct, frozen=True):
    """`rows`: those that count, in order, with no gap before them. `unasked`: rows that some candidate was never asked,
    or was not scored on (a wall, no money, a damaged row); they count for nobody. `judges_nano`: what judges cost."""

    rows: tuple[Row, ...]
    ended: int
    unasked: int
    judges_nano: int
    spent_nano: int


_sample = msgspec.json.Decoder(Sample)


def read(outputs: Outputs, asked: Asked, index: Sequence[Indexed]) -> Seen:
    """All rows up to the first that has not ended. (Later ones may have ended sooner because they were easy.)"""
    items = _items(outputs, asked)
    scores, judged = _scores(outputs, asked.scorer)
    paid = _paid(outputs)
    paid.share(judged)
    _copy(items, scores, index)
    by_row: dict[int, dict[str, tuple[str, Item]]] = {}
    for item_id, item in items.items():
        by_row.setdefault(item.row, {})[item.variant] = (item_id, item)
    rows: list[Row] = []
    unasked = ended = 0
    for known in index:
        variants = by_row.get(known.row, {})
        if len(variants) < len(asked.variants):
            break
        ended += 1
        answers = [
            _answer(variants[variant], model, scores, paid.calls)
            or _failed_before(variants[variant], model, items, paid)
            for model, variant in asked.candidates
        ]
        if any(answer is None for answer in answers):
            unasked += 1
        else:
            whole = tuple(answer for answer in answers if answer is not None)
            rows.append(Row(known.row, whole, _text(known.expected), known.slices))
    return Seen(tuple(rows), ended, unasked, sum(paid.judges.values()), paid.spent_nano)


def _text(expected: object) -> str | None:
    """As `exact` reads it: a number is what JSON writes."""
    return None if expected is None else text_of(expected)


def _items(outputs: Outputs, asked: Asked) -> dict[str, Item]:
    catalog, found = outputs.spec.catalog, dict[str, Item]()
    for block in told.blocks(outputs.records("results")):
        found[block.item_id] = Item(*_place(block.custom_id), block.attempts, copied_from=block.copied_from)
    for letter in told.letters(outputs.records("dead_letters")):
        failed = letter.reason in FAILED
        found[letter.item_id] = Item(*_place(letter.custom_id), letter.attempts, failed=failed, unasked=not failed)
    of = [(text, catalog.parted(text)[0]) for text in asked.models]
    for item in found.values():
        calls = (a for a in item.attempts if a.role in OWN_ROLES and a.outcome not in ("ok", ""))
        names = {catalog.parted(call.model)[0] for call in calls}
        item.tried = tuple(text for text, name in of if name in names)
    return found


def _place(label: str | None) -> tuple[int, str]:
    number, _, variant = (label or "").partition(VARIANT_MARK)
    return (int(number) if number.isdigit() else -1), variant


def _candidate(catalog: Catalog, model: str | None, version: str | None) -> str:
    """A further version of a model has an entry of its own, whose name says it too."""
    return f"{catalog.parted(model or '')[0]}@{version}"


def _scores(outputs: Outputs, scorer: str) -> tuple[dict[tuple[str, str], Sample], dict[str, set[str]]]:
    """(item, candidate) → what the deciding scorer says; item → candidates whose answers were judged."""
    found: dict[tuple[str, str], Sample] = {}
    judged: dict[str, set[str]] = {}
    for line in outputs.records("quality"):
        sample = _sample.decode(line)
        candidate = _candidate(outputs.spec.catalog, sample.model, sample.model_version)
        if sample.scorer == scorer:
            found.setdefault((sample.item_id, candidate), sample)  # of two of one name the first decides
        if sample.judge_model:
            judged.setdefault(sample.item_id, set()).add(candidate)
    return found, judged


def _copy(items: Mapping[str, Item], scores: dict[tuple[str, str], Sample], index: Sequence[Indexed]) -> None:
    """Equal requests are asked once. What candidates said counts for each such row of which the same is expected."""
    expected = [known.expected for known in index]
    answered: dict[str, list[str]] = {}
    for item_id, candidate in scores:
        answered.setdefault(item_id, []).append(candidate)
    for item_id, item in items.items():
        first = items.get(item.copied_from or "")
        if first is not None and expected[item.row] == expected[first.row]:
            for candidate in answered.get(item.copied_from or "", ()):
                scores.setdefault((item_id, candidate), scores[item.copied_from or "", candidate])


class _Calls(msgspec.Struct):
    """What one candidate's calls on one item cost. `judged_nano`: what judging its answer did."""

    nano: int = 0
    judged_nano: int = 0
    numbers: list[int] = []


class _Paid(msgspec.Struct):
    """`calls`: item → candidate → its calls. `judges`: item → what judges cost there."""

    calls: dict[str, dict[str, _Calls]] = {}
    judges: dict[str, int] = {}
    spent_nano: int = 0

    def of(self, item_id: str, candidate: str) -> _Calls:
        return self.calls.setdefault(item_id, {}).setdefault(candidate, _Calls())

    def share(self, judged: Mapping[str, Iterable[str]]) -> None:
        """Cost lines don't say whose answer was judged: it is borne in equal parts by the candidates that were, to the
        nano-dollar. (The request and the rubric, of which a judge reads most, are the same for all.)"""
        for item_id, nano in self.judges.items():
            candidates = sorted(judged.get(item_id, ()))
            for n, candidate in enumerate(candidates):
                self.of(item_id, candidate).judged_nano += (nano + n) // len(candidates)


def _paid(outputs: Outputs) -> _Paid:
    found = _Paid()
    for line in told.costs(outputs.records("costs")):
        found.spent_nano += line.nano
        if line.item_id is None:
            continue
        if line.role == "judge":
            found.judges[line.item_id] = found.judges.get(line.item_id, 0) + line.nano
        elif line.role in OWN_ROLES:
            of = found.of(line.item_id, _candidate(outputs.spec.catalog, line.model, line.model_version))
            of.nano += line.nano
            of.numbers.append(line.attempt)
    return found


def _answer(
    at: tuple[str, Item],
    model: str,
    scores: Mapping[tuple[str, str], Sample],
    calls: Mapping[str, Mapping[str, _Calls]],
) -> Answered | None:
    """None: the candidate was never asked, or nobody scored what it said (a wall, a judge that gave no word)."""
    item_id, item = at
    paid = calls.get(item_id, {}).get(model, _Calls())
    cost = paid.nano + paid.judged_nano
    sample = scores.get((item_id, model))
    if sample is not None:
        took = _took(item.attempts, paid.numbers)
        return Answered(sample.score, False, sample.output, cost, took, paid.judged_nano)
    asked = item.failed or bool(paid.numbers) or model in item.tried
    if item.unasked or not asked or _took(item.attempts, paid.numbers) is not None:
        return None
    return Answered(0.0, True, None, cost, judged_nano=paid.judged_nano)


def _failed_before(at: tuple[str, Item], model: str, items: Mapping[str, Item], paid: _Paid) -> Answered | None:
    """A candidate that failed on the first of equal requests failed on each, whatever is expected of them."""
    first_id = at[1].copied_from or ""
    first = items.get(first_id)
    failed = None if first is None else _answer((first_id, first), model, {}, paid.calls)
    return None if failed is None else Answered(0.0, True)


def _took(attempts: Iterable[told.TriedTold], numbers: list[int]) -> float | None:
    """Of the last call that was answered."""
    return next((a.ms for a in reversed(tuple(attempts)) if a.n in numbers and a.outcome == "ok"), None)
