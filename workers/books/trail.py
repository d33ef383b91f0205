"""What a run's driver puts into the audit log (`engine.audit`): who began it with what, what it refused, how it ended.

What lets a run send or delete is written before it happens, and a log that can't be written refuses the run. Once
it goes, an entry that can't be written is tried again and told in the run's notes: no run ends for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from hashlib import blake2b

import msgspec

from penstock.connectors.audit import actor_of, open_audit
from penstock.connectors.base import Holder, this_process
from penstock.connectors.fingerprints import read_met, write_met
from penstock.engine.audit import MAX_AHEAD, Draft, Kind
from penstock.engine.catalog import Catalog, Model, Wall
from penstock.engine.errors import PenstockError
from penstock.engine.flow.tally import Tally
from penstock.engine.policy import Policy, Task
from penstock.engine.pricing import price_of
from penstock.engine.walls import refusal
from penstock.workers.books.naming import Naming
from penstock.workers.clock import since
from penstock.workers.driving.planner import Planned
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunState, RunStatus

WRITE_EVERY_S = 300.0
"""Refusals are summed, and entries that could not be written are tried again, so often."""
MOST_WAITING = 64
"""Entries that wait for a log that can't be written: days of them."""
WALLED = ("wall", "unknown_sensitivity")
"""Dead letters that a wall made."""
DAY_S = 86_400
PENSTOCK = "penstock"


class Trail:
    """One driver's hand on the log. `note`: tells people. `began` comes first, `ended` last."""

    def __init__(self, spec: RunSpec, options: RunOptions, note: Callable[[str], None]) -> None:
        self._spec = spec
        self._options = options
        self._note = note
        self._person = this_process(options.command)
        self._waiting: list[Draft] = []
        self._flushed_at = 0.0
        self._walls: dict[str, object] = {}
        self._naming = Naming(spec.catalog, spec.run_id, note)
        self._money_day = -1.0
        self._trouble = ""
        self._forgetful = ""

    async def deletes(self, now: float) -> None:
        """Before `--fresh` throws anything away. Raises `Temporary`, `Corrupt`, as `takes_over` and `began` do."""
        what = "the run's outputs and progress, if it had any: --fresh"
        await self._write([self._draft(now, "deletion", {"what": what}, self._person)])

    async def takes_over(self, holder: Holder | None, now: float) -> None:
        """Before the run is taken from whoever holds it."""
        if holder is not None:
            facts = {"from": actor_of(holder), "pid": holder.pid, "held_since": int(holder.since)}
            await self._write([self._draft(now, "take_over", facts, self._person)])

    async def began(self, epoch: int, made: Planned, now: float) -> None:
        """The run is held and its plan durable; nothing was sent yet."""
        started = _started(self._spec, self._options, epoch, made)
        drafts = [self._draft(now, "run_started", started, self._person)]
        if made.changed:
            drafts.append(self._draft(now, "job_changed", {"changed": made.changed}, self._person))
        drafts.append(self._draft(now, "policy", routes(self._spec.policy, self._spec.catalog)))
        self._flushed_at = now
        await self._write(drafts)
        await self._recall()

    async def look(self, status: RunStatus, now: float) -> None:
        """Now and then, while the run goes. Never raises."""
        if status.waits_for_money is not None and now // DAY_S != self._money_day:
            self._money_day = now // DAY_S
            self._add(self._draft(now, "budget_stop", {"waits": status.waits_for_money}))
        await self._add_names(status.tally, now)
        if since(self._flushed_at, now) >= WRITE_EVERY_S:
            self._flushed_at = now
            self._add_walls(status.tally, now)
            await self._flush()

    async def ended(self, state: RunState, message: str, tally: Tally, now: float) -> None:
        """Never raises. A message of others' making (a provider's, a library's) stays out."""
        await self._add_names(tally, now)
        self._add_walls(tally, now)
        if state == "stopped_by_budget":
            self._add(self._draft(now, "budget_stop", {"stopped": message}))
        facts = {
            "state": state,
            "results": tally.results,
            "dead_letters": tally.dead_letters,
            "cost_nano": tally.cost_nano,
            "forfeit_nano": tally.forfeit_nano,
        }
        self._add(self._draft(now, "run_ended", facts))
        await self._flush()

    async def _recall(self) -> None:
        """Who answered earlier commands. A run is not refused for a memory that can't be read."""
        try:
            self._naming.known = await asyncio.to_thread(read_met, self._spec.state)
        except PenstockError as error:
            self._note(f"whether models answer with other fingerprints than before can't be told: {error}")

    async def _add_names(self, tally: Tally, now: float) -> None:
        """What is new is told before it is remembered: who dies in between tells it once more."""
        for facts in self._naming.news(tally):
            self._add(self._draft(now, "other_model", facts))
        met = self._naming.met(tally, now)
        if not met:
            return
        try:
            await asyncio.to_thread(write_met, self._spec.state, met)
            self._naming.known |= met
            self._forgetful = ""
        except Exception as error:  # noqa: BLE001 - told; what is not remembered now is tried again
            if str(error) != self._forgetful:
                self._note(f"which fingerprints answered is not remembered for now: {error}")
            self._forgetful = str(error)

    def _add_walls(self, tally: Tally, now: float) -> None:
        """Sums of the run so far, where they are new: so one that got lost leaves no gap."""
        dead = {reason: tally.dead_letters[reason] for reason in WALLED if reason in tally.dead_letters}
        facts: dict[str, object] = {"refused": _by_wall(tally), "dead_letters": dead}
        if facts != self._walls and (tally.refused or dead):
            self._walls = facts
            self._add(self._draft(now, "wall_refusals", facts))

    def _draft(self, now: float, kind: Kind, facts: Mapping[str, object], by: Holder | None = None) -> Draft:
        actor = PENSTOCK if by is None else actor_of(by)
        return Draft(now, actor, kind, self._spec.name, self._spec.run_id, facts)

    def _add(self, draft: Draft) -> None:
        self._waiting = [*self._waiting[1 - MOST_WAITING :], draft]

    async def _flush(self) -> None:
        try:
            while self._waiting:
                await self._write(self._waiting[:MAX_AHEAD])
                del self._waiting[:MAX_AHEAD]
            self._trouble = ""
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and the run goes on to its end
            if str(error) != self._trouble:
                self._note(f"the audit log lacks {len(self._waiting)} entries for now: {error}")
            self._trouble = str(error)

    async def _write(self, drafts: list[Draft]) -> None:
        await asyncio.to_thread(lambda: open_audit(self._spec.state).append(*drafts))


