"""What was paid, added up from cost lines: by model, tier, task, tenant, day or role."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from penstock.connectors.settings import KafkaSink
from penstock.engine.items import NANO_PER_USD
from penstock.jobs.look.told import CostTold
from penstock.jobs.wording import NOT_THERE, dollars, inert, share

if TYPE_CHECKING:
    from rich.table import Table

    from penstock.connectors.settings import SinkSettings

By = Literal["model", "tier", "task", "tenant", "day", "role", "account"]
BYS: tuple[str, ...] = get_args(By)
UNDER_WAY = 0.01
"""Of what a run that goes has paid, so much may not be committed yet. A guess."""


class Bill(msgspec.Struct):
    """Sums of one group. `calls` leaves out closing adjustments, which are no calls."""

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    nano: int = 0
    bases: set[str] = msgspec.field(default_factory=set[str])

    def add(self, line: CostTold) -> None:
        self.calls += line.role != "adjustment"
        self.nano += line.nano
        self.bases.add(line.basis)
        if line.tokens is not None:
            self.input_tokens += line.tokens.input
            self.cached_tokens += line.tokens.cached
            self.output_tokens += line.tokens.output


def add_up(lines: Iterable[CostTold], by: By) -> dict[str, Bill]:
    """Group → sums, the dearest first (days in order). What a line doesn't say is grouped under `–`."""
    key, bills = KEYS[by], dict[str, Bill]()
    for line in lines:
        bills.setdefault(key(line), Bill()).add(line)
    return dict(sorted(bills.items(), key=lambda kv: (0 if by == "day" else -kv[1].nano, kv[0])))


def _named(value: object) -> str:
    return "–" if value is None or value == "" else str(value)


def _day(line: CostTold) -> str:
    return line.at.astimezone(UTC).strftime("%Y-%m-%d") if line.at else "–"


KEYS: dict[By, Callable[[CostTold], str]] = {
    "model": lambda line: _named(line.model),
    "tier": lambda line: _named(line.tier),
    "task": lambda line: _named(line.task),
    "tenant": lambda line: _named(line.tenant),
    "day": _day,
    "role": lambda line: _named(line.role),
    "account": lambda line: _named(line.account),
}


def lacking(bills: dict[str, Bill], sink: SinkSettings, paid_nano: int) -> str | None:
    """What a topic does not hold of what its run has paid, in words; None: nothing is known to be missing. Files and
    objects are there or missed by name."""
    there = sum(bill.nano for bill in bills.values())
    if not isinstance(sink, KafkaSink) or there >= paid_nano * (1 - UNDER_WAY):
        return None
    return (
        f"the topic {sink.topic} holds cost lines of {dollars(there)}, and the run has paid {dollars(paid_nano)}: "
        + NOT_THERE
    )


def table(bills: dict[str, Bill], by: By) -> Table:
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column(by, overflow="fold")
    cached = any(bill.cached_tokens for bill in bills.values())
    for name in ("calls", "tokens in", *(["cached"] if cached else []), "out", "$", "share"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("basis")
    total = sum(bill.nano for bill in bills.values())
    for name, bill in bills.items():
        made.add_row(Text(inert(name)), *_cells(bill, cached), share(bill.nano, total), ", ".join(sorted(bill.bases)))
    if len(bills) > 1:
        made.add_row("all", *_cells(_sum(bills), cached), "", "", style="bold")
    return made


def _cells(bill: Bill, cached: bool) -> tuple[str, ...]:
    hit = (bill.cached_tokens,) if cached else ()
    counts = (bill.calls, bill.input_tokens, *hit, bill.output_tokens)
    return (*(f"{count:,}" for count in counts), dollars(bill.nano))


def _sum(bills: dict[str, Bill]) -> Bill:
    total = Bill()
    for bill in bills.values():
        total.calls += bill.calls
        total.input_tokens += bill.input_tokens
        total.cached_tokens += bill.cached_tokens
        total.output_tokens += bill.output_tokens
        total.nano += bill.nano
    return total


class BillTold(msgspec.Struct, frozen=True):
    """For machines; `usd` has nine decimals at most."""

    group: str
    calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    usd: float
    bases: list[str]


def told(bills: dict[str, Bill]) -> list[BillTold]:
    return [
        BillTold(
            name,
            bill.calls,
            bill.input_tokens,
            bill.cached_tokens,
            bill.output_tokens,
            bill.nano / NANO_PER_USD,
            sorted(bill.bases),
        )
        for name, bill in bills.items()
    ]
