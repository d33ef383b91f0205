"""The tables of docs/reliability.md, from what the storms and the kills of trials noted.

    PENSTOCK_RELIABILITY=reliability.jsonl pytest -m soak tests/crash/streams
    python -m tests.crash.streams.reliability storms reliability.jsonl docs/reliability.md
    PENSTOCK_RELIABILITY=trials.jsonl pytest -m soak tests/crash/steered
    python -m tests.crash.streams.reliability trials trials.jsonl docs/reliability.md

Between the two marks of that name in the document, the rows of what was noted are put in the place of those that were
there for the same job and harm; other rows stay. A file gathers lines over many runs of pytest.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tests.crash.streams.storms import Line

HEAD = (
    "| job | harm | jobs | seeds | harms | items | lost | twice | second payments | allowed | most in one run "
    "| marked |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)

Rows = dict[tuple[str, str], str]
"""Job and harm → its row."""


def table(rows: Rows) -> str:
    return HEAD + "".join(f"{row}\n" for _, row in sorted(rows.items()))


def noted(lines: Iterable[Line]) -> Rows:
    groups: defaultdict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        groups[line.job, line.harm].append(line)
    return {(job, harm): _row(job, harm, group) for (job, harm), group in groups.items()}


def shown(text: str) -> Rows:
    """Of a table that is there."""
    rows = [row for row in text.strip().splitlines() if row.startswith("| ")][1:]
    return {tuple(cell.strip() for cell in row.split("|")[1:3]): row for row in rows}  # pyright: ignore[reportReturnType]


def _row(job: str, harm: str, group: list[Line]) -> str:
    """`seeds`: how many different ones."""
    seeds = len({line.seed for line in group})
    sums = [sum(getattr(line, name) for line in group) for name in ("harms", "items", "lost", "twice")]
    most = max(line.repeated for line in group)
    seen, allowed, marked = (sum(getattr(line, name) for line in group) for name in ("repeated", "bound", "marked"))
    cells = [job, harm, len(group), seeds, *sums, seen, allowed, most, marked]
    return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells) + " |"


def main(name: str, source: Path, document: Path) -> None:
    lines = [msgspec.json.decode(line, type=Line) for line in source.read_bytes().splitlines()]
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = document.read_text().split(begin, 1)
    there, after = rest.split(end, 1)
    document.write_text(f"{before}{begin}\n{table(shown(there) | noted(lines))}{end}{after}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
