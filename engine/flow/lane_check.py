"""The lane machine's invariants, said once; tests run them after every step."""

from __future__ import annotations

from collections import Counter

from penstock.engine.flow.lane import Lane
from penstock.engine.flow.slots import Slot
from penstock.engine.items import Position


def check(lane: Lane) -> None:
    """Raises `AssertionError`, or `Corrupt` where money does not add up."""
    for part in (lane.progress, lane.ends, lane.till, lane.copies, lane.places):
        part.check()
    states = Counter(slot.state for slot in lane.slots.values())
    lane.deadlines.check(len(lane.slots))
    assert lane.flights.count == states["flying"] == sum(lane.tally.in_flight.values()), "flying is miscounted"
    assert len(lane.ready) == states["ready"], "one that is ready is in no queue"
    assert lane.places.held + lane.till.waiting == states["held"], "one that is held waits for nothing"
    assert states["beyond"] == lane.horizon.waiting, "one that is beyond the horizon is forgotten"
    assert len(lane.slots) - lane.shelf.count + lane.ends.uncommitted <= lane.settings.window, "the window is passed"
    if lane.chains is not None:
        lane.chains.check()
    behind = lane.chains.behind if lane.chains is not None else 0
    assert states["behind"] == behind, "one that waits for its turn is in no chain"
    assert lane.ready.steps == sum(slot.pending is not None for slot in lane.ready.slots()), "steps are miscounted"
    for slot in lane.slots.values():
        _check_step(slot)
        waits = slot.state == "beyond" or (lane.parted and slot.state != "flying")
        assert slot.shelved or waits or _under_horizon(lane, slot.item.source), "sent too early"


def _check_step(slot: Slot) -> None:
    pending = slot.pending
    if pending is None:
        asks = slot.request is slot.item.request or slot.route.cascade
        assert asks, "an item asks what a step would ask"
        return
    assert slot.state in ("ready", "held", "flying"), "an answer waits for no step"
    assert slot.role == pending.step.kind, "a step under another role"
    assert len(slot.route.candidates) == 1, "a step with a fallback"
    assert all(each.state == "following" for each in slot.followers or ()), "who waits for its scores went on alone"
    assert pending.trial is None or pending.trial.route.cascade, "an answer on trial outside a cascade"


def _under_horizon(lane: Lane, place: Position) -> bool:
    split = lane.progress.open.get(place.ordinal)
    return split is not None and place.position < split.horizon
