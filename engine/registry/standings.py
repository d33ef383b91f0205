"""From the registry's document to the standings of the models that a job may use.

**Quality** is that of the task's first scorer that needs no judge, with the job's own prompt: another prompt is another
thing to measure. Results and shadows both count.

**Cost** is recomputed from tokens at the present price where a provider bills by tokens; hours of own engines that no
call was charged for, and what judging cost, are spread over the model's items.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from penstock.engine.catalog import Catalog, Model, Price
from penstock.engine.flow.cells import COUNTED, Cell, add
from penstock.engine.items import Usage
from penstock.engine.measure.moments import Moments
from penstock.engine.measure.sample import Sample
from penstock.engine.policy import Policy, Task
from penstock.engine.pricing import cost_nano, price_of, rate_of
from penstock.engine.quality import scorer_name, scorer_version
from penstock.engine.registry.document import Measured
from penstock.engine.registry.standing import Standing


def standings(shared: Measured, catalog: Catalog, policy: Policy) -> tuple[Standing, ...]:
    """Of this job's tasks, prompts, scorers and models; in a stable order."""
    found: dict[tuple[str, str, str], Standing] = {}
    for task in policy.tasks.values():
        prompt, scorer = task.prompt.version if task.prompt else "", scorer_of(task)
        cells = [c for c in shared.cells if (c.task, c.prompt) == (task.name, prompt)]
        windows = {
            (one.model, one.version): tuple(window.scores.sample() for window in one.windows)
            for one in shared.recent
            if (one.task, one.prompt, one.scorer) == (task.name, prompt, scorer)
        }
        idle = _idle(shared.cells)
        for model in catalog.models.values():
            for version in model.versions:
                own = [c for c in cells if (c.model, c.version, c.role) == (model.name, version.id, "")]
                seen = windows.get((model.name, version.id), ())
                if own or seen:
                    found[task.name, model.name, version.id] = _standing(task.name, model, version.id, own, seen, idle)
    return tuple(found[key] for key in sorted(found))


def scorer_of(task: Task) -> str | None:
    """`name@version` of the scorer that routes go by: the first that is no judge."""
    first = next((scorer for scorer in task.scorers if scorer.type != "judge"), None)
    return None if first is None else f"{scorer_name(first)}@{scorer_version(first)}"


def _idle(cells: Iterable[Cell]) -> dict[str, float]:
    """Model → hours that no call was charged for, as a share of what calls were."""
    charged: dict[str, int] = {}
    idle: dict[str, int] = {}
    for cell in cells:
        into = idle if cell.role == "idle" else charged
        into[cell.model] = into.get(cell.model, 0) + cell.cost_nano
    return {model: nano / charged[model] for model, nano in idle.items() if charged.get(model, 0) > 0}


def _standing(
    task: str, model: Model, version: str, cells: Sequence[Cell], windows: tuple[Sample, ...], idle: dict[str, float]
) -> Standing:
    whole = Cell()
    for cell in cells:
        add({whole.key: whole}, [msgspec.structs.replace(Cell(*whole.key), **_sums(cell))])
    ratio = _present(whole, model, version)
    cost = whole.cost()
    return Standing(
        task,
        model.name,
        version,
        windows,
        whole.items,
        whole.results,
        whole.input,
        whole.output,
        Moments(cost.n, cost.mean * ratio, cost.squares * ratio * ratio),
        (whole.judge_nano / whole.cost_nano if whole.cost_nano > 0 else 0.0) + max(0.0, idle.get(model.name, 0.0)),
        whole.log_ms(),
        whole.engine_s(),
    )


def _sums(cell: Cell) -> dict[str, object]:
    names = (*COUNTED, "task", "model", "version", "prompt", "price", "role", "experiment", "arm")
    return {name: getattr(cell, name) for name in Cell.__struct_fields__ if name not in names}


def _present(whole: Cell, model: Model, version: str) -> float:
    """Cost at the present price over the cost as it was. 1 where hours are paid for, or nothing was charged."""
    price = price_of(model, version)
    if model.worker is not None or price is None or not whole.cost_nano or not whole.calls:
        return 1.0
    at = rate_of(price, whole.input // whole.calls)
    flat = Price(
        input=at.input,
        output=at.output,
        cached=at.cached,
        cache_write=at.cache_write,
        cache_write_1h=at.cache_write_1h,
        per_request=price.per_request,
    )
    usage = Usage(whole.input, whole.cached, whole.cache_write, whole.cache_write_1h, whole.output, whole.reasoning)
    return cost_nano(usage, flat, whole.calls) / whole.cost_nano
