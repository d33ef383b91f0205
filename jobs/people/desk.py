"""One person at work: keys in, labels out. What is said is saved before the next item is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from penstock.engine.errors import SpecError
from penstock.jobs.people.labels import Label, current, standing
from penstock.jobs.people.review import Asked

CHOICE_KEYS = "123456789acdefghijklmoprvwxyz"
"""Those that no command has: n next, b back, u undo, t note, s skip is next, q quit."""
GRADES = {"y": 1.0, "x": 0.0, "1": 0.0, "2": 0.25, "3": 0.5, "4": 0.75, "5": 1.0}
NEXT, BACK, UNDO, NOTE, QUIT = "n", "b", "u", "t", "q"

Save = Callable[[Label], None]
"""Durable when it returns."""


class Desk:
    """`history`: all that was ever said of these items, by anybody; `clock`: the time as labels write it."""

    def __init__(
        self, items: Sequence[Asked], history: Sequence[Label], by: str, save: Save, clock: Callable[[], str]
    ) -> None:
        if not items:
            raise SpecError("there is nothing to label")
        if any(len(item.choices) > len(CHOICE_KEYS) for item in items):
            raise SpecError(
                f"more than {len(CHOICE_KEYS)} choices have no keys: label with another tool (penstock label export)"
            )
        self.items = items
        self.by = by
        self._save = save
        self._clock = clock
        answers = {item.item_id: item.output_hash for item in items}
        mine = [label for label in history if label.by == by and label.item_id in answers]
        self._said = {item: label for (item, _), label in current(standing(mine), answers).items()}
        self._order = list(dict.fromkeys(label.item_id for label in reversed(mine) if label.item_id in self._said))
        self._order.reverse()
        self._notes: dict[str, str] = {}
        self.at = self._first_open(0)

    @property
    def item(self) -> Asked:
        return self.items[self.at]

    @property
    def said(self) -> Label | None:
        """What this person said of the item."""
        return self._said.get(self.item.item_id)

    @property
    def done(self) -> int:
        return len(self._said)

    def note_of(self) -> str:
        label = self.said
        return self._notes.get(self.item.item_id) or (label.note if label is not None else "")

    def keys(self) -> dict[str, str]:
        """Key → what it says of this item."""
        if self.item.choices:
            return dict(zip(CHOICE_KEYS, self.item.choices, strict=False))
        return {"y": "right", "x": "wrong", "1": "grade 1 (worst)", "5": "grade 5 (best)"}

    def press(self, key: str) -> bool:
        """False: the person leaves. A key that means nothing does nothing."""
        if key == QUIT:
            return False
        if key == NEXT:
            self.at = min(self.at + 1, len(self.items) - 1)
        elif key == BACK:
            self.at = max(self.at - 1, 0)
        elif key == UNDO:
            self._undo()
        elif (made := self._made(key)) is not None:
            self._put(made)
            self.at = self._first_open(self.at)
        return True

    def note(self, text: str) -> None:
        """Goes with what is said of the item; saved at once where something was said already."""
        self._notes[self.item.item_id] = text
        if (label := self.said) is not None:
            self._put(msgspec.structs.replace(label, at=self._clock(), note=text))

    def _made(self, key: str) -> Label | None:
        if self.item.choices:
            choice = self.keys().get(key)
            return None if choice is None else self._label(label=choice)
        score = GRADES.get(key)
        return None if score is None else self._label(score=score)

    def _label(self, label: str | None = None, score: float | None = None) -> Label:
        item = self.item
        of = item.output_hash if score is not None else ""
        note = self.note_of()
        return Label(item.item_id, self.by, self._clock(), label, score, note, request=item.request, output_hash=of)

    def _put(self, label: Label) -> None:
        self._save(label)
        self._said[label.item_id] = label
        if label.item_id in self._order:
            self._order.remove(label.item_id)
        self._order.append(label.item_id)

    def _undo(self) -> None:
        """Takes back the last thing that this person said, also of an earlier sitting."""
        if not self._order:
            return
        item_id = self._order[-1]
        self._save(Label(item_id, self.by, self._clock(), withdrawn=True))
        self._order.pop()
        del self._said[item_id]
        self.at = next(n for n, item in enumerate(self.items) if item.item_id == item_id)

    def _first_open(self, start: int) -> int:
        """The next item of which this person has said nothing; the last one where all are done."""
        places = [*range(start, len(self.items)), *range(start)]
        return next((n for n in places if self.items[n].item_id not in self._said), len(self.items) - 1)
