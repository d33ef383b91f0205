"""How numbers are said to people: money, counts, durations, shares."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

from penstock.engine.items import NANO_PER_USD

_OBEYED = {code: " " for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

NOT_THERE = "the others were deleted there (its retention), or are on their way"
"""Of records that a run wrote to a topic, and that it does not hold."""


def inert(text: str) -> str:
    """What models and customers wrote, without anything that a terminal would obey; its lines stay."""
    return text.translate(_OBEYED)


def escaped(text: str) -> str:
    """The same amid rich's markup."""
    from rich.markup import escape

    return escape(inert(text))


def dollars(nano: int) -> str:
    """Two decimals from a dollar on, four from a cent on, below that three significant digits; never `$0.00` for
    something that was paid."""
    usd = abs(nano) / NANO_PER_USD
    sign = "-" if nano < 0 else ""
    if usd >= 1:
        return f"{sign}${usd:,.2f}"
    if nano == 0:
        return "$0"
    if usd >= 0.01:
        return f"{sign}${usd:.4f}"
    return f"{sign}${usd:.9f}".rstrip("0") if usd < 1e-6 else f"{sign}${usd:.6f}"


def duration(seconds: float) -> str:
    """`17 ms`, `0.8 s`, `42 s`, `3 min 05 s`, `2 h 07 min`; never `0.0 s` for something that took time."""
    if 0.0005 <= seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(number: int, thing: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def share(part: float, whole: float) -> str:
    """A percentage that says `100 %` only where nothing is missing, and `0 %` only where nothing is there."""
    if whole <= 0:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 1 or 99 < percent < 100:
        return f"{min(percent, 99.9):.1f} %"
    return f"{percent:.0f} %"


def tallied(counts: dict[str, int]) -> str:
    """`4 malformed, 2 wall`, the largest first."""
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))


def moment(at: float) -> str:
    """`2026-11-24 13:05` in this machine's time zone; `–` where it never was."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M") if at else "–"


def instant(at: datetime) -> str:
    """`2026-11-24 13:05:07.120` in this machine's time zone."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def clock(at: datetime) -> str:
    """`13:05:07.120` in this machine's time zone."""
    return at.astimezone().strftime("%H:%M:%S.%f")[:-3]


def at_state(url: str) -> str:
    """`--state URL`, as a shell takes it: `s3://…?sse=…&…` is no single word to it."""
    return f"--state {shlex.quote(url)}"


def relative(path: str) -> str:
    """As a person here would write it: without the working folder in front."""
    return path.removeprefix(str(Path.cwd()) + "/")


def secret_told(reference: str) -> str:
    """What is wrong with a reference (`env:NAME`, `file:/path`) that leads nowhere."""
    kind, _, rest = reference.partition(":")
    return f"the variable {rest} is not set" if kind == "env" else f"the file {rest} can't be read, or is empty"
