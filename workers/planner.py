"""Making a run's durable plan, and reading it again: what is new, what changed, how the input is bundled in lanes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from penstock.engine.errors import SpecError
from penstock.engine.plan import MAX_LANES, Plan, Split
from penstock.workers.runspec import RunSpec

BYTES_PER_LANE = 16_000_000
"""A lane for every so many bytes of input: fewer are not worth a lane's commits. A guess."""


def lane_count(spec: RunSpec, total_bytes: int, cores: int) -> int:
    """As the job says, else by size and cluster. Frozen by the plan."""
    if spec.limit is not None:
        return 1
    if spec.execution.lanes is not None:
        return max(1, min(MAX_LANES, spec.execution.lanes))
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
    if not added and plan.fingerprint == spec.fingerprint:
        return None
    return msgspec.structs.replace(
        plan, splits=plan.splits + added, fingerprint=spec.fingerprint, version=plan.version + 1
    )


def check_unchanged(plan: Plan, spec: RunSpec, *, accept: bool) -> list[str]:
    """What changed in ways that change answers. Raises `SpecError` unless it is accepted."""
    parts = sorted(set(plan.fingerprint) | set(spec.fingerprint))
    changed = [part for part in parts if plan.fingerprint.get(part) != spec.fingerprint.get(part)]
    if changed and not accept:
        raise SpecError(
            f"run {spec.run_id} was begun with another job file; changed: {', '.join(changed)}. "
            "Finished items would keep their old answers: go on with --accept-changes, or start over with --fresh"
        )
    return changed


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
