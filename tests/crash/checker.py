"""What every crash test asks at its end: `assert_clean(offered, paths, journal, bound=…)`.

The comparison itself is `penstock.jobs.look.verify`, since the demo shows its sums; `test_checker.py` tests it with
planted losses, duplicates, second payments and wrong bills.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from penstock.jobs.look.committed import read_outputs
from penstock.jobs.look.verify import Chosen, Paid, Report, check

__all__ = ["Paid", "Report", "assert_clean", "check", "read_outputs"]


def assert_clean(
    offered: Iterable[str],
    paths: Mapping[str, Sequence[Path]],
    journal: Sequence[Paid] | None = None,
    *,
    key: str = "custom_id",
    bound: int | None = None,
    chosen: Chosen | None = None,
) -> Report:
    """Read the committed files, compare, and fail with every violation named."""
    report = check(offered, read_outputs(paths, key), journal, bound=bound, chosen=chosen)
    assert report.clean, str(report)
    return report
