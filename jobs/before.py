"""What history says of a run before a command, and how the command asks for the run then."""

from __future__ import annotations

import msgspec

from penstock.connectors.registry import where
from penstock.engine.catalog import Model, Price
from penstock.engine.pricing import price_of
from penstock.jobs.history import History, goes_on, is_silent
from penstock.jobs.progress import done_items
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunState, RunStatus


class Before(msgspec.Struct, frozen=True):
    """All None where the run is new."""

    status: RunStatus | None = None
    spec: RunSpec | None = None

    @classmethod
    def of(cls, history: History, run_id: str) -> Before:
        if not history.knows(run_id):
            return cls()
        return cls(history.status_or_starting(run_id), history.spec(run_id))

    @property
    def state(self) -> RunState | None:
        return self.status.state if self.status is not None else None

    @property
    def items(self) -> int:
        """Items that had ended."""
        return done_items(self.status) if self.status is not None else 0

    def is_quiet(self, now: float) -> bool:
        """No command seems to be at it, nor about to be."""
        return self.status is None or not goes_on(self.status) or is_silent(self.status, now)

    @property
    def is_submitted(self) -> bool:
        """It was handed to a cluster, whose command is the next to tell of it, however late that starts."""
        return self.status is not None and self.status.submitted

    def options(self, spec: RunSpec, given: RunOptions) -> RunOptions:
        """As the command gave them, with what is known of the run. A trial is for editing the job between two looks: it
        begins anew where the job changed."""
        if self.spec is None:
            return given
        known = where(self.spec.sinks["results"])
        moved = _places(self.spec) != _places(spec) or self.spec.source != spec.source
        edited = moved or self.spec.fingerprint != spec.fingerprint
        fresh = given.fresh or (spec.limit is not None and edited)
        ended = 0 if fresh or spec.limit is not None else self.items
        return msgspec.structs.replace(given, fresh=fresh, results_at=None if fresh else known, ended=ended)

    def repriced(self, spec: RunSpec) -> list[str]:
        """Models of the job whose calls cost something else than by the last command of the run."""
        from penstock.jobs.spec.digest import names_called

        if self.spec is None:
            return []
        then, now = self.spec.catalog.models, spec.catalog.models
        known = [name for name in names_called(spec.policy, spec.catalog) if name in then and name in now]
        return [name for name in known if _repriced(then[name], now[name])]


def _places(spec: RunSpec) -> dict[str, str]:
    return {str(name): where(sink) for name, sink in spec.sinks.items()}


def _repriced(then: Model, now: Model) -> bool:
    both = {v.id for v in then.versions} & {v.id for v in now.versions}
    return any(_rates(then, version) != _rates(now, version) for version in both)


def _rates(model: Model, version: str) -> Price | None:
    """The name that a price goes by is no rate."""
    price = price_of(model, version)
    return None if price is None else msgspec.structs.replace(price, version="")
