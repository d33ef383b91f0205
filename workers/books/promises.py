"""What calibrations of a run's cascades promised, held against what all jobs measured. Blocking: called in a thread."""

from __future__ import annotations

from penstock.connectors.drifts import OWED_S, Drift, Drifts
from penstock.engine.policy import Promise
from penstock.engine.registry.document import Measured
from penstock.engine.registry.promises import broken
from penstock.workers.runspec import RunSpec


class Promises:
    """Every driver looks; who sees first that one is broken says so, for all jobs of the state."""

    def __init__(self, spec: RunSpec) -> None:
        cascades = ((task.name, task.cascade) for task in spec.policy.tasks.values() if task.cascade is not None)
        self._promises: dict[str, Promise] = {name: each.promise for name, each in cascades if each.promise is not None}
        self._drifts = Drifts(spec.state) if self._promises else None
        self._spec = spec
        self.broken: dict[str, Drift] = {}
        """By task. Replaced as a whole: others read it meanwhile."""

    @property
    def stopped(self) -> tuple[str, ...]:
        """Tasks whose cascade accepts nothing any more."""
        return tuple(sorted(task for task in self.broken if self._promises[task].stops))

    def told(self, drift: Drift) -> str:
        """In words, with what follows."""
        if drift.task in self.stopped:
            return (
                f"{drift.why}. Every item goes on to the last model, until penstock cascade calibrate makes a new "
                "version, and the job runs with it"
            )
        return f"{drift.why}. The job goes on as it was, as it says (on_drift: tell)"

    def read(self) -> None:
        """What was found before. Raises `Corrupt`, `Temporary`: nobody may guess whether answers can be believed."""
        if self._drifts is not None:
            for task, promise in self._promises.items():
                found = self._drifts.read(task, promise.calibration)
                if found is not None:
                    self.broken = {**self.broken, task: found}

    def look(self, shared: Measured, now: float) -> None:
        """Raises `Corrupt`, `Temporary`: then what was known stays."""
        if self._drifts is None:
            return
        self.read()
        for task, promise in self._promises.items():
            if task not in self.broken and (short := broken(shared, task, promise)) is not None:
                seen = short.target, promise.scorer, promise.min_quality, short.items, short.mean
                mine = Drift(task, promise.calibration, *seen, now, self._spec.name, self._spec.run_id)
                found = self._drifts.add(mine)
                self.broken = {**self.broken, task: found}
                if found == mine:
                    self._drifts.pay(mine)
        for drift in self.broken.values():
            if drift.owed and not 0 <= now - drift.at < OWED_S:
                self._drifts.pay(drift)
