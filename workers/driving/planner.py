"""Making a run's durable plan, and reading it again: what is new, what changed, how the input is bundled in lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from penstock.connectors.base import Growing, Later, Primary, Revisited, Source
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.registry import PRIMARY, open_source, placement, where
from penstock.connectors.settings import KafkaSink, KafkaSource
from penstock.connectors.state import open_state
from penstock.engine.errors import SpecError
from penstock.engine.flow.cells import Cell, cells_in, summed
from penstock.engine.flow.progress import OUTBOX, saved_in
from penstock.engine.flow.tally import Tally, as_before, merge
from penstock.engine.plan import MAX_LANES, Plan, Split
from penstock.workers.driving.left_over import left_over
from penstock.workers.runspec import RunOptions, RunSpec

BYTES_PER_LANE = 16_000_000
"""A lane for every so many bytes of input: fewer are not worth a lane's commits. A guess."""


class Planned(msgspec.Struct, frozen=True):
    """`resumed`: the plan was there. `notes`: what is worth telling of it. `changed`: parts of the job, accepted."""

    plan: Plan
    resumed: bool = False
    notes: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


async def durable_plan(spec: RunSpec, options: RunOptions, primary: Primary, cores: int, now: float) -> Planned:
    """The run's plan as the primary holds it when this returns: made, or read and extended by what is new.

    Raises `SpecError` where the job file changed in ways that change answers and nobody accepts it, where a sink moved
    away from what is committed to it, where a run with an end is to have none, or the other way round, and where what
    is left of its input is of another kind than its source is now.
    """
    made, new = await wanted_plan(spec, options, primary, cores, now)
    if not made.resumed:
        await _close_leases(spec, now)
    if new:
        await primary.write_plan(made.plan)
    return made


async def _close_leases(spec: RunSpec, now: float) -> None:
    """A life whose progress was deleted may have left some open, under names that the new one, whose epochs begin at 1
    again, would give its own: their money would be handed out twice."""
    if spec.budgets:
        await asyncio.to_thread(LedgerClient(open_state(spec.state), spec.run_id).forfeit_run, now)


async def wanted_plan(
    spec: RunSpec, options: RunOptions, primary: Primary, cores: int, now: float
) -> tuple[Planned, bool]:
    """What `durable_plan` makes or raises, and whether it is to be written; nothing is. So a command that would be
    refused leaves the one alone that it means to replace."""
    source = open_source(spec.source)
    plan = await primary.read_plan()
    if plan is None:
        refuse_moved_results(spec, options)
        if options.generation_anew is not None:
            spec = msgspec.structs.replace(spec, generation=options.generation_anew)
        return Planned(first_plan(spec, await source.splits(spec.execution.lanes or 2 * cores), cores, now)), True
    refuse_other_end(plan, spec)
    refuse_moved_sinks(plan, spec)
    left = await left_over(plan, spec, primary, accept=options.accept_changes)
    changed = _changes(plan, spec)
    if changed and not options.accept_changes and await _any_finished(plan, primary):
        raise SpecError(
            f"run {spec.run_id} was begun with another job file; changed: {', '.join(changed)}. "
            "Finished items would keep their old answers: go on with --accept-changes, or start over with --fresh"
        )
    notes = [*left, *(f"changed since this run began, and accepted: {part}" for part in changed)]
    found = await listed(source, plan)
    notes += [found.missing] if found.missing is not None else []
    longer = extended(plan, spec, found.splits)
    if longer is None:
        return Planned(plan, True, tuple(notes), tuple(changed)), False
    if new := len(longer.splits) - len(plan.splits):
        notes.append(f"{new} new piece{'s' if new > 1 else ''} of input joined the run")
        longer = msgspec.structs.replace(longer, joined_at=now)
    return Planned(longer, True, tuple(notes), tuple(changed)), True


async def listed(source: Source, plan: Plan) -> Later:
    """The input as it is now, or at least what of it the plan does not know."""
    if isinstance(source, Growing):
        return await source.later({split.object_id for split in plan.splits})
    if isinstance(source, Revisited):
        return await source.beside(plan)
    return Later(await source.splits(plan.lanes))


