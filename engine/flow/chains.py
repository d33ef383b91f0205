"""Records of one key are sent one after another (`order: key`): a chain for each key of a split, in input order.

Only the first of a chain may be sent. The next one's turn comes when the end of the first is *committed*, not before:
else a lane that dies in between would send the first again after the second. So, whoever is killed, of a key there is
never more than one record that was sent and is not done for good; all before it are, and none after it was sent.

A record without a key is in no chain. A chain holds who is unfinished, or finished and not committed: the window and
the shelf bound it.
"""

from __future__ import annotations

from penstock.engine.flow.slots import Slot

Name = tuple[int, bytes]
"""Of a chain: the split's ordinal and the key."""


class Chains:
    def __init__(self) -> None:
        self._chains: dict[Name, dict[Slot, None]] = {}
        """Each in input order."""
        self._ended: list[tuple[Name, Slot]] = []
        """Since the last commit began."""
        self._committing: list[tuple[Name, Slot]] = []
        self.pressing = False
        """The next commit lets somebody go."""

    def join(self, slot: Slot) -> None:
        """It was read, or came back from the shelf: in input order within its split."""
        name = _name(slot)
        if name is not None:
            self._chains.setdefault(name, {})[slot] = None

    def waits(self, slot: Slot) -> bool:
        """Is it another's turn? Then it waits here, until `committed` names it."""
        name = _name(slot)
        if name is None or next(iter(self._chains[name])) is slot:
            return False
        slot.state = "behind"
        return True

    def ended(self, slot: Slot) -> None:
        """It has a result or a dead letter. Mostly the first of its chain; a deadline also ends those behind."""
        name = _name(slot)
        if name is not None:
            self._ended.append((name, slot))
            self.pressing = self.pressing or len(self._chains[name]) > 1

    def harvest(self) -> None:
        """A commit takes along what has ended."""
        self._committing, self._ended, self.pressing = self._ended, [], False

    def committed(self) -> list[Slot]:
        """That commit is durable: whose turn has come."""
        ended, self._committing = self._committing, []
        for name, slot in ended:
            del self._chains[name][slot]
        firsts: list[Slot] = []
        for name in dict.fromkeys(name for name, _ in ended):
            if self._chains[name]:
                firsts.append(next(iter(self._chains[name])))
            else:
                del self._chains[name]
        return [slot for slot in firsts if slot.state == "behind"]

    @property
    def behind(self) -> int:
        """How many wait for their turn."""
        return sum(slot.state == "behind" for chain in self._chains.values() for slot in chain)

    def check(self) -> None:
        done = {slot for _, slot in (*self._ended, *self._committing)}
        for chain in self._chains.values():
            first, *others = chain
            places = [slot.item.source.position for slot in chain]
            assert places == sorted(places), "a chain is not in input order"
            assert first.state != "behind", "nobody lets the first of a chain go"
            assert all(slot.state in ("behind", "beyond", "finished") for slot in others), "sent before its turn"
            assert all((slot.state == "finished") == (slot in done) for slot in chain), "a chain keeps who is gone"


def _name(slot: Slot) -> Name | None:
    item = slot.item
    return (item.source.ordinal, item.key) if item.key is not None else None
