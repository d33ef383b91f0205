"""What went otherwise: calls made again and why, targets refused and why, dead letters, second payments."""

from __future__ import annotations

import msgspec

from penstock.engine.results import RETRYABLE_REASONS
from penstock.jobs.look.page.groups import Groups, Sum, named, sums
from penstock.jobs.look.page.parts import Section, Table, columns, shown
from penstock.jobs.look.report import ledger_line
from penstock.jobs.look.told import LetterTold, RefusedTold, Told, TriedTold, nano
from penstock.jobs.wording import counted, dollars, share
from penstock.workers.status import RunStatus

SAMPLES = 3
"""Items that are named for each reason: `penstock explain` tells the story of one."""
BESIDE = frozenset({"judge", "shadow", "hedge"})
"""Roles of calls that don't follow from what the one before came to."""


class Dead(msgspec.Struct):
    n: int = 0
    nano: int = 0
    items: list[str] = msgspec.field(default_factory=list[str])

    def add(self, letter: LetterTold) -> None:
        self.n += 1
        self.nano += nano(letter.cost_usd)
        if len(self.items) < SAMPLES:
            self.items.append(letter.item_id)


class Troubles:
    """`again`: (what was done, from model, to model, what had happened) → calls. `outcomes`: (model, outcome)."""

    def __init__(self) -> None:
        self.outcomes: Groups[Sum] = sums()
        self.again: Groups[Sum] = sums()
        self.refused: Groups[Sum] = sums()
        self.dead: Groups[Dead] = Groups(Dead)
        self.results = 0
        self.copied = 0
        self.invalid = 0
        self.twice = Sum()

    def result(self, block: Told) -> None:
        self.results += 1
        self.copied += block.copied_from is not None
        self.invalid += block.status == "invalid_output"
        self._ending(block.attempts, block.refused, block.maybe_paid, block.cost_usd)

    def letter(self, letter: LetterTold) -> None:
        self.dead.at(named(letter.reason)).add(letter)
        self._ending(letter.attempts, letter.refused, letter.maybe_paid, letter.cost_usd)

    def _ending(
        self, attempts: tuple[TriedTold, ...], refused: tuple[RefusedTold, ...], maybe_paid: bool, usd: float
    ) -> None:
        if maybe_paid:
            self.twice.add(nano(usd))
        for refusal in refused:
            self.refused.at(named(refusal.model), named(refusal.reason)).add()
        before: TriedTold | None = None
        for tried in sorted(attempts, key=lambda tried: tried.n):
            self.outcomes.at(named(tried.model), named(tried.outcome)).add(nano(tried.cost_usd))
            if tried.role in BESIDE:
                continue
            if before is not None:
                self.again.at(named(tried.role), named(before.model), named(tried.model), named(before.outcome)).add(
                    nano(tried.cost_usd)
                )
            before = tried

    @property
    def letters(self) -> int:
        return sum(dead.n for _, dead in self.dead.ranked(lambda dead: dead.n))


def calls_section(troubles: Troubles) -> Section:
    """Outcomes of calls, and what followed from them."""
    total = sum(count.n for _, count in troubles.outcomes.ranked(lambda count: count.n))
    outcomes = [
        (shown(model), shown(outcome), f"{count.n:,}", share(count.n, total), dollars(count.nano))
        for (model, outcome), count in troubles.outcomes.ranked(lambda count: count.n)
    ]
    again = [
        (*map(shown, key), f"{count.n:,}", dollars(count.nano))
        for key, count in troubles.again.ranked(lambda count: count.n)
    ]
    tables = (
        Table("Outcomes of calls", columns("model", "outcome", "#calls", "#share", "#$"), outcomes),
        Table("Called again", columns("as", "after", "at", "which ended in", "#calls", "#$"), again, note=AGAIN_NOTE),
    )
    extras = [f"{troubles.copied:,} answered by a copy"] if troubles.copied else []
    extras += [f"{counted(troubles.invalid, 'answer')} kept although invalid"] if troubles.invalid else []
    intro = "Attempts of all finished rows. " + (", ".join(extras) + "." if extras else "")
    return Section("calls", "Retries and fallbacks", intro, tuple(table for table in tables if table.rows))


AGAIN_NOTE = "$ is what the second call cost."


def refused_section(troubles: Troubles, status: RunStatus) -> Section:
    rows = [
        (shown(model), shown(reason), f"{count.n:,}")
        for (model, reason), count in troubles.refused.ranked(lambda count: count.n)
    ]
    tables = [Table("Targets that were passed over, and why", columns("model", "why", "#rows"), rows)] if rows else []
    if status.tally.refused:
        walls = sorted(status.tally.refused.items(), key=lambda kv: (-kv[1], kv[0]))
        walled = [(shown(wall), f"{n:,}") for wall, n in walls]
        tables.insert(0, Table("Targets refused by walls", columns("wall", "#targets"), walled))
    return Section("refusals", "Refusals", "" if tables else "No target was refused.", tuple(tables))


def letters_section(troubles: Troubles) -> Section:
    ranked = troubles.dead.ranked(lambda dead: dead.n)
    if not ranked:
        return Section("dead-letters", "Dead letters", "None.")
    rows = [
        (shown(key[0]), f"{dead.n:,}", "yes" if key[0] in RETRYABLE_REASONS else "no", dollars(dead.nano), _items(dead))
        for key, dead in ranked
    ]
    names = columns("reason", "#rows", "again later may help", "#$ spent", "for example")
    intro = "Rows that ended without a result. penstock explain ID tells one's story; its text is not shown here."
    total = ("all", f"{troubles.letters:,}", "", dollars(sum(dead.nano for _, dead in ranked)), "")
    return Section("dead-letters", "Dead letters", intro, (Table("By reason", names, rows, total if rows[1:] else ()),))


def _items(dead: Dead) -> str:
    return ", ".join(shown(item)[:12] for item in dead.items)


def twice_section(troubles: Troubles, status: RunStatus) -> Section:
    parts: list[str] = []
    if troubles.twice.n:
        parts.append(
            f"{counted(troubles.twice.n, 'row')} marked maybe_paid: an earlier answer was lost, by a crash or a "
            f"timeout, and may have been paid for too. What is known of them cost {dollars(troubles.twice.nano)}, and "
            "stands in the bill."
        )
    if ledger := ledger_line(status):
        parts.append(f"Ledger: {ledger}.")
    return Section("twice", "Second payments", " ".join(parts) or "None: no call's end was lost.")
