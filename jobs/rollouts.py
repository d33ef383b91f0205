"""What a person says and asks about rollouts: start one, speak to one, see what the guards say."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import msgspec

from penstock.connectors.audit import actor_of
from penstock.connectors.base import this_process
from penstock.connectors.calibrations import read_judges
from penstock.connectors.measured import SUMS, Registry
from penstock.connectors.state import open_state
from penstock.connectors.steering import SteeringFile
from penstock.engine.catalog import Catalog
from penstock.engine.errors import Corrupt, PenstockError, SpecError
from penstock.engine.flow.cells import Cell
from penstock.engine.policy import Policy, Task
from penstock.engine.steering import document
from penstock.engine.steering.document import Steering
from penstock.engine.steering.evidence import counts, guards, judged, shadow_cost
from penstock.engine.steering.judges import decides, trusted
from penstock.engine.steering.rollout import How, Rollout, Told, Word, begin
from penstock.jobs.history import left_out, open_history
from penstock.jobs.run import command_line


class Ask(msgspec.Struct, frozen=True):
    """What `rollout start` was given."""

    model: str
    version: str
    stages: tuple[float, ...]
    guards: tuple[str, ...]
    items: int | None = None
    how: How = How()


class Standing(msgspec.Struct, frozen=True):
    """How a rollout stands: what its guards say now, and items that ended by stage (baseline's, candidate's)."""

    rollout: Rollout
    guards: tuple[Told, ...]
    items: dict[int, tuple[int, int]]
    shadow_nano: int = 0
    """What its shadow stage cost so far."""


class Heard(msgspec.Struct, frozen=True):
    """What came of a word. `untold`: why it is not in the audit log yet. `undecided`: why no guard can decide about
    quality as things are."""

    rollout: Rollout
    untold: str | None = None
    undecided: str | None = None
    notes: tuple[str, ...] = ()
    """What cascades and experiments that ask the model make of it."""


class Job(NamedTuple):
    """What a job file says. `policy` None: it is a catalogue by itself."""

    catalog: Catalog
    policy: Policy | None


class Known(NamedTuple):
    jobs: list[Job]
    unread: tuple[str, ...]
    """Of runs that can't be read, which a word in an emergency does not wait for."""


Note = Callable[[str], None]
"""Hears what a person has to know beside the answer."""


def silent(_: str) -> None:
    """Nobody wants to know."""


def start(url: str, ask: Ask, job: Job | None = None) -> Heard:
    """Raises `SpecError` where the model or version is not known, or has a rollout."""
    known = jobs(url)
    live = _live(known if job is None else Known([job], ()), ask.model, ask.version)
    chosen, by, now = guards(ask.guards, ask.items), me(), time.time()

    def decide(steering: Steering) -> Steering:
        versions = (steering.live.get(ask.model, live), ask.version)
        made = begin(ask.model, versions, ask.stages, chosen, by=by, now=now, how=ask.how)
        return document.started(steering, made)

    heard, all_jobs = _change(url, ask.model, decide), known.jobs if job is None else [job, *known.jobs]
    notes = (*known.unread, *_climbing(ask, all_jobs), *_divided(ask, all_jobs, steering(url).experiments))
    return msgspec.structs.replace(heard, undecided=_undecided(url, ask, all_jobs), notes=notes)


def put_back(url: str, model: str, version: str, why: str = "") -> Heard:
    """Straight to a version that no rollout leads back to. Raises `SpecError`."""
    known = jobs(url)
    live, by, now = _live(known, model, version), me(), time.time()
    heard = _change(url, model, lambda there: document.put_back(there, model, (version, live), by, now, why))
    return msgspec.structs.replace(heard, notes=known.unread)


