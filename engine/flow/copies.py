"""Identical requests within a window are asked once: one item leads, the others follow and get a copy of its answer."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from penstock.engine.flow.slots import Slot
from penstock.engine.items import Result, Usage
from penstock.engine.policy import Policy

Key = tuple[object, ...]


class Copies:
    def __init__(self, policy: Policy) -> None:
        self._tasks = policy.tasks
        self._leaders: dict[Key, Slot] = {}

    def follows(self, slot: Slot) -> bool:
        """Does it wait for another's answer? At temperature 0, or where its task says so; else it leads, or is alone.
        An item that was paid for already asks for itself: its costs are its own."""
        if slot.attempts or not self._may_share(slot):
            return False
        key = _key(slot)
        leader = self._leaders.get(key)
        if leader is None:
            self._leaders[key], slot.key = slot, key
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
        slot.key = None
        followers, slot.followers = slot.followers or [], None
        return followers

    def part(self, changed: Callable[[Slot], bool]) -> list[Slot]:
        """Some are to be asked of other versions than before: who follows nobody any more. A leader at a worker goes
        on, for those who still want what it was sent for."""
        freed: list[Slot] = []
        for leader in self.leaders():
            gone, stay = list[Slot](), list[Slot]()
            for slot in leader.followers or ():
                (gone if changed(slot) else stay).append(slot)
            freed += gone
            leader.followers = stay or None
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
            assert all(s.state == "following" for s in leader.followers or ()), "a follower that asks for itself"


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
    """What must be equal for one answer to serve two items: the request, and all that decides who may see it."""
    attributes = slot.item.attributes
    return (
        slot.item.request.input_hash,
        slot.route.task,
        slot.route.candidates,
        slot.route.wall,
        attributes.sensitivity,
        attributes.tenant,
    )
