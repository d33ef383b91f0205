"""Identical requests within a window are asked once: one item leads, the others follow and get a copy of its answer."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from penstock.engine.flow.slots import Slot, urgency
from penstock.engine.items import Usage
from penstock.engine.policy import Policy
from penstock.engine.results import DeadLetterReason, Result

Key = tuple[object, ...]
FOR_ALL: frozenset[DeadLetterReason] = frozenset({"bad_request", "refused", "too_long", "invalid_output"})
"""Reasons that lie in the request: whoever asks the same ends with it. After any other the next one asks."""


class Copies:
    def __init__(self, policy: Policy) -> None:
        self._tasks = policy.tasks
        self._leaders: dict[Key, Slot] = {}

    def follows(self, slot: Slot) -> bool:
        """Does it wait for another's answer? At temperature 0, or where its task says so; else it leads, or is alone.
        An item that was paid for already asks for itself: its costs are its own."""
        if slot.attempts or not self._may_share(slot):
            return False
        key = slot.key = _key(slot)
        leader = self._leaders.setdefault(key, slot)
        if leader is slot:
            return False
        if leader.followers is None:
            leader.followers = []
        leader.followers.append(slot)
        slot.state = "following"
        return True

    def disband(self, slot: Slot) -> list[Slot]:
        """The leader has its answer, or ended without: who followed it. Nobody joins them any more."""
        if slot.key is None:
            return []
        del self._leaders[slot.key]
        followers, slot.followers = slot.followers or [], None
        for each in (slot, *followers):
            each.key = None
        return followers

    def drop(self, gone: Collection[Slot]) -> None:
        """They follow nobody any more."""
        parted = [slot for slot in gone if slot.state == "following"]
        for key in {slot.key for slot in parted if slot.key is not None}:
            leader = self._leaders[key]
            leader.followers = [slot for slot in leader.followers or () if slot not in gone]
        for slot in parted:
            slot.key = None

    def part(self, changed: Callable[[Slot], bool]) -> list[Slot]:
        """Some are to be asked of other versions than before: who follows nobody any more. A leader at a worker goes
        on, for those who still want what it was sent for."""
        freed = [slot for leader in self.leaders() for slot in leader.followers or () if changed(slot)]
        self.drop(set(freed))
        for leader in self.leaders():
            if leader.state != "flying" and changed(leader):
                freed += self.disband(leader)
        return freed

    def leaders(self) -> list[Slot]:
        return list(self._leaders.values())

    def _may_share(self, slot: Slot) -> bool:
        task = self._tasks.get(slot.route.task)
        temperature = slot.item.request.temperature
        if temperature is None and task is not None:
            temperature = task.temperature
        return temperature == 0 or (task is not None and task.reuse)

    def check(self) -> None:
        for key, leader in self._leaders.items():
            assert leader.key == key, "a leader lost its key"
            assert leader.state not in ("finished", "following", "beyond"), "a leader that does not ask"
            for slot in leader.followers or ():
                assert (slot.state, slot.key) == ("following", key), "a follower that asks for itself"


def copy_of(result: Result, leader: Slot, follower: Slot) -> Result:
    """The leader's answer under the follower's name. It cost nothing."""
    follower.first_sent_at = leader.first_sent_at
    return msgspec.structs.replace(
        result,
        item=follower.item,
        route=follower.route,
        usage=follower.usage,
        answer_usage=Usage(),
        cost_nano=0,
        attempts=(),
        call_ms=0.0,
        maybe_paid=follower.maybe_paid,
        copied_from=leader.item.item_id,
        sampled=False,
        scores=(),
        shadows=(),
        doubted=(),
    )


def _key(slot: Slot) -> Key:
    """What must be equal for one answer to serve two items: the request, all that decides who may see it, how sure it
    has to be, and when it is asked for: nobody waits behind a tier that is paused, or at the end of a queue, for an
    equal one that does."""
    attributes = slot.item.attributes
    return (
        slot.item.request.input_hash,
        slot.route.task,
        slot.route.candidates,
        slot.route.cascade,
        slot.route.wall,
        attributes.sensitivity,
        attributes.tenant,
        slot.route.tier,
        urgency(attributes),
    )
