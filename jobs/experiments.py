"""Experiments of a state's jobs: found in the specs of their latest runs, seen in the cells, stopped for all."""

from __future__ import annotations

import time

import msgspec

from penstock.engine.errors import SpecError
from penstock.engine.policy import Experiment
from penstock.engine.steering import document
from penstock.engine.steering.document import Steering, Stopped
from penstock.engine.steering.trials import Seen, look
from penstock.jobs import rollouts
from penstock.jobs.rollouts import Note, silent


class Told(msgspec.Struct, frozen=True):
    """One experiment. `stopped` None: it takes units."""

    experiment: Experiment
    stopped: Stopped | None
    seen: Seen


def known(url: str, note: Note = silent) -> dict[str, Experiment]:
    """As the latest run of each job has them, the latest job first. `note`: hears of runs that can't be read, which
    hold up nothing."""
    found: dict[str, Experiment] = {}
    there = rollouts.jobs(url)
    for job in there.jobs:
        if job.policy is not None:
            found |= {each.id: each for each in job.policy.experiments if each.id not in found}
    for word in there.unread:
        note(word)
    return found


def find(url: str, name: str, note: Note = silent) -> Experiment:
    """By `job/name`, or by the name alone where one job has it. Raises `SpecError`."""
    there = known(url, note)
    matches = [each for key, each in there.items() if name in (key, key.partition("/")[2])]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise SpecError(
            f"{len(matches)} jobs have an experiment {name!r}: {', '.join(m.id for m in matches)}; say which"
        )
    known_names = (
        ", ".join(there) or "none: a job file has them under `experiments:`, and its first run makes them known"
    )
    raise SpecError(f"no experiment {name!r} in {url}; experiments: {known_names}")


def told(url: str, experiments: list[Experiment], note: Note = silent) -> list[Told]:
    cells, stopped, judges = rollouts.measured(url, note), rollouts.steering(url).experiments, rollouts.judges(url)
    return [Told(each, stopped.get(each.id), look(each, cells, judges)) for each in experiments]


def stop(url: str, name: str, why: str, note: Note = silent) -> tuple[str, str | None]:
    """(its full name, why it is not in the audit log yet). Raises `SpecError` where it is not known, or was stopped."""
    experiment, by, now = find(url, name, note), rollouts.me(), time.time()

    def decide(steering: Steering) -> Steering:
        return document.with_experiment(steering, experiment.id, Stopped(now, by, why))

    _, untold = rollouts.decided(url, decide)
    return experiment.id, untold
