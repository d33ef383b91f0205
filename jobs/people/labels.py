"""What people said of answers, under `labels/` of the state: added to only, durable before the next one is shown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

import msgspec

from penstock.connectors.appending import Appending
from penstock.connectors.documents import State
from penstock.engine.errors import Corrupt
from penstock.engine.fingerprints import short_hash
from penstock.engine.measure.agreement import Agreement, agreement, tally_labels
from penstock.engine.texts import normal

PASS = 0.5
EVEN = 0.5
WORDS = ("right", "wrong")
_SAFE = re.compile(r"[A-Za-z0-9_~+-][A-Za-z0-9_.~+-]{0,99}")


class Label(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one person says of one item: the right answer (`label`), or how good the answer is (`score`, 0…1).
    `at`: ISO 8601, UTC. `withdrawn`: it takes back what the same person said before. `request`: hash of what was asked,
    by which the label counts for the same question in another run; empty: not known. `output_hash`: of the answer that
    a `score` speaks of; empty: not known, as where another tool says it, and then it speaks of the present one."""

    item_id: str
    by: str
    at: str
    label: str | None = None
    score: float | None = None
    note: str = ""
    withdrawn: bool = False
    request: str = ""
    output_hash: str = ""

    def counts_for(self, output_hash: str) -> bool:
        """Whether it speaks of this answer (empty: not known). The right answer stays right when the item is answered
        anew (`--fresh`); how good the old one was says nothing of the new one."""
        return self.label is not None or "" in (self.output_hash, output_hash) or self.output_hash == output_hash

    @property
    def says(self) -> str:
        return self.label if self.label is not None else f"{self.score:g}" if self.score is not None else ""


Said = Mapping[tuple[str, str], Label]
"""(item, labeller) → the label that stands."""

_label = msgspec.json.Decoder(Label)


class Labels:
    """The labels of one run, or of one file of rows (`name`)."""

    def __init__(self, state: State, name: str) -> None:
        safe = name if _SAFE.fullmatch(name) else short_hash(name.encode())
        self._log = Appending(state, f"labels/{safe}/")

    def add(self, labels: Iterable[Label]) -> None:
        """Durable when it returns. Raises `Temporary`."""
        self._log.append([msgspec.json.encode(label) for label in labels])

    def history(self) -> list[Label]:
        """Everything that was ever said, in order. Raises `Corrupt`."""
        try:
            return [_label.decode(line) for line in self._log.lines()]
        except msgspec.DecodeError as error:
            raise Corrupt(f"a label can't be read ({error}); was the state's labels/ changed?") from error

    def said(self) -> dict[tuple[str, str], Label]:
        return standing(self.history())


def standing(history: Iterable[Label]) -> dict[tuple[str, str], Label]:
    """The last word of each person on each item."""
    last: dict[tuple[str, str], Label] = {}
    for label in history:
        if label.withdrawn:
            last.pop((label.item_id, label.by), None)
        else:
            last[label.item_id, label.by] = label
    return last


def current(said: Said, answers: Mapping[str, str]) -> dict[tuple[str, str], Label]:
    """Without grades of earlier answers. `answers`: item → hash of its present one."""
    return {place: label for place, label in said.items() if label.counts_for(answers.get(place[0], ""))}


def labellers(said: Said) -> list[str]:
    return sorted({by for _, by in said})


def gold(said: Said) -> dict[str, str]:
    """Item → what most people say is right, as most of them spell it. An item on which they are split evenly has none.
    "Billing " and "billing" are one word, as the scorer `exact` sees them."""
    votes: dict[str, dict[str, Counter[str]]] = {}
    for (item, _), label in said.items():
        if label.label is not None:
            votes.setdefault(item, {}).setdefault(normal(label.label), Counter())[label.label] += 1
    found: dict[str, str] = {}
    for item, words in votes.items():
        ranked = sorted(words.values(), key=Counter.total, reverse=True)
        if len(ranked) == 1 or ranked[0].total() > ranked[1].total():
            found[item] = min(ranked[0], key=lambda spelled: (-ranked[0][spelled], spelled))
    return found


def gold_of_requests(logs: Iterable[Said]) -> dict[str, str]:
    """Request → what most people say is right, whichever of several runs they said it in. Each person's last word."""
    stands = (label for said in logs for label in said.values() if label.request)
    return gold({(label.request, label.by): label for label in sorted(stands, key=lambda label: label.at)})


def between_people(said: Said) -> dict[tuple[str, str], Agreement]:
    """Each two labellers over the items that both saw."""
    by: dict[str, dict[str, str]] = {}
    for (item, who), label in said.items():
        by.setdefault(who, {})[item] = normal(label.says)
    pairs = {two: _agree(by[two[0]], by[two[1]]) for two in combinations(sorted(by), 2)}
    return {two: found for two, found in pairs.items() if found is not None}


def _agree(a: Mapping[str, str], b: Mapping[str, str]) -> Agreement | None:
    both = [(a[item], b[item]) for item in a if item in b]
    words = sorted({word for pair in both for word in pair})
    return agreement(tally_labels(both, words)) if both else None


def is_right(label: Label, answer: str, same: Callable[[str], str]) -> bool:
    """Whether the person calls the answer right."""
    if label.label is not None:
        return same(label.label) == same(answer)
    return (label.score or 0.0) >= PASS


def right_by_people(said: Said, answers: Mapping[str, str]) -> dict[str, float]:
    """Item → share of those who looked at it that call its answer right. An answer is one, however many looked."""
    votes: dict[str, list[bool]] = {}
    for (item, _), label in said.items():
        if item in answers:
            votes.setdefault(item, []).append(is_right(label, answers[item], normal))
    return {item: sum(each) / len(each) for item, each in votes.items()}


def by_most(said: Said, answers: Mapping[str, str]) -> dict[str, bool]:
    """Item → do most people call its answer right? Evenly split ones are left out."""
    return {item: right > EVEN for item, right in right_by_people(said, answers).items() if right != EVEN}


def with_verdicts(people: Mapping[str, bool], passed: Mapping[str, bool]) -> Agreement | None:
    """People (`by_most`) against a judge's verdict on the same answers."""
    pairs = [(WORDS[not right], WORDS[not passed[item]]) for item, right in people.items() if item in passed]
    return agreement(tally_labels(pairs, WORDS)) if pairs else None
