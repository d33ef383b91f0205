"""What the state URL knows beside a run's records: rollouts that were decided meanwhile, evaluations of its job, and
what all runs measured of its models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

import msgspec

from penstock.connectors.audit import open_audit
from penstock.connectors.measured import Registry
from penstock.connectors.state import open_state
from penstock.engine.audit import Entry
from penstock.engine.errors import SpecError
from penstock.engine.registry.standing import Standing
from penstock.engine.registry.standings import standings
from penstock.engine.steering.rollout import Told
from penstock.jobs.evals import home, running
from penstock.jobs.evals.asked import recalled
from penstock.jobs.evals.derived import run_id_of
from penstock.jobs.evals.running import Found
from penstock.jobs.history import History, open_history
from penstock.jobs.look.reading import Outputs
from penstock.workers.here import folder_here

KINDS = frozenset({"rollout_started", "stage", "rollback", "rollout_ended"})
EVALUATIONS = 5
"""The latest ones of a job: each is read from its records."""


class _Facts(msgspec.Struct, frozen=True):
    id: str
    rollout: str
    model: str
    what: str
    baseline: str
    candidate: str
    share: float
    why: str = ""
    guards: tuple[Told, ...] = ()


class Decision(_Facts, frozen=True, kw_only=True):
    """One of a rollout, as the audit log has it. `at`: Unix seconds. `share`: of the units, from then on."""

    at: float
    by: str


class Beside(msgspec.Struct, frozen=True):
    decisions: tuple[Decision, ...] = ()
    evaluations: tuple[Found, ...] = ()
    measured: tuple[Standing, ...] = ()

    @property
    def rollouts(self) -> frozenset[str]:
        return frozenset(each.rollout for each in self.decisions)


def gather(outputs: Outputs) -> Beside:
    """Raises `Corrupt`, `Temporary`."""
    spec = outputs.spec
    shared = Registry(open_state(spec.state)).read()
    return Beside(
        tuple(_decisions(outputs)), tuple(_evaluations(outputs)), standings(shared, spec.catalog, spec.policy)
    )


# ---- rollouts


def _decisions(outputs: Outputs) -> list[Decision]:
    """Of rollouts of the run's models that had begun before it ended, and had not ended before it began. One may stand
    in the log twice, under one id."""
    status, models = outputs.status, outputs.spec.catalog.models
    log = open_audit(outputs.spec.state)
    found = {each.id: each for each in _told(log.entries()) if each.model in models}
    by_rollout: dict[str, list[Decision]] = {}
    for each in sorted(found.values(), key=lambda each: each.at):
        by_rollout.setdefault(each.rollout, []).append(each)
    end = status.ended_at or float("inf")
    during = [seen for seen in by_rollout.values() if seen[0].at <= end and _last(seen) >= status.started_at]
    return sorted((each for seen in during for each in seen), key=lambda each: each.at)


def _last(seen: list[Decision]) -> float:
    """When a rollout had its last word; one that goes on has none."""
    return seen[-1].at if seen[-1].what in ("promoted", "rolled_back", "passed") else float("inf")


def _told(entries: Iterable[Entry]) -> Iterator[Decision]:
    """Entries of a newer Penstock that say something else are left out."""
    for entry in entries:
        if entry.kind in KINDS:
            try:
                facts = msgspec.json.decode(entry.facts, type=_Facts)
            except msgspec.DecodeError:
                continue
            at = datetime.fromisoformat(entry.at).timestamp()
            yield Decision(at=at, by=entry.actor.partition("/")[0], **msgspec.structs.asdict(facts))


# ---- evaluations


def _evaluations(outputs: Outputs) -> Iterator[Found]:
    """The latest of this job, or the one that the run is. One that is to begin anew has nothing to tell."""
    state, name, history = outputs.spec.state, outputs.status.name, open_history(outputs.spec.state)
    asked = ((place, recalled(place)) for place in _places(state))
    mine = (place for place, known in asked if known is not None and name in (known.job, f"eval {place.name}"))
    prepared = (running.remembered(place.name, state) for place in mine)
    for each in islice((each for each in prepared if not each.anew), EVALUATIONS):
        yield running.find(each, history)


def _places(state: str) -> list[Path]:
    """Of evaluations that were run here, the latest first. One that was moved is known by its old place only, one that
    lives on another machine not at all."""
    try:
        files = list(folder_here(state).glob("evals/*/made.json"))
    except SpecError:  # there is no place here where one could be
        return []
    history = open_history(state)
    mine = [file for file in files if _is_here(state, history, file.parent)]
    return [file.parent for file in sorted(mine, key=lambda file: -file.stat().st_mtime)]


def _is_here(state: str, history: History, place: Path) -> bool:
    return history.knows(run_id_of(place.name, place)) and home.elsewhere(state, place.name, place) is None
