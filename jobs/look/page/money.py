"""The bill: every settled call, by model, tier, task, account and role, with what was paid for asking again."""

from __future__ import annotations

from penstock.jobs.look.bills import KEYS, Bill, By
from penstock.jobs.look.page.groups import Groups
from penstock.jobs.look.page.parts import Section, Table, columns, shown
from penstock.jobs.look.told import CostTold
from penstock.jobs.wording import dollars, share

SHOWN: tuple[By, ...] = ("tier", "task", "model", "account", "role")
AGAIN = frozenset({"retry", "fallback", "hedge"})
"""Roles of calls that were made because another had not done."""


class Paid:
    """One group: all of it, and the part that was paid for asking again."""

    def __init__(self) -> None:
        self.all = Bill()
        self.again = Bill()

    def add(self, line: CostTold) -> None:
        self.all.add(line)
        if line.role in AGAIN:
            self.again.add(line)


class Money:
    def __init__(self) -> None:
        self.total = Paid()
        self.by: dict[By, Groups[Paid]] = {by: Groups(Paid) for by in SHOWN}

    def see(self, line: CostTold) -> None:
        self.total.add(line)
        for by, groups in self.by.items():
            groups.at(KEYS[by](line)).add(line)


def section(money: Money) -> Section:
    if not money.total.all.bases:
        return Section("cost", "Cost", "Nothing was paid.")
    intro = (
        "From the cost lines: one for each settled call that was charged, judges and shadows included. "
        "“again” is what retries, fallbacks and hedges took."
    )
    return Section("cost", "Cost", intro, tuple(_table(money, by) for by in SHOWN))


def _table(money: Money, by: By) -> Table:
    groups, total = money.by[by].ranked(lambda paid: paid.all.nano), money.total
    cached = bool(total.all.cached_tokens)
    names = (
        by,
        "#calls",
        "#tokens in",
        *(("#cached",) if cached else ()),
        "#out",
        "#$",
        "#share",
        "#again, $",
        "basis",
    )
    rows = [(shown(_name(by, key[0])), *_cells(paid, total, cached)) for key, paid in groups]
    footer = ("all", *_cells(total, total, cached)) if len(groups) > 1 else ()
    return Table(f"By {by}", columns(*names), rows, footer)


def _name(by: By, key: str) -> str:
    return f"tier {key}" if by == "tier" and key.isdigit() else key


def _cells(paid: Paid, total: Paid, cached: bool) -> tuple[str, ...]:
    bill = paid.all
    hit = (f"{bill.cached_tokens:,}",) if cached else ()
    again = dollars(paid.again.nano) if paid.again.calls else "–"
    counts = (f"{bill.calls:,}", f"{bill.input_tokens:,}", *hit, f"{bill.output_tokens:,}")
    return (
        *counts,
        dollars(bill.nano),
        share(bill.nano, total.all.nano),
        again,
        ", ".join(sorted(map(shown, bill.bases))),
    )
