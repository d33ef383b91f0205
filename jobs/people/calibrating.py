"""Judges held against people: each judge's verdicts beside what people said of the same answers of one run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from penstock.engine.quality import JUDGES
from penstock.engine.steering.judges import Calibration, lacks
from penstock.jobs.feedback.told import sure
from penstock.jobs.look import told
from penstock.jobs.look.reading import Outputs
from penstock.jobs.people.labels import Said, by_most, with_verdicts
from penstock.jobs.people.review import Listed

if TYPE_CHECKING:
    from rich.table import Table

Judge = tuple[str, str]
"""(`judge@version`, its model)."""


def calibrated(outputs: Outputs, listed: Listed, said: Said, by: str, at: str) -> list[Calibration]:
    """Of each judge that scored an answer which people labelled. `at`: ISO 8601, UTC.

    A judge of pairs is none of them: it says which of two answers is better, and people were not asked that.
    """
    people = by_most(said, {item.item_id: item.answer for item in listed.items})
    found: list[Calibration] = []
    for (scorer, model), passed in sorted(_verdicts(outputs).items()):
        agreed = with_verdicts(people, passed)
        if agreed is not None:
            right = sum(people[item] for item in passed if item in people)
            counts = right, agreed.items - right
            found.append(Calibration(scorer, model, *counts, agreed, outputs.status.run_id, at, by))
    return found


def kept(stands: Calibration) -> str:
    """Said of a judge whose calibration of before was not replaced."""
    n = stands.right + stands.wrong
    return (
        f"its calibration on {n:,} labelled answers of run {stands.run_id} stays: this one is on too few to replace it"
    )


def _verdicts(outputs: Outputs) -> dict[Judge, dict[str, bool]]:
    """Of judges of single answers, on results: item → did it pass?"""
    models = {block.item_id: (block.model, block.model_version) for block in told.blocks(outputs.records("results"))}
    found: dict[Judge, dict[str, bool]] = {}
    for sample in told.samples(outputs.records("quality")):
        of_result = models.get(sample.item_id) == (sample.model, sample.model_version)
        if sample.scorer == JUDGES[0] and sample.judge_model and of_result:
            judge = f"{sample.scorer}@{sample.scorer_version}", sample.judge_model
            found.setdefault(judge, {})[sample.item_id] = sample.passed
    return found


def parts(found: list[Calibration]) -> Iterator[Table | str]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("judge", "version", "answers", "same", "beyond chance (kappa)", "may decide"):
        table.add_column(name, overflow="fold")
    for each in found:
        kappa, rate = each.agreement.kappa, each.agreement.rate
        beyond = "–" if kappa is None else sure(kappa.mean, kappa)
        version, verdict = each.scorer.partition("@")[2], "yes" if lacks(each) is None else "no"
        table.add_row(each.model, version, f"{each.agreement.items:,}", sure(rate.mean, rate), beyond, verdict)
    yield table
    yield from (f"{each.model} informs only: {why}" for each in found if (why := lacks(each)) is not None)