def _climbing(ask: Ask, jobs: Sequence[Job]) -> Iterator[str]:
    """What a person has to know where cascades ask the model."""
    known = [(job.catalog, job.policy) for job in jobs if job.policy is not None and ask.model in job.catalog.models]
    tasks = [(catalog, task) for catalog, policy in known for task in policy.tasks.values()]
    below = {task.name: task.cascade for _, task in tasks if task.cascade and ask.model in task.cascade.models}
    if below and ask.how.shadow is not None and not any(_may_ask(*each, ask.model) for each in tasks):
        yield (
            f"only cascades ask {ask.model} (task {', '.join(below)}), and a shadow stage compares none of their "
            f"items: it would never end. penstock rollback {ask.model} takes it back; start it without a shadow"
        )
    target = f"{ask.model}@{ask.version}"
    for name, cascade in below.items():
        if cascade.promise is None or ask.model == cascade.models[-1]:
            continue
        if not any(each == target or each.startswith(f"{target} by ") for each in cascade.thresholds):
            yield (
                f"the cascade of task {name} has no threshold for {target}: until it is calibrated with it (penstock "
                "cascade calibrate), all its answers go up to the next model, and quality can't be compared there"
            )


def _divided(ask: Ask, jobs: Sequence[Job], stopped: Collection[str]) -> Iterator[str]:
    """Experiments that take the model's items, which no guard of a rollout sees then."""
    known = [(job.catalog, job.policy) for job in jobs if job.policy is not None and ask.model in job.catalog.models]
    found: dict[str, str] = {}
    for catalog, policy in known:
        for each in policy.experiments:
            task = policy.tasks[each.task]
            arms = any(arm.model == ask.model for arm in each.arms)
            if each.id not in stopped and (arms or _asks(catalog, task, ask.model)):
                found[each.id] = each.task
    for name, task in found.items():
        yield (
            f"all items of task {task} are in the experiment {name} and count there: the guards of this rollout see "
            f"none of them, though {ask.version} answers its share. penstock experiment stop {name} gives them to it"
        )


def _asks(catalog: Catalog, task: Task, model: str) -> bool:
    return model in task.cascade.models if task.cascade is not None else _may_ask(catalog, task, model)


def _may_ask(catalog: Catalog, task: Task, model: str) -> bool:
    """Without a cascade."""
    if task.cascade is not None:
        return False
    if task.models is not None:
        return model in task.models
    return task.tier is None or model in catalog.tiers.get(task.tier, ())


def _undecided(url: str, ask: Ask, jobs: Sequence[Job]) -> str | None:
    """Why the guard of quality can't decide; None: it can, or was not asked for, or no job is known yet."""
    policies = [job.policy for job in jobs if job.policy is not None and ask.model in job.catalog.models]
    if "quality" not in ask.guards or not policies:
        return None
    live, tasks = steering(url).live, [task for policy in policies for task in policy.tasks.values()]
    only_pairs = ask.how.shadow is not None and not ask.stages  # these are scored, sampled or not
    scorers = [scorer for task in tasks if task.sample_share > 0 or only_pairs for scorer in task.scorers]
    versions = {name: live.get(name, model.live) for job in jobs for name, model in job.catalog.models.items()}
    may = judges(url)
    if any(decides(scorer, versions.get(scorer.model or "", ""), may) for scorer in scorers):
        return None
    if scorers:
        return (
            "only judges score, and none is known to agree with people well enough; calibrate one (penstock label "
            "calibrate), or leave quality out of --guard"
        )
    needed = "`scorers:`; give one some" if only_pairs else "both `sample:` and `scorers:`; give one both"
    return f"no task has {needed}, or leave quality out of --guard"


def speak(url: str, model: str, word: Word, why: str = "", share: float | None = None) -> Heard:
    """`share`: of the units that got the candidate when the person looked. Raises `SpecError` where the word makes no
    sense now."""
    by, now = me(), time.time()
    return _change(url, model, lambda steering: document.spoken(steering, model, word, by, now, why, share))


def steering(url: str) -> Steering:
    found = SteeringFile(url).read()
    assert found is not None, "nothing was known beforehand"
    return found[0]


