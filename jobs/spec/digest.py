"""Short stable hashes, and the fingerprint: which part of a job has changed in a way that changes answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from penstock.connectors.settings import Row
from penstock.engine import judging
from penstock.engine.catalog import REFUSABLE, Account, Catalog, Model
from penstock.engine.policy import Policy, Task

_HARMLESS = frozenset(
    {
        "max_num_seqs",
        "max_num_batched_tokens",
        "gpu_memory_utilization",
        "enforce_eager",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "swap_space",
        "enable_prefix_caching",
    }
)
"""Engine settings that change speed, not answers."""


def digest(value: object) -> str:
    """12 hex digits: 48 bits, plenty for telling a handful of versions apart."""
    text = msgspec.json.encode(value, order="deterministic")
    return hashlib.blake2b(text, digest_size=6).hexdigest()


def run_id(name: str, values: Mapping[str, str]) -> str:
    """Readable and stable: `label-messages-3f9a1c04`. The same name and vars are the same run."""
    slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    slug = "-".join(part for part in slug.split("-") if part)[:40].rstrip("-") or "job"
    return f"{slug}-{digest([name, dict(values)])[:8]}"


def fingerprint(policy: Policy, catalog: Catalog, row: Row, shape: str | None) -> dict[str, str]:
    """Part, in words that a person can be told → hash. Sinks, limits, budgets, prices, execution and models that this
    job does not send to are not in it. A new release of Penstock must give the same hashes for the same job."""
    parts: dict[str, object] = {
        "shape": shape,
        "row": [row.id, row.keep, row.attributes],
        "rules": policy.rules,
        "tiers": sorted(catalog.tiers.items()),
        "walls": [catalog.walls, catalog.unknown_wall],
    }
    for name, task in policy.tasks.items():
        parts |= {f"task {name}: {part}": value for part, value in _task(task).items()}
    for each in policy.experiments:
        parts[f"experiment {each.id}"] = msgspec.structs.replace(each, version="")  # a hash of the rest
    for name in names_in_use(policy, catalog):
        parts[f"model {name}"] = _model(catalog.models[name], catalog)
    return {part: digest(value) for part, value in parts.items()}


def names_in_use(policy: Policy, catalog: Catalog) -> list[str]:
    """Models that tiers, tasks and rules name, in that order; others are reached by a pin only."""
    names = [n for tier in catalog.tiers.values() for n in tier]
    names += [n for task in policy.tasks.values() for n in task.models or ()]
    names += [n for task in policy.tasks.values() if task.cascade is not None for n in task.cascade.models]
    names += [n for rule in policy.rules for n in rule.use or ()]
    names += [arm.model for each in policy.experiments for arm in each.arms if arm.model is not None]
    return list(dict.fromkeys(names))


def names_called(policy: Policy, catalog: Catalog) -> list[str]:
    """The same, and those whose answers are no results: shadows and judges."""
    tasks = policy.tasks.values()
    shadows = [catalog.parted(name)[0] for task in tasks if task.shadow is not None for name in task.shadow.models]
    judges = [judge.model for task in tasks for _, judge in judging.judges(task) if judge.model is not None]
    return list(dict.fromkeys([*names_in_use(policy, catalog), *shadows, *judges]))


def _task(task: Task) -> dict[str, object]:
    return {
        "prompt": task.prompt.version if task.prompt else None,
        "output": task.output,
        "params": task.params_json,
        "routing": [task.tier, task.min_quality, task.models],
        **({"cascade": task.cascade} if task.cascade is not None else {}),
    }


def _model(model: Model, catalog: Catalog) -> list[object]:
    account = catalog.accounts.get(model.account or "")
    engine = {k: v for k, v in model.engine.items() if k not in _HARMLESS}
    where = _where(account) if account else [model.worker]
    live = model.live_version
    walls = [model.regions, model.origin, model.licence, model.no_train]
    unsaid = sorted(REFUSABLE.intersection(model.lacks))
    return [live.id, live.model, live.revision, engine, *where, walls, model.default_max_tokens, *unsaid]


def _where(account: Account) -> list[str]:
    """The sandbox's port is no part of an answer."""
    return [account.protocol, "sandbox" if account.provider == "sandbox" else account.base_url]


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What differs, in words; empty: nothing that changes answers."""
    told: list[str] = []
    for part in sorted({*before, *after}):
        if part not in after:
            told.append(f"{part} is gone")
        elif part not in before:
            told.append(f"{part} is new")
        elif before[part] != after[part]:
            told.append(f"{part} has changed")
    return told
