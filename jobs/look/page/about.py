"""What the run was: the numbers that matter at the top, then all that its status says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from penstock.jobs.look.page.parts import Section, Table, columns, shown, when
from penstock.jobs.look.page.troubles import Troubles
from penstock.jobs.look.report import cost_line, saved_line
from penstock.jobs.progress import done_items, expected_items, state_told
from penstock.jobs.wording import counted, dollars, duration, share
from penstock.workers.status import RunStatus

if TYPE_CHECKING:
    from penstock.jobs.look.page.gather import Facts

NOTES = 20
"""Notes of a status that are shown."""


class Headline(msgspec.Struct, frozen=True):
    """One of the numbers at the top, and what stands under it."""

    name: str
    value: str
    more: str = ""


def headlines(facts: Facts, status: RunStatus) -> list[Headline]:
    nano, results, letters = facts.money.total.all.nano, facts.troubles.results, facts.troubles.letters
    per = f"{dollars(nano * 1000 // results)} per 1,000 results" if results else ""
    calls = facts.money.total.all.calls
    finished = results + letters
    return [
        Headline("results", f"{results:,}", _of(status)),
        Headline("dead letters", f"{letters:,}", share(letters, finished) + " of finished rows" if letters else ""),
        Headline("paid", dollars(nano), per),
        Headline("charged calls", f"{calls:,}", f"{calls / results:.2f} a result" if results else ""),
        *_saved(status),
        Headline("took", duration(_took(status)), "so far" if status.ended_at is None else ""),
    ]


def _of(status: RunStatus) -> str:
    total = expected_items(status)
    return f"of {counted(total, 'row')}" if total is not None else ""


def _saved(status: RunStatus) -> list[Headline]:
    """Beside the whole sentence below: the share, where something was saved."""
    tally = status.tally
    saved = tally.tier1_cost_nano - tally.cost_nano
    if not tally.tier1_cost_nano or saved <= 0:
        return []
    return [Headline("saved", share(saved, tally.tier1_cost_nano), "against all-Tier-1")]


def _took(status: RunStatus) -> float:
    return max(0.0, (status.ended_at or status.updated_at) - status.since)


def section(facts: Facts, status: RunStatus, places: list[tuple[str, str]]) -> Section:
    """`places`: sink → where its records are."""
    rows = [
        ("run", shown(status.run_id)),
        ("state", shown(state_told(status))),
        ("started", f"{when(status.since)} UTC"),
        ("ended", f"{when(status.ended_at)} UTC" if status.ended_at else "not yet: this is how it stands"),
        ("rows", _rows(status, facts.troubles)),
        *((f"tier {tier}", f"{n:,} ({share(n, sum(status.tally.tiers.values()))})") for tier, n in _tiers(status)),
        ("cost", cost_line(status)),
        ("saved", saved_line(status.tally)),
        ("not equal", _apart(facts, status)),
        *(("note", shown(note)) for note in status.notes[:NOTES]),
        *((f"{sink.replace('_', ' ')} in", shown(place)) for sink, place in places),
    ]
    table = Table("", columns("", ""), [row for row in rows if row[1]])
    return Section("run", "The run", "", (table,))


def _tiers(status: RunStatus) -> list[tuple[int, int]]:
    return sorted(status.tally.tiers.items())


def _rows(status: RunStatus, troubles: Troubles) -> str:
    total = expected_items(status)
    of = f" of {total:,}" if total is not None else ""
    again = ", resumed" if status.resumed else ""
    return f"{troubles.results + troubles.letters:,}{of} finished{again}"


def _apart(facts: Facts, status: RunStatus) -> str:
    """The records are what counts; a status that says otherwise was written earlier, or by a process that died."""
    paid, rows = facts.money.total.all.nano, facts.troubles.results + facts.troubles.letters
    told, said = status.tally.cost_nano, done_items(status)
    if paid == told and rows == said:
        return ""
    return f"the records hold {rows:,} rows and {dollars(paid)}; the run's status says {said:,} and {dollars(told)}"
