"""Labels, told: who did how much, how far people agree, and how models and judges do by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from penstock.engine.measure.agreement import Agreement
from penstock.engine.measure.intervals import anytime_interval
from penstock.engine.measure.sample import sample_of
from penstock.engine.quality import Interval
from penstock.jobs.feedback.told import sure
from penstock.jobs.look import told
from penstock.jobs.look.reading import Outputs
from penstock.jobs.people.labels import (
    Said,
    between_people,
    by_most,
    current,
    labellers,
    right_by_people,
    with_verdicts,
)
from penstock.jobs.people.review import Listed
from penstock.jobs.wording import counted, inert

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Verdicts = dict[str, dict[str, bool]]
"""Judge → item → whether it passed the answer that was the result."""


class Worker(msgspec.Struct, frozen=True):
    by: str
    labels: int


class Pair(msgspec.Struct, frozen=True):
    first: str
    second: str
    agreement: Agreement


class Model(msgspec.Struct, frozen=True):
    """`right`: share of labelled answers that people call right. Rows that rules chose are not like all rows. `items`:
    answers, however many people looked at each: two who look at one are no two pieces of evidence."""

    model: str
    items: int
    right: float
    interval: Interval | None


class Grades(msgspec.Struct, frozen=True):
    """Those that don't speak of an answer that is there now, or may not."""

    earlier: int = 0
    """Of answers that their items had before: kept, and not counted."""
    unplaced: int = 0
    """Nobody says of which answer: counted for the item's present one."""


class Summary(msgspec.Struct, frozen=True):
    items: int
    labelled: int
    people: tuple[Worker, ...]
    pairs: tuple[Pair, ...]
    judges: tuple[Pair, ...]
    models: tuple[Model, ...]
    grades: Grades


def verdicts(outputs: Outputs) -> Verdicts:
    """Of judges on results (not on shadows' answers)."""
    models = {block.item_id: (block.model, block.model_version) for block in told.blocks(outputs.records("results"))}
    found: Verdicts = {}
    for sample in told.samples(outputs.records("quality")):
        if sample.judge_model and models.get(sample.item_id) == (sample.model, sample.model_version):
            found.setdefault(sample.judge_model, {})[sample.item_id] = sample.passed
    return found


def summary(listed: Listed, said: Said, judged: Verdicts) -> Summary:
    found, said = grades(listed, said), current(said, listed.answers)
    answers = {item.item_id: item.answer for item in listed.items}
    most = by_most(said, answers)
    judges = ((judge, with_verdicts(most, passed)) for judge, passed in sorted(judged.items()))
    return Summary(
        items=len(listed.items),
        labelled=len({item for item, _ in said}),
        people=tuple(Worker(by, sum(who == by for _, who in said)) for by in labellers(said)),
        pairs=tuple(Pair(*two, found) for two, found in between_people(said).items()),
        judges=tuple(Pair(judge, "people", found) for judge, found in judges if found is not None),
        models=tuple(_models(listed, said)),
        grades=found,
    )


def grades(listed: Listed, said: Said) -> Grades:
    now, told_ = current(said, listed.answers), listed.answers
    unplaced = sum(
        each.label is None and not each.output_hash and bool(told_.get(item)) for (item, _), each in now.items()
    )
    return Grades(len(said) - len(now), unplaced)


def _models(listed: Listed, said: Said) -> Iterator[Model]:
    by_item = right_by_people(said, {item.item_id: item.answer for item in listed.items})
    right: dict[str, list[float]] = {}
    for item in listed.items:
        if item.model and item.item_id in by_item:
            right.setdefault(item.model, []).append(by_item[item.item_id])
    for model, each in sorted(right.items()):
        yield Model(model, len(each), sum(each) / len(each), anytime_interval(sample_of(each)))


def parts(told_: Summary) -> Iterator[str | Text | Table]:
    from rich.text import Text

    people = ", ".join(f"{each.by} {each.labels:,}" for each in told_.people) or "nobody yet"
    yield Text(inert(f"{told_.labelled:,} of {told_.items:,} items labelled ({people})"))
    if told_.models:
        table = _table("answers of", "items", "right by people")
        for each in told_.models:
            table.add_row(each.model, f"{each.items:,}", sure(each.right, each.interval))
        yield table
    if told_.pairs or told_.judges:
        table = _table("agreement of", "items", "same", "beyond chance (kappa)")
        for pair in (*told_.pairs, *told_.judges):
            table.add_row(Text(inert(f"{pair.first}, {pair.second}")), *_agreed(pair.agreement))
        yield table
    yield from notes(told_.grades)


def notes(found: Grades) -> Iterator[str]:
    if found.earlier:
        yield f"{counted(found.earlier, 'grade')} of earlier answers, which were made anew since: not counted"
    if found.unplaced:
        yield f"{counted(found.unplaced, 'grade')}, nobody says of which answer: counted for the item's present one"


def _agreed(found: Agreement) -> tuple[str, str, str]:
    kappa = "–" if found.kappa is None else sure(found.kappa.mean, found.kappa)
    return f"{found.items:,}", sure(found.rate.mean, found.rate), kappa


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