def _by_wall(tally: Tally) -> dict[str, dict[str, int]]:
    """Wall → model → items that it kept from this model."""
    found: dict[str, dict[str, int]] = {}
    for pair, n in tally.refused_models.items():
        wall, _, model = pair.partition("|")
        found.setdefault(wall, {})[model] = n
    return found


def _started(spec: RunSpec, options: RunOptions, epoch: int, made: Planned) -> dict[str, object]:
    asked = [name for name in ("fresh", "accept_changes", "take_over") if getattr(options, name)]
    return {
        "epoch": epoch,
        "resumed": made.resumed,
        "lanes": made.plan.lanes,
        "generation": made.plan.generation,
        "limit": spec.limit,
        "asked": asked,
        "job_digest": _digest(spec.fingerprint),
        "policy_version": spec.policy.version,
        "budgets": spec.budgets,
    }


def routes(policy: Policy, catalog: Catalog) -> dict[str, object]:
    """Where items may go under this version of the policy: tiers, tasks, walls with what they forbid, prices."""
    return {
        "policy_version": policy.version,
        "tiers": {str(tier): names for tier, names in catalog.tiers.items()},
        "tasks": {name: _task(task) for name, task in policy.tasks.items()},
        "rules": {"count": len(policy.rules), "digest": _digest(policy.rules)},
        "walls": {name: _wall(wall, catalog) for name, wall in catalog.walls.items()},
        "unknown_wall": catalog.unknown_wall,
        "models": {name: _model(model) for name, model in catalog.models.items()},
        "prices_digest": _digest({name: _prices(model) for name, model in catalog.models.items()}),
    }


def _task(task: Task) -> dict[str, object]:
    prompt = task.prompt.version if task.prompt is not None else None
    return {"tier": task.tier, "min_quality": task.min_quality, "models": task.models, "prompt_version": prompt}


def _wall(wall: Wall, catalog: Catalog) -> dict[str, object]:
    says = {name: refusal(wall, m, catalog.accounts.get(m.account or "")) for name, m in catalog.models.items()}
    return {
        "permits": [name for name, why in says.items() if why is None],
        "forbids": {name: why for name, why in says.items() if why is not None},
    }


def _model(model: Model) -> dict[str, object]:
    live = model.live_version
    by = f"own {model.worker}" if model.worker else model.account
    price = price_of(model, live.id)
    told = price.version if price is not None else None
    return {"version": live.id, "served_as": live.model, "revision": live.revision, "by": by, "price_version": told}


def _prices(model: Model) -> list[object]:
    return [{version.id: price_of(model, version.id) for version in model.versions}, model.hour_usd]


def _digest(value: object) -> str:
    return blake2b(msgspec.json.encode(value, order="sorted"), digest_size=16).hexdigest()
