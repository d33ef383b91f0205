"""What a router obeys of the steering: which version of a model an item gets. One hash an item and rollout in force."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from penstock.engine.catalog import Model
from penstock.engine.items import Attributes
from penstock.engine.steering.document import Steering
from penstock.engine.steering.rollout import BASELINE, CANDIDATE, Rollout


class Pick(NamedTuple):
    """A version, and what chose it."""

    version: str
    experiment: str = ""
    arm: str = ""
    propensity: float = 1.0


class Rehearsal(msgspec.Struct, frozen=True):
    """A rollout in its shadow stage: the candidate answers a share of the baseline's items as well."""

    rollout: str
    model: str
    version: str
    arm: str
    share: float
    fund: tuple[str, int]
    """The budget that its calls must fit into besides those of the item: (key, limit in nano-dollars). All jobs share
    it."""

    @property
    def target(self) -> str:
        return f"{self.model}@{self.version}"


def rehearsal_of(rollout: Rollout) -> Rehearsal | None:
    """None: it is in no shadow stage."""
    if not rollout.shadows or rollout.shadow is None:
        return None
    shadow, fund = rollout.shadow, f"rollout/{quote(rollout.id, safe='')}"
    arm = rollout.arm(CANDIDATE)
    return Rehearsal(rollout.id, rollout.model, rollout.candidate, arm, shadow.share, (fund, shadow.limit_nano))


class Gate(msgspec.Struct, frozen=True):
    """One rollout in force. Who is let through at a share is let through at every larger one."""

    rollout: Rollout
    threshold: int
    prefix: bytes

    def lets(self, unit: bytes) -> bool:
        return int.from_bytes(blake2b(self.prefix + unit, digest_size=8, person=b"pst-arm").digest()) < self.threshold


def gate_of(rollout: Rollout) -> Gate:
    return Gate(rollout, round(rollout.share * 2**64), rollout.id.encode() + b"\0")


class Turn:
    """The steering, as far as a catalogue knows its versions. Arms of an item are bits of a number: a gate each."""

    def __init__(self, models: Mapping[str, Model], steering: Steering | None = None) -> None:
        steering = steering or Steering()
        self.unknown: list[str] = []
        """`model@version`s that are asked for and not in the catalogue: there its own live version stays."""
        self._live: dict[str, str] = {}
        for name, version in steering.live.items():
            if name in models and self._knows(models[name], version):
                self._live[name] = version
        rollouts = (each for each in steering.rollouts.values() if each.active)
        known = [r for r in rollouts if r.model in models and self._knows_both(models[r.model], r)]
        self.gates = tuple(gate_of(rollout) for rollout in sorted(known, key=lambda each: each.id))
        self._at = {gate.rollout.model: bit for bit, gate in enumerate(self.gates)}
        found = (rehearsal_of(gate.rollout) for gate in self.gates)
        self.rehearsals = {each.rollout: each for each in found if each is not None}
        """By their rollout's id."""

    def _knows(self, model: Model, version: str) -> bool:
        if any(each.id == version for each in model.versions):
            return True
        self.unknown.append(f"{model.name}@{version}")
        return False

    def _knows_both(self, model: Model, rollout: Rollout) -> bool:
        return all([self._knows(model, rollout.candidate), self._knows(model, rollout.baseline)])

    def arms(self, attributes: Attributes, item_id: str) -> int:
        found = 0
        for bit, gate in enumerate(self.gates):
            unit = (attributes.unit or item_id) if gate.rollout.unit == "unit" else item_id
            if gate.lets(unit.encode()):
                found |= 1 << bit
        return found

    def pick(self, model: Model, arms: int | None) -> Pick:
        """The version of this model for an item of these arms. None: for a call that is no item's answer."""
        bit = self._at.get(model.name)
        if bit is None or arms is None:
            return Pick(self._live.get(model.name, model.live))
        rollout = self.gates[bit].rollout
        if arms >> bit & 1:
            return Pick(rollout.candidate, rollout.id, rollout.arm(CANDIDATE), rollout.share)
        return Pick(rollout.baseline, rollout.id, rollout.arm(BASELINE), 1.0 - rollout.share)

    def versions(self, model: Model) -> tuple[str, ...]:
        """That items may get now."""
        bit = self._at.get(model.name)
        if bit is None:
            return (self._live.get(model.name, model.live),)
        rollout = self.gates[bit].rollout
        return rollout.baseline, rollout.candidate
