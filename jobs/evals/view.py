"""What an evaluation found, for people: a table, which differences are real, classes, slices, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from penstock.engine.measure.comparison import Difference
from penstock.engine.measure.evaluation import OTHER, Classes, Evaluation
from penstock.engine.quality import Interval
from penstock.jobs.evals.asked import Asked
from penstock.jobs.evals.going import SEEN_ENOUGH
from penstock.jobs.evals.pricing import Priced
from penstock.jobs.evals.running import Found, Prepared
from penstock.jobs.wording import counted, dollars, duration, inert, share

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

MOST_CLASSES = 8
"""Columns of a confusion table that fit a screen."""
MOST_FIELDS = 40
"""Lines of the table by field; more are names that rows make up."""


def price_words(cost: Priced, prepared: Prepared, budget_nano: int) -> str:
    made = prepared.made
    low, likely, high = (dollars(round(n)) for n in (cost.cost_nano.low, cost.cost_nano.likely, cost.cost_nano.high))
    between = f"about {likely}" + (f" ({low} to {high})" if low != high else "")
    judged = f", about {dollars(round(cost.judges.likely))} of it for judges" if cost.judges.high else ""
    rows = f"{counted(made.rows, 'row')} × {counted(len(prepared.asked.names), 'candidate')}"
    return f"{rows}: {between}{judged}; inside a budget of {dollars(budget_nano)}"


def rows_words(prepared: Prepared) -> list[str]:
    made = prepared.made
    told = [f"{n:,} rows left out: {why}" for why, n in made.left.items()]
    if made.labelled_by_people:
        told.append(f"{counted(made.labelled_by_people, 'row')} with what people said is right")
    if prepared.note:
        told.append(f"note: {prepared.note}")
    return told


def parts(found: Found) -> Iterator[RenderableType]:
    from rich.text import Text

    asked, whole = found.prepared.asked, found.evaluation
    yield Text(f"{found.prepared.name}: {_used(found)}, scored by {asked.scorer}", style="bold")
    if whole is None:
        yet = "" if found.all_ended else " yet"
        yield Text(f"no row has an answer of every candidate{yet}")
        yield from (Text(note, style="dim") for note in _notes(found))
        return
    words = Words(found.prepared)
    yield from _gaps(_lines(whole, words), _costs(whole, words), *(_classes(each, words) for each in whole.classes))
    if whole.fields:
        yield from _gaps(_fields(whole, words))
    if whole.slices:
        yield from _gaps(_slices(whole, words))
    real = "real" if found.informs is None else "real, as the judge sees it"
    yield from (Text(_difference(each, words, real)) for each in whole.differences)
    yield Text(f"at {asked.confidence * 100:.4g} % confidence, whenever you look", style="dim")
    yield Text("")
    yield Text(verdict(found), style="bold green" if whole.stop.reason in SEEN_ENOUGH else "bold")
    yield from (Text(note, style="dim") for note in _notes(found))


def _gaps(*tables: RenderableType) -> Iterator[RenderableType]:
    for table in tables:
        yield table
        yield ""


class Words:
    """Names as people read them: a version is said only where a model has several candidates."""

    def __init__(self, prepared: Prepared) -> None:
        asked, catalog = prepared.asked, prepared.spec.catalog
        of = {text: catalog.parted(text)[0] for text in asked.models}
        shown = {text: text if [*of.values()].count(name) > 1 else name for text, name in of.items()}
        self._of = {
            name: f"{shown[text]} {variant}".strip()
            for name, (text, variant) in zip(asked.names, asked.candidates, strict=True)
        }

    def __getitem__(self, name: str) -> str:
        return self._of[name]


def _used(found: Found) -> str:
    made = found.prepared.made.rows
    n = len(found.seen.rows)
    return counted(n, "row") if n == made else f"{n:,} of {counted(made, 'row')}"


def _lines(whole: Evaluation, words: Words) -> Table:
    table = _table("candidate", "quality", "surely between", "failed")
    for line in whole.lines:
        best = line.name == whole.stop.leader and len(whole.lines) > 1
        at = line.quality
        mean, sure = ("–", "–") if at is None else (f"{at.mean:.3f}", f"{at.low:.3f} and {at.high:.3f}")
        failed = share(line.failed, line.rows) if line.failed else "none"
        table.add_row(words[line.name], mean, sure, failed, style="bold" if best else "")
    return table


def _costs(whole: Evaluation, words: Words) -> Table:
    judged = any(line.judged_nano for line in whole.lines)
    table = _table(
        "candidate", "cost an item", *(["of it judges"] if judged else []), "an accepted one", "median", "95 % under"
    )
    for line in whole.lines:
        table.add_row(
            words[line.name],
            _money(line.per_item_nano, line.per_item),
            *([dollars(round(line.judged_nano / line.rows))] if judged else []),
            "–" if line.per_accepted_nano is None else _money(line.per_accepted_nano, line.per_accepted),
            _took(line.median_ms),
            _took(line.p95_ms),
        )
    return table


def _short(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.mean:.2f} ({interval.low:.2f}–{interval.high:.2f})"


def _took(ms: float | None) -> str:
    return "–" if ms is None else f"{ms:.0f} ms" if ms < 1_000 else duration(ms / 1000)


def between(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _money(nano: float, interval: Interval | None) -> str:
    if interval is None or interval.high <= 0:
        return dollars(round(nano))
    off = max(interval.high - interval.mean, interval.mean - interval.low) / nano if nano else 0.0
    return f"{dollars(round(nano))} ±{off:.0%}"


def _difference(each: Difference, words: Words, real: str) -> str:
    at = each.interval
    better, worse, low, mean, high = (
        (each.first, each.second, at.low, at.mean, at.high)
        if at.mean >= 0
        else (each.second, each.first, -at.high, -at.mean, -at.low)
    )
    size = f"{mean:.3f} ({low:+.3f} to {high:+.3f})"
    if each.real:
        return f"{words[better]} is better than {words[worse]} by {size}: {real}"
    return f"{words[better]} and {words[worse]} differ by {size}: may be chance"


def _classes(of: Classes, words: Words) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    macro = "–" if of.macro_f1 is None else f"{of.macro_f1:.3f}"
    table = _table("class", "rows", "precision", "recall", "F1")
    for line in of.classes:
        table.add_row(
            Text(inert(line.name)), f"{line.expected:,}", *map(_number, (line.precision, line.recall, line.f1))
        )
    head = Text.assemble((words[of.candidate], "bold"), f" by class, mean F1 {macro}")
    names = [line.name for line in of.classes]
    said = [*names, OTHER] if any(pair[1] == OTHER for pair in of.confusion) else names
    return Group(head, table) if len(said) > MOST_CLASSES else Group(head, table, "", _confusion(of, names, said))


def _confusion(of: Classes, names: Sequence[str], said: Sequence[str]) -> Table:
    from rich.text import Text

    table = _table("is ╲ was called", *(Text(inert(word)) for word in said))
    for name in names:
        cells = ((of.confusion.get((name, word), 0), word == name) for word in said)
        table.add_row(
            Text(inert(name)), *(f"[green]{n:,}[/]" if right else f"{n:,}" if n else "[dim]·[/]" for n, right in cells)
        )
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _fields(whole: Evaluation, words: Words) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    table = _table("field", "rows", *(words[name] for name in whole.names))
    shown = {line.name for line in sorted(whole.fields, key=lambda line: -line.rows)[:MOST_FIELDS]}
    for line in whole.fields:
        if line.name in shown:
            table.add_row(Text(inert(line.name or "(all)")), f"{line.rows:,}", *map(_short, line.quality))
    left = len(whole.fields) - len(shown)
    return Group(table, f"{counted(left, 'rarer field')} not shown; --json has all") if left else table


def _slices(whole: Evaluation, words: Words) -> Table:
    from rich.text import Text

    table = _table("slice", "rows", *(words[name] for name in whole.names))
    for line in whole.slices:
        table.add_row(Text(inert(f"{line.attribute} = {line.value}")), f"{line.rows:,}", *map(_short, line.quality))
    return table


def verdict(found: Found) -> str:
    whole, asked = found.evaluation, found.prepared.asked
    assert whole is not None
    words = Words(found.prepared)
    wrong = f"wrong in at most {100 * (1 - asked.confidence):.2g} of 100 such evaluations"
    early = "; stopped by itself, the rest was not paid for" if found.stopped is not None else ""
    match whole.stop.reason:
        case "winner":
            return f"the winner is {words[whole.stop.leader]} ({wrong}){early}"
        case "same":
            at_most = f"is better than no other by more than {asked.same_within:g}"
            return f"{words[whole.stop.leader]} {at_most} ({wrong}){early}"
        case "narrow":
            return f"every quality is known to ±{asked.within:g} ({wrong}){early}"
        case _ if len(whole.names) == 1:
            return f"{words[whole.names[0]]}: {between(whole.lines[0].quality)}"
        case _ if found.informs is not None:
            return f"no winner is named: {words[whole.stop.leader]} leads by a judge that informs only"
        case _:
            return (
                f"no winner yet: {words[whole.stop.leader]} leads, and it may be chance; that does not make them equal"
            )


def informs_words(asked: Asked, why: str) -> str:
    return (
        f"the judge informs only: {why}. No winner is named, and every row is used. penstock label {asked.job}, then "
        f"penstock label calibrate {asked.job}, hold it against people; or name another scorer (--scorer)"
    )


def _notes(found: Found) -> Iterator[str]:
    seen = found.seen
    if found.informs is not None:
        yield informs_words(found.prepared.asked, found.informs)
    if seen.unasked:
        yield (
            f"{counted(seen.unasked, 'row')} not counted: some candidate was never asked, or nobody scored it (a wall, "
            "no money, a judge without a word, a row that can't be read); penstock explain says why"
        )
    if seen.judges_nano:
        yield f"judges cost {dollars(seen.judges_nano)}, in the costs above: equal parts for the answers of a row"
    yield f"paid in all: {dollars(seen.spent_nano)}"
    if found.status.state not in ("done", "interrupted"):
        yield f"the run is {found.status.state.replace('_', ' ')}; the same command goes on"
    elif found.status.state == "interrupted" and found.stopped is None:
        yield "the run was interrupted; the same command goes on"


def machine(found: Found) -> dict[str, object]:
    whole = found.evaluation
    return {
        "name": found.prepared.name,
        "run_id": found.prepared.spec.run_id,
        "asked": found.prepared.asked,
        "rows": len(found.seen.rows),
        "of_rows": found.prepared.made.rows,
        "unasked": found.seen.unasked,
        "spent_usd": found.seen.spent_nano / 1e9,
        "judges_usd": found.seen.judges_nano / 1e9,
        "stopped_by_itself": found.stopped is not None,
        "state": found.status.state,
        "reason": None if whole is None else whole.stop.reason,
        "leader": None if whole is None else whole.stop.leader,
        "informs_only": found.informs,
        "winner": whole.stop.leader if whole is not None and whole.stop.reason == "winner" else None,
        "candidates": () if whole is None else whole.lines,
        "differences": () if whole is None else whole.differences,
        "classes": () if whole is None else tuple(map(_classes_told, whole.classes)),
        "slices": () if whole is None else whole.slices,
        "fields": () if whole is None else whole.fields,
    }


def _classes_told(of: Classes) -> dict[str, object]:
    lines = [
        {"name": c.name, "rows": c.expected, "precision": c.precision, "recall": c.recall, "f1": c.f1}
        for c in of.classes
    ]
    confusion = [{"expected": pair[0], "said": pair[1], "rows": n} for pair, n in sorted(of.confusion.items())]
    return {"candidate": of.candidate, "macro_f1": of.macro_f1, "classes": lines, "confusion": confusion}


def _table(first: str, *others: str | Text) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold", min_width=10)
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table
