"""Penstock: an async message-queue batch engine for language-model work, on Ray.

    import penstock as ps
    result = ps.run("label-messages.yaml")
    result.to_arrow()

Everything here is loaded when it is first used: `import penstock` costs a few milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.engine.errors import (
        BadRecord,
        Corrupt,
        Fenced,
        Held,
        PenstockError,
        Permanent,
        Refused,
        SpecError,
        Spent,
        Temporary,
    )
    from penstock.jobs.mapping import map
    from penstock.jobs.result import JobResult
    from penstock.jobs.run import Job, arun, plan, run
    from penstock.jobs.submit import JobHandle, submit
    from penstock.workers.runspec import RunOptions, RunSpec
    from penstock.workers.status import RunStatus

__all__ = [
    "BadRecord",
    "Corrupt",
    "Fenced",
    "Held",
    "Job",
    "JobHandle",
    "JobResult",
    "PenstockError",
    "Permanent",
    "Refused",
    "RunOptions",
    "RunSpec",
    "RunStatus",
    "SpecError",
    "Spent",
    "Temporary",
    "arun",
    "map",
    "plan",
    "run",
    "submit",
]

_HOMES = {
    "penstock.engine.errors": (
        "BadRecord", "Corrupt", "Fenced", "Held", "PenstockError", "Permanent", "Refused", "SpecError", "Spent",
        "Temporary",
    ),
    "penstock.jobs.mapping": ("map",),
    "penstock.jobs.result": ("JobResult",),
    "penstock.jobs.run": ("Job", "arun", "plan", "run"),
    "penstock.jobs.submit": ("JobHandle", "submit"),
    "penstock.workers.runspec": ("RunOptions", "RunSpec"),
    "penstock.workers.status": ("RunStatus",),
}  # fmt: skip
"""Module → the public names it holds."""


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
