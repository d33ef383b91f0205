"""Which judges may decide. A judge's scores inform; they pass or fail a stage only where its verdicts were held against
people's labels, and agree with them well enough.

The bar is the lower end of kappa's 95 % interval. Where judge and people call equally many answers right, a judge with
kappa k shows k times the loss that people would see: at 0.6, ten points look like six, and a guard needs about three
times the items. Below that, a stage that passes would say little.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from penstock.engine import judging
from penstock.engine.measure.agreement import Agreement
from penstock.engine.policy import Scorer
from penstock.engine.quality import JUDGES

LEAST_KAPPA = 0.6
"""Of the interval's lower end. "Substantial" begins there (Landis & Koch, Biometrics 33, 1977)."""
LEAST_ITEMS = 50
"""Below it the interval, made for many items, is too narrow to be believed. A convention."""
LEAST_OF_EACH = 10
"""That people called right, and that they called wrong: who saw hardly a wrong answer has not shown to notice one."""


class Calibration(msgspec.Struct, frozen=True):
    """One judge beside people, on the same answers."""

    scorer: str
    """`judge@version`, as cells name it: another model, rubric or prompt is another judge."""
    model: str
    right: int
    """Answers that people called right."""
    wrong: int
    agreement: Agreement
    run_id: str
    """Whose answers were labelled."""
    at: str
    by: str


def is_judge(scorer: str) -> bool:
    """`scorer`: as cells name it, `name@version`."""
    return scorer.partition("@")[0] in JUDGES


def decides(scorer: Scorer, judge_version: str, trusted: Collection[str]) -> bool:
    """May what it says pass or fail a stage? `judge_version`: of the model that judges, if one does. A judge of pairs
    never may: people are not asked what it is asked."""
    if scorer.type != "judge":
        return True
    return not scorer.pairwise and any(name in trusted for name in _names(scorer, judge_version))


def informs(scorer: Scorer, judge_version: str, found: Mapping[str, Calibration]) -> str | None:
    """Why what it says decides nothing, in words; None: it may decide. `found`: by `judge@version`."""
    if scorer.type != "judge":
        return None
    if scorer.pairwise:
        return "people are not asked what a judge of pairs is asked"
    there = next((found[name] for name in _names(scorer, judge_version) if name in found), None)
    return "it was never held against what people say" if there is None else lacks(there)


def _names(scorer: Scorer, judge_version: str) -> list[str]:
    """Under which its calibrations stand, the newest first."""
    return [f"{JUDGES[0]}@{version}" for version in judging.judge_versions(scorer, judge_version)]


def lacks(found: Calibration) -> str | None:
    """Why this judge may not decide, in words; None: it may."""
    kappa = found.agreement.kappa
    if (few := _too_few(found)) is not None:
        return few
    if kappa is None or kappa.low < LEAST_KAPPA:
        low = "unknown" if kappa is None else f"{kappa.low:.2f}"
        return f"the lower end of its kappa is {low}: {LEAST_KAPPA} at least"
    return None


def _too_few(found: Calibration) -> str | None:
    n = found.right + found.wrong
    if n < LEAST_ITEMS:
        return f"{n} labelled answers are too few: {LEAST_ITEMS} at least"
    if min(found.right, found.wrong) < LEAST_OF_EACH:
        return (
            f"people called {found.right:,} answers right and {found.wrong:,} wrong: {LEAST_OF_EACH} of each at least"
        )
    return None


def replaces(new: Calibration, old: Calibration | None) -> bool:
    """A look at a few labels says nothing against one at enough of them: rollouts under way would lose who decides."""
    return old is None or _too_few(new) is None or _too_few(old) is not None


def trusted(found: Iterable[Calibration]) -> frozenset[str]:
    """The judges that may decide."""
    return frozenset(each.scorer for each in found if lacks(each) is None)
