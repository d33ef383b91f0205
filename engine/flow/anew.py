"""Items that were routed and not sent yet, when what is known of the models changes: where would they go now?"""

from __future__ import annotations

from penstock.engine.flow.calls import Calls
from penstock.engine.flow.places import Places
from penstock.engine.flow.slots import Slot
from penstock.engine.items import Route
from penstock.engine.router import Router

UNSENT = frozenset({"beyond", "behind", "ready"})


def routed_anew(slots: list[Slot], router: Router, calls: Calls, places: Places) -> list[Slot]:
    """Give each item that no model was asked for yet the route of now, where that begins with another model. Returns
    those that were ready: they are in no queue any more.

    One that waits for an equal one's answer, or is waited for, stays as it is: they have one route together.
    """
    moved = [(slot, route) for slot in slots if (route := _other(slot, router)) is not None]
    ready = [slot for slot, _ in moved if slot.state == "ready"]
    places.ready.drop(set(ready))
    for slot, route in moved:
        slot.route = route
        calls.measure(slot)
    return ready


def _other(slot: Slot, router: Router) -> Route | None:
    if slot.state not in UNSENT or slot.attempts or slot.pending is not None or slot.key is not None or slot.candidate:
        return None
    item = slot.item
    route = router.route(item.attributes, item.request, item.item_id, item.exposure)
    if not isinstance(route, Route) or route.candidates[0].model == slot.route.candidates[0].model:
        return None
    return route
