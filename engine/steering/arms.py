"""Which arm of an experiment a unit comes into: a stable hash, so the same in every lane, restart and generation."""

from __future__ import annotations

from hashlib import blake2b
from itertools import accumulate

from penstock.engine.fingerprints import short_hash
from penstock.engine.items import Exposure
from penstock.engine.policy import Arm, Experiment


class Draw:
    """One experiment, ready to divide units."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        whole = sum(arm.weight for arm in experiment.arms)
        self._ends = [round(end / whole * 2**64) for end in accumulate(arm.weight for arm in experiment.arms)]
        self._exposures = [exposure(experiment, arm, arm.weight / whole) for arm in experiment.arms]
        self._over = exposure(experiment, experiment.arms[0], 1.0, counted=False)

    def place(self, unit: str) -> int:
        """Which arm: its place among them. By the name alone: an edit moves no more units than new shares do."""
        data = f"{self.experiment.id}\0{unit}".encode()
        drawn = int.from_bytes(blake2b(data, digest_size=8, person=b"pst-arm").digest())
        return next((i for i, end in enumerate(self._ends) if drawn < end), len(self._ends) - 1)

    def exposed(self, unit: str | None, item_id: str, *, stopped: bool) -> tuple[int, Exposure]:
        """(the arm's place, the exposure). Once it is stopped, all units get the first arm and are not counted."""
        if stopped:
            return 0, self._over
        at = self.place(unit or item_id if self.experiment.unit == "unit" else item_id)
        return at, self._exposures[at]


def exposure(experiment: Experiment, arm: Arm, propensity: float, *, counted: bool = True) -> Exposure:
    prompt = arm.prompt.version if arm.prompt is not None else ""
    params = short_hash(arm.params_json) if arm.params_json is not None else ""
    if not counted:
        return Exposure(model=arm.model, version=arm.version, prompt_version=prompt, params=params)
    return Exposure(experiment.key, arm.name, propensity, arm.model, arm.version, prompt, params)