async def _any_finished(plan: Plan, primary: Primary) -> bool:
    """Is there an answer that a changed job would make wrong? One that was mended before its first just goes on."""
    for lane in range(plan.lanes):
        tally = saved_in((await primary.peek(lane)).chunks).tally
        if tally.results or tally.dead_letters:
            return True
    return False


async def all_ended(plan: Plan, primary: Primary) -> tuple[Tally, list[Cell]] | None:
    """The sums of all lanes where every item of the plan has ended and followers have all records; else None. To an
    endless run more may come."""
    if not plan.started or not plan.bounded:
        return None
    total, cells = Tally(), list[list[Cell]]()
    for lane in range(plan.lanes):
        taken = await primary.peek(lane)
        saved = saved_in(taken.chunks)
        splits = sum(1 for split in plan.splits if split.lane == lane)
        if not saved.done or saved.opened != splits or any(name.startswith(OUTBOX) for name in taken.chunks):
            return None
        merge(total, saved.tally)
        cells.append(cells_in(taken.chunks))
    as_before(total)
    return total, summed(*cells)


def lane_count(spec: RunSpec, total_bytes: int, cores: int) -> int:
    """As the job says, else by size and cluster. Frozen by the plan."""
    if spec.limit is not None:
        return 1
    if spec.execution.lanes is not None:
        return max(1, min(MAX_LANES, spec.execution.lanes))
    if spec.endless:  # its size says nothing
        return min(MAX_LANES, 2 * cores)
    return max(1, min(MAX_LANES, 2 * cores, -(-total_bytes // BYTES_PER_LANE)))


def first_plan(spec: RunSpec, splits: Sequence[Split], cores: int, now: float) -> Plan:
    lanes = lane_count(spec, sum(split.size_bytes for split in splits), cores)
    placed = tuple(
        msgspec.structs.replace(split, ordinal=number, lane=number % lanes) for number, split in enumerate(splits)
    )
    return Plan(
        run_id=spec.run_id,
        name=spec.name,
        vars=spec.vars,
        lanes=lanes,
        splits=placed,
        fingerprint=spec.fingerprint,
        created_at=now,
        generation=spec.generation,
        bounded=not spec.endless,
        sinks=_placement(spec),
        topics=_topics(spec),
    )


def extended(plan: Plan, spec: RunSpec, splits: Sequence[Split]) -> Plan | None:
    """The plan with new inputs appended and the job's present fingerprint; None where nothing is new.

    An object that the plan knows is never split again, whatever pieces it would make today.
    """
    known = {split.object_id for split in plan.splits}
    next_ordinal = 1 + max((split.ordinal for split in plan.splits), default=-1)
    added = tuple(
        msgspec.structs.replace(split, ordinal=next_ordinal + number, lane=_hash(split.id) % plan.lanes)
        for number, split in enumerate(split for split in splits if split.object_id not in known)
    )
    longer = msgspec.structs.replace(
        plan,
        splits=_as_read_now(plan.splits, spec) + added,
        fingerprint=spec.fingerprint,
        bounded=not spec.endless,
        sinks=_placement(spec),
        topics=_topics(spec),
    )
    return msgspec.structs.replace(longer, version=plan.version + 1) if longer != plan else None


def refuse_moved_results(spec: RunSpec, options: RunOptions) -> None:
    """Raises `SpecError` where there is no plan, and history knows the run with its results elsewhere, or with items
    that had ended."""
    here = where(spec.sinks["results"])
    if options.results_at not in (None, here):
        raise SpecError(
            f"the results of run {spec.run_id} were at {options.results_at}, and nothing of it is at {here}: all would "
            "be paid for again. Put the sink's path back, move its working folder along, or start over with --fresh"
        )
    if options.ended:
        raise SpecError(
            f"{options.ended:,} items of run {spec.run_id} had ended, and nothing of it is at {here} any more (its "
            "progress was deleted, or this is another store at the same address): all would be paid for again. Put it "
            "back, or start over with --fresh"
        )


def refuse_other_end(plan: Plan, spec: RunSpec) -> None:
    """Raises `SpecError` where `until:` is another one than when the plan was made, which says of each piece of input
    where it ends: what comes later would never be read, and nothing would say so; or the run would never end."""
    if plan.bounded and spec.endless:
        raise SpecError(
            f"run {spec.run_id} was begun with an end, and reads nothing of its input behind it. A run without an end "
            f"is another one: give the job another name: (`start: group:{_group(spec)}` goes on where this run is), "
            "put `until: end` back, or start over with --fresh (and pay again)"
        )
    if not plan.bounded and not spec.endless:
        raise SpecError(
            f"run {spec.run_id} was begun without an end, and has none to come to. Put `until: forever` back, and stop "
            "it when it has done what you want (Ctrl-C); a run with an end is another one: give the job another name:, "
            "or start over with --fresh (and pay again)"
        )


def _group(spec: RunSpec) -> str:
    named = spec.source.group if isinstance(spec.source, KafkaSource) else None
    return named or spec.run_id


def refuse_moved_sinks(plan: Plan, spec: RunSpec) -> None:
    """Raises `SpecError` where a sink went from one of the run's stores to another: what is committed to it stays in
    the first, which would put it out no more. A store that is elsewhere as a whole is known by what its lanes hold. Or
    from one topic to another: whoever reads the run, its bill and its dead letters would see a part as if it were all.
    """
    stores = _placement(spec)
    if plan.started and plan.sinks and (new := [sink for sink in stores if sink not in plan.sinks]):
        raise SpecError(
            f"{' and '.join(new)} {'is' if len(new) == 1 else 'are'} new to run {spec.run_id} that has begun: what it "
            "did is not in there. Leave the sink out for this run, or start over with --fresh (and pay again)"
        )
    for sink, now in stores.items():
        before = plan.sinks.get(sink, now)
        if before != now and (now in plan.sinks.values() or before in stores.values()):
            raise SpecError(
                f"{sink} went to another store since run {spec.run_id} began ({_told(before)}; now {_told(now)}): what "
                "it holds so far would be in no output. Put the sink's path back, or start over with --fresh"
            )
    _refuse_other_topics(plan, spec)


def _refuse_other_topics(plan: Plan, spec: RunSpec) -> None:
    for sink, now in _topics(spec).items():
        before = plan.topics.get(sink, now)
        if plan.started and before != now:
            raise SpecError(
                f"{sink} went to another topic since run {spec.run_id} began ({before}; now {now}): what is in the "
                "first would count no more as the run's. Put the topic back, give the job another name:, or start over "
                "with --fresh (and pay again)"
            )


def _topics(spec: RunSpec) -> dict[str, str]:
    return {str(name): sink.topic for name, sink in spec.sinks.items() if isinstance(sink, KafkaSink)}


def _placement(spec: RunSpec) -> dict[str, str]:
    return {str(sink): store for sink, store in placement(spec.sinks).items()}


def _told(store: str) -> str:
    return "beside the results" if store == PRIMARY else f"at {store}"


def _changes(plan: Plan, spec: RunSpec) -> list[str]:
    """What changed in ways that change answers."""
    parts = sorted(set(plan.fingerprint) | set(spec.fingerprint))
    changed = [part for part in parts if plan.fingerprint.get(part) != spec.fingerprint.get(part)]
    return changed if _as_read_now(plan.splits, spec) == plan.splits else [*changed, "source: format"]


def _as_read_now(splits: tuple[Split, ...], spec: RunSpec) -> tuple[Split, ...]:
    """A topic's records are what the job says that they are: it may have been mended since the plan was made."""
    if not isinstance(spec.source, KafkaSource):
        return splits
    format = spec.source.format or "auto"
    return tuple(split if split.format == format else msgspec.structs.replace(split, format=format) for split in splits)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