def standing(url: str, model: str | None, note: Note = silent) -> list[Standing]:
    """Of one model, or of all. `note`: as `measured` has it. Raises `SpecError` for one that never had a rollout."""
    there = steering(url).rollouts
    if model is not None and model not in there:
        raise SpecError(f"{model} never had a rollout in {url}; models that had one: {', '.join(there) or 'none'}")
    cells, may_decide = measured(url, note), judges(url)
    picked = there.values() if model is None else [there[model]]
    return [Standing(at, judged(at, cells, may_decide), counts(at, cells), shadow_cost(at, cells)) for at in picked]


def judges(url: str) -> frozenset[str]:
    """Those that may decide, as `judge@version`."""
    return trusted(read_judges(open_state(url)).values())


def measured(url: str, note: Note = silent) -> list[Cell]:
    """What all runs of this state have committed: as the registry has it, and runs that it does not know. (One that it
    knew and forgot is in its sums: it left sums of its own.) `note`: hears of those that can't be read."""
    state = open_state(url)
    shared = Registry(state).read()
    known = {*shared.runs, *(key.removeprefix(SUMS).removesuffix(".json") for key in state.list(SUMS))}

    def unread(run_id: str, error: PenstockError) -> None:
        if run_id not in known:
            note(left_out(run_id, error))

    others = (run for run in open_history(url).runs(unread) if run.run_id not in known)
    return [*shared.cells, *(cell for run in others for cell in run.cells)]


def decided(url: str, decide: Callable[[Steering], Steering]) -> tuple[Steering, str | None]:
    """A person's word, which always changes something: what stands there now, and why it is not in the audit log yet.
    Raises what `decide` raises, `Corrupt`, `Temporary`."""
    file = SteeringFile(url)
    after = file.change(decide)
    assert after is not None, "a person's word always changes something"
    try:
        file.pay(after.owed)
    except PenstockError as error:  # it holds already, and a run that goes writes it down
        return after, str(error)
    return after, None


def _change(url: str, model: str, decide: Callable[[Steering], Steering]) -> Heard:
    after, untold = decided(url, decide)
    return Heard(after.rollouts[model], untold)


def _live(known: Known, name: str, version: str) -> str:
    """The version that is live where nothing was steered yet: as the latest job that has the model knows it. Raises
    `SpecError` where no job has the model, or the version: jobs differ in what their catalogues hold."""
    models = [job.catalog.models[name] for job in known.jobs if name in job.catalog.models]
    unread = "".join(f". {each}" for each in known.unread)
    if not models:
        others = ", ".join(dict.fromkeys(each for job in known.jobs for each in job.catalog.models)) or "none"
        raise SpecError(
            f"no model is named {name!r}; models: {others}. --job names the job or catalogue file that has it{unread}"
        )
    versions = dict.fromkeys(each.id for model in models for each in model.versions)
    if version not in versions:
        raise SpecError(
            f"{name} has no version {version!r} in the catalogue; versions: {', '.join(versions)}. "
            f"Add it under `versions:` there first, and run the jobs with it{unread}"
        )
    return models[0].live


def jobs(url: str) -> Known:
    """Of each job's latest run that can be read, the latest first. An evaluation is no run of its job: it has the
    versions that it compares for live ones, and scores every row."""
    history, found, unread = open_history(url), dict[str, Job](), list[str]()

    def passed_over(run_id: str, error: PenstockError) -> None:
        unread.append(left_out(run_id, error))

    for run in history.runs(passed_over):
        if run.name not in found:
            try:
                spec = history.spec(run.run_id)
            except (Corrupt, SpecError) as error:
                passed_over(run.run_id, error)
            else:
                if not spec.pinned:
                    found[run.name] = Job(spec.catalog, spec.policy)
    return Known(list(found.values()), tuple(unread))


def me() -> str:
    """Who says it, for the audit log."""
    return actor_of(this_process(command_line()))
