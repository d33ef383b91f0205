"""The driver's hand on `steering.json`: passes it on to the lanes, and judges rollouts by what was measured.

Every driver looks, and whoever sees first that a stage is over says so; the swap lets one of them win. A look that
fails is told once: the lanes go on with what they were told last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable

import msgspec

from penstock.connectors.calibrations import read_judges
from penstock.connectors.documents import Tag
from penstock.connectors.measured import Registry
from penstock.connectors.state import open_state
from penstock.connectors.steering import SteeringFile
from penstock.engine.catalog import Catalog, is_own
from penstock.engine.errors import PenstockError
from penstock.engine.flow.cells import Cell
from penstock.engine.policy import Experiment, Policy
from penstock.engine.steering import document, rollout
from penstock.engine.steering.document import Owed, Steering
from penstock.engine.steering.evidence import judged, silent, unpaid
from penstock.engine.steering.judges import trusted
from penstock.engine.steering.rollout import Rollout
from penstock.engine.steering.trials import broken
from penstock.engine.steering.turn import Turn
from penstock.workers.clock import since

Tell = Callable[[bytes], Awaitable[None]]
Reading = Callable[[], Iterable[Cell]]

JUDGE_EVERY_S = 3.0
OWED_S = 15.0
"""A decision that is not in the audit log after so long lost its writer: another writes it down."""


def reading(url: str, run_id: str, own: Callable[[], Iterable[Cell]]) -> Reading:
    """What all jobs measured. `own`: this run's, as long as the registry does not know the run."""

    def read() -> list[Cell]:
        shared = Registry(open_state(url)).read()
        return shared.cells if run_id in shared.runs else [*shared.cells, *own()]

    return read


class Steersman:
    """`tell`: the lanes; `reading`: the measured cells, of all jobs (called in a thread)."""

    def __init__(
        self,
        url: str,
        catalog: Catalog,
        reading: Reading,
        note: Callable[[str], None],
        policy: Policy | None = None,
    ) -> None:
        self._url = url
        self._file = SteeringFile(url)
        self._catalog = catalog
        self._reading = reading
        self._experiments = [each for each in policy.experiments if each.guardrails] if policy is not None else []
        self._named = named_pools(catalog, policy) if policy is not None else frozenset[str]()
        self._note = note
        self._tag: Tag | None = None
        self._told = False
        self._judged_at = 0.0
        self._unknown: set[str] = set()
        self._unlike: set[tuple[str, str]] = set()
        """(model, version) of which it was told that the catalogue says otherwise."""
        self._trouble = ""
        self._untold = ""
        """Why decisions are not in the audit log, as it was told."""
        self.steering = Steering()
        self._pools: set[str] = set()
        """Of own engines, all that were ever in use."""

    async def first(self, tell: Tell) -> None:
        """Before anything is sent. Raises `Corrupt`, `Temporary`: nobody may guess which version a unit gets."""
        await self._read(tell)

    async def look(self, tell: Tell, now: float) -> None:
        """Every second or so. Never raises for a state that can't be read now."""
        try:
            await self._read(tell)
            if since(self._judged_at, now) >= JUDGE_EVERY_S:
                self._judged_at = now
                await self._judge(tell, now)
            self._trouble = ""
        except PenstockError as error:
            if str(error) != self._trouble:
                self._note(f"rollouts can't be seen to now, versions stay as they are: {error}")
            self._trouble = str(error)

    def pools(self) -> set[str]:
        """Of own engines: whose workers serve a version that items may get now."""
        turn = Turn(self._catalog.models, self.steering)
        own = (model for model in self._catalog.models.values() if model.worker is not None)
        return {model.pool_of(version) for model in own for version in turn.versions(model)}

    def left(self) -> set[str]:
        """Of own engines: whose version was in use, and is not any more. Those that a task names for itself stay."""
        return self._pools - self.pools() - self._named

    async def pool_down(self, tell: Tell, pool: str, why: str, now: float) -> None:
        """An own engine can't be started: a version under trial that can't is taken back, for no guard would ever see
        an item of it. Never raises: where the state can't be written now, a person has to say it."""
        models = self._catalog.models
        mine = (at for at in self.steering.rollouts.values() if at.auto and at.active and at.model in models)
        for at in [at for at in mine if models[at.model].pool_of(at.candidate) == pool and is_own(pool)]:
            moved = rollout.said(at, "rollback", rollout.PENSTOCK, now, f"its engine can't be started: {why}")
            try:
                await asyncio.to_thread(self._file.change, lambda now, at=at, moved=moved: _moved(now, [(at, moved)]))
                await self._read(tell)
                await self._pay(self.steering.owed)
            except PenstockError as error:
                self._note(f"{at.model}@{at.candidate} can't be taken back now: {error}; penstock rollback {at.model}")

    async def _read(self, tell: Tell) -> None:
        found = await asyncio.to_thread(self._file.read, self._tag)
        if found is None:
            return
        before, (self.steering, tag) = self.steering, found
        if self._told and before.number == self.steering.number:  # an entry was written down, or nothing ever was
            self._tag = tag
            return
        await tell(msgspec.json.encode(self.steering))
        self._tag, self._told = tag, True
        self._pools |= self.pools()
        self._say(before)

    def _say(self, before: Steering) -> None:
        for name in Turn(self._catalog.models, self.steering).unknown:
            if name not in self._unknown:
                self._unknown.add(name)
                self._note(f"{name} is not in this job's catalogue: it goes on with its own live version")
        for model, version in self.steering.live.items():
            if model in self._catalog.models and (model, version) not in self._unlike:
                self._say_unlike(model, version)
        for model, at in self.steering.rollouts.items():
            was = before.rollouts.get(model)
            if model in self._catalog.models and at.active | (was is not None) and at != was:
                self._note(told(at))

    def _say_unlike(self, model: str, version: str) -> None:
        """Somebody may have written another version into the catalogue, and wait for it. One that is as it was before a
        rollout was promoted was not written for that."""
        own, at = self._catalog.models[model], self.steering.rollouts.get(model)
        behind = at is not None and at.state in ("promoted", "watching") and at.baseline == own.live
        if version == own.live or behind or f"{model}@{version}" in self._unknown:
            return
        self._unlike.add((model, version))
        by = f"the rollout {at.id} ({at.state.replace('_', ' ')})" if at is not None else "an earlier rollout"
        self._note(
            f"{model}: this job's catalogue says that {own.live} is live, and {by} that {version} is, which holds for "
            f"all jobs; penstock rollout start {model} {own.live} moves it"
        )

    async def _judge(self, tell: Tell, now: float) -> None:
        await self._pay(tuple(each for each in self.steering.owed if now - each.at > OWED_S))
        running = [at for at in self.steering.rollouts.values() if at.state in ("running", "watching")]
        mine = [at for at in running if at.model in self._catalog.models]
        trials = [each for each in self._experiments if each.id not in self.steering.experiments]
        if (mine or trials) and await asyncio.to_thread(self._decide, mine, trials, now):
            await self._read(tell)
            await self._pay(self.steering.owed)

    async def _pay(self, owed: tuple[Owed, ...]) -> None:
        """Into the audit log. Where it can't be written they stay owed and that is told: no bad version goes on
        answering for it."""
        try:
            await asyncio.to_thread(self._file.pay, owed)
            self._untold = "" if owed else self._untold
        except PenstockError as error:
            if str(error) != self._untold:
                self._note(f"the audit log lacks {len(owed)} decisions about versions for now; they hold: {error}")
            self._untold = str(error)

    def _decide(self, running: list[Rollout], trials: list[Experiment], now: float) -> bool:
        """Was anything decided? By us, or by somebody who was faster."""
        cells, judges = list(self._reading()), trusted(read_judges(open_state(self._url)).values())

        def seen(at: Rollout, *, bounds: bool) -> Rollout | None:
            told = judged(at, cells, judges, bounds=bounds)
            return rollout.see(at, told, now, unpaid(at, cells), silent(at, cells))

        due = [at for at in running if seen(at, bounds=False) is not None]
        moves = [(at, after) for at in due if (after := seen(at, bounds=True)) is not None]
        if moves:
            self._file.change(lambda steering: _moved(steering, moves))
        stops = [(each.id, why) for each in trials if (why := _broken(each, cells, judges)) is not None]
        for name, why in stops:
            self._file.change(lambda steering, name=name, why=why: _stopped(steering, name, why, now))
            self._note(f"experiment {name} is stopped, all get its first arm: {why}")
        return bool(moves or stops)


