"""Experiments at the intake: which arm an item comes into, and the parameters that it gets there."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from penstock.connectors.reading import chat
from penstock.engine.items import Attributes, Exposure
from penstock.engine.policy import Arm, Policy, Task
from penstock.engine.steering.arms import Draw


class Drawn(NamedTuple):
    """`defaults`: parameters of the arm, where it has its own. `prompts`: some arm of the experiment has a prompt."""

    name: str
    exposure: Exposure
    defaults: chat.Defaults | None
    prompts: bool


class _Ready(NamedTuple):
    draw: Draw
    defaults: list[chat.Defaults | None]
    prompts: bool


class Arms:
    """`stopped`: experiments that take no new units; it may change at any time."""

    def __init__(self, policy: Policy, stopped: Collection[str] = ()) -> None:
        self._stopped = stopped
        self._by_task: dict[str, _Ready] = {}
        for experiment in policy.experiments:
            task = policy.tasks[experiment.task]
            defaults = [_defaults(task, arm) for arm in experiment.arms]
            prompts = any(arm.prompt is not None for arm in experiment.arms)
            self._by_task[task.name] = _Ready(Draw(experiment), defaults, prompts)

    def lead_to(self, exposure: Exposure) -> bool:
        """Whether some arm goes where it does."""
        arms = (arm for ready in self._by_task.values() for arm in ready.draw.experiment.arms)
        return any((arm.model, arm.version) == (exposure.model, exposure.version) for arm in arms)

    def of(self, task: str, attributes: Attributes, item_id: str) -> Drawn | None:
        """None: the task is in no experiment."""
        ready = self._by_task.get(task)
        if ready is None:
            return None
        draw = ready.draw
        at, exposure = draw.exposed(attributes.unit, item_id, stopped=draw.experiment.id in self._stopped)
        return Drawn(draw.experiment.arms[at].name, exposure, ready.defaults[at], ready.prompts)


def task_of(task: Task, arm: Arm) -> Task:
    """The task as this arm does it."""
    made = msgspec.structs.replace(task, prompt=arm.prompt or task.prompt)
    if arm.params_json is None:
        return made
    return msgspec.structs.replace(
        made, params_json=arm.params_json, max_tokens=arm.max_tokens, temperature=arm.temperature
    )


def _defaults(task: Task, arm: Arm) -> chat.Defaults | None:
    return None if arm.params_json is None else chat.Defaults(task_of(task, arm))
