"""`steering.json` at the state URL: read by every driver, changed by compare-and-swap, each decision in the audit log.

All calls block: call them in a thread. A decision takes effect with the swap, before it is in the audit log: whoever
dies in between leaves it `owed`, and the next one who looks writes it. It may then stand there twice, under one id.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from penstock.connectors.audit import open_audit
from penstock.connectors.documents import ABSENT, State, Tag, until_won
from penstock.connectors.state import open_state
from penstock.engine.audit import MAX_AHEAD, Draft
from penstock.engine.errors import Corrupt
from penstock.engine.steering.document import Owed, Steering, settled

KEY = "steering.json"

Decide = Callable[[Steering], Steering | None]
"""What follows from what stands there; None: nothing. Asked anew after a lost race."""


class SteeringFile:
    """Of one state URL."""

    def __init__(self, url: str, state: State | None = None) -> None:
        self._url = url
        self._state = state or open_state(url)

    def read(self, known: Tag | None = None) -> tuple[Steering, Tag | None] | None:
        """None: it is the one that is known. A document that is not there is an empty one. Raises `Corrupt`,
        `Temporary`."""
        found = self._state.get(KEY)
        if found is None:
            return Steering(), None
        return None if found[1] == known else (self._decode(found[0]), found[1])

    def change(self, decide: Decide) -> Steering | None:
        """What stands there now, where `decide` had something to decide. Raises what it raises, `Corrupt`, and
        `Temporary`: then it is uncertain whether it was written."""
        return until_won(lambda: self._change(decide), f"{KEY} in {self._url}")

    def _change(self, decide: Decide) -> Steering | None:
        found = self._state.get(KEY)
        after = decide(Steering() if found is None else self._decode(found[0]))
        if after is not None:
            self._state.put(KEY, msgspec.json.encode(after), ABSENT if found is None else found[1])
        return after

    def pay(self, owed: tuple[Owed, ...]) -> None:
        """Put these decisions into the audit log. Raises `Corrupt`, `Temporary`: they stay owed."""
        if not owed:
            return
        log = open_audit(self._url)
        for at in range(0, len(owed), MAX_AHEAD):
            part = owed[at : at + MAX_AHEAD]
            log.append(*(_draft(each) for each in part))
            written = frozenset(each.id for each in part)
            self.change(lambda now, written=written: settled(now, written))

    def _decode(self, data: bytes) -> Steering:
        try:
            return msgspec.json.decode(data, type=Steering)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corrupt(
                f"{KEY} in {self._url} can't be read ({error}): it was altered, or written by a newer version. Restore "
                "it from a backup; its decisions stand in the audit log."
            ) from error


def _draft(owed: Owed) -> Draft:
    facts: dict[str, object] = msgspec.json.decode(bytes(owed.facts))
    return Draft(owed.at, owed.actor, owed.kind, facts=facts)