def named_pools(catalog: Catalog, policy: Policy) -> frozenset[str]:
    """Whose version is named by a shadow or an experiment's arm: asked for whatever is live."""
    shadows = (name for task in policy.tasks.values() if task.shadow is not None for name in task.shadow.models)
    targets = [(name, version) for name, version in map(catalog.parted, shadows) if version]
    targets += [arm.version for each in policy.experiments for arm in each.arms if arm.version is not None]
    return frozenset(catalog.models[name].pool_of(version) for name, version in targets)


def _broken(experiment: Experiment, cells: list[Cell], judges: Collection[str]) -> str | None:
    """Which guardrail some arm has broken."""
    told = broken(experiment, cells, judges)
    failed = ((arm, e) for arm, each in told.items() for e in each if e.decision == "fail" and not e.informs)
    return next((f"arm {arm}: {e.why}" for arm, e in failed), None)


def _stopped(steering: Steering, name: str, why: str, now: float) -> Steering | None:
    if name in steering.experiments:
        return None
    return document.with_experiment(steering, name, document.Stopped(now, rollout.PENSTOCK, why))


def _moved(steering: Steering, moves: list[tuple[Rollout, Rollout]]) -> Steering | None:
    """With the moves that start from what stands there; None: somebody else has decided meanwhile."""
    after = steering
    for before, moved in moves:
        if steering.rollouts.get(before.model) == before:
            after = document.with_rollout(after, moved)
    return after if after is not steering else None


def told(at: Rollout) -> str:
    """A rollout's last decision in one line, for people."""
    last = at.decisions[-1]
    where = at.where if at.active else at.state
    return f"rollout {at.model} {at.baseline} → {at.candidate}: {last.what}, {where}; by {last.by}: {last.why}"
