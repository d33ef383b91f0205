"""Items that come in units which share their luck: one customer's are easy, another's hard. What counts is the unit.

Each unit falls into one of `GROUPS` groups, by a hash of its name, and for each group the items and the sum of their
values are kept: bounded memory, and sums of lanes, runs and jobs add up in any order. Units are independent, so groups
are. A group is one observation, however many items it has: what an item adds counts by one over all items of its group,
those of both arms. So nobody with ten thousand items outweighs the others, and an arm with more units in each group is
weighed as one with fewer.

`crowding` tells from the groups' sizes alone, never from a value or an arm, how many items a unit brings (as items see
it: a large unit counts by its items). Where it is about one, items are as good as independent, and are counted as such.

Assumption: units are independent, and a look does not depend on what was seen of units that bring more items later.
While a unit goes on its number is revised; see `docs/quality.md` for what is proved of that and what was tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import numpy as np

from penstock.engine.measure.moments import Moments
from penstock.engine.measure.sample import STEPS, Floats, Sample, sample_of

GROUPS = 512
"""3 kB of each measured value in a lane's commits, when all are full. With 256, ten points between equal arms of some
hundred units are found a third later (measured)."""
CROWDED = 1.25
"""Items a unit from which units count: 4 standard deviations of `crowding` where each unit brings one. Below it, an
interval is too narrow by an eighth at most, where items of a unit are all the same."""
FULL = 10.0
"""A stage of a guard need not wait for units that bring more: ten items of one count as one at least. A guess."""


class Groups(msgspec.Struct, array_like=True):
    """Of one value: how many items each group has, and the sum of their values, as whole numbers."""

    n: list[int] = msgspec.field(default_factory=lambda: [0] * GROUPS)
    total: list[int] = msgspec.field(default_factory=lambda: [0] * GROUPS)

    def see(self, group: int, value: int) -> None:
        self.n[group] += 1
        self.total[group] += value

    def join(self, other: Groups, sign: int = 1) -> None:
        """Add what the other saw, or (-1) take it out. It stays as it is."""
        self.n = [mine + sign * its for mine, its in zip(self.n, other.n, strict=True)]
        self.total = [mine + sign * its for mine, its in zip(self.total, other.total, strict=True)]


@lru_cache(maxsize=4_096)
def group_of(unit: str) -> int:
    return int.from_bytes(blake2b(unit.encode(), digest_size=4, person=b"pst-group").digest()) % GROUPS


class Tally(NamedTuple):
    """A sum of `Groups`, ready to be reckoned with. Values are in their own unit."""

    n: Floats
    total: Floats


NOTHING = Tally(np.zeros(GROUPS), np.zeros(GROUPS))


def tally(parts: Iterable[Groups | None], steps: float = STEPS) -> Tally:
    """`steps`: whole numbers in one of a value."""
    found = [part for part in parts if part is not None]
    if not found:
        return NOTHING
    n, total = (
        np.array([getattr(part, name) for part in found], dtype=np.float64).sum(axis=0) for name in ("n", "total")
    )
    return Tally(n, total / steps)


def joined(tallies: Iterable[Tally]) -> Tally:
    every = [NOTHING, *tallies]
    return Tally(np.sum([each.n for each in every], axis=0), np.sum([each.total for each in every], axis=0))


def crowding(n: Floats) -> float:
    """Items that the unit of an item brings, on average over items: 1 where each brings one. `n`: of each group.

    From how often two items fall into one group; where units bring one each, that is chance, and the result 1 with a
    standard deviation of √(2 / GROUPS), however many they are.
    """
    items = float(n.sum())
    if items < 2.0:
        return 1.0
    more = (float((n * (n - 1.0)).sum()) - items * (items - 1.0) / GROUPS) / items
    return max(1.0, 1.0 + more * GROUPS / (GROUPS - 1.0))


def crowded(n: Floats) -> bool:
    return crowding(n) > CROWDED


def per_unit(n: Floats) -> float:
    """The same, and 1 where it is so little that items are what is counted."""
    return crowding(n) if crowded(n) else 1.0


def counted(items: float, n: Floats) -> int:
    """For how many so many items count, where a stage waits for a number of them."""
    return int(items / min(FULL, per_unit(n)))


def weights(n: Floats) -> Floats:
    """Of an item in each group. `n`: items of each, in all arms that are compared."""
    return 1.0 / np.maximum(n, 1.0)


def weighed(seen: Tally, weights: Floats) -> tuple[float, float]:
    """(weight of all items, their mean)."""
    whole = float(weights @ seen.n)
    return whole, float(weights @ seen.total) / whole if whole else 0.0


def means(seen: Tally) -> Sample:
    """One value a group: its items' mean. To be used as values of independent items are."""
    full = seen.n > 0
    return sample_of((seen.total[full] / seen.n[full]).tolist())


def moments(seen: Tally) -> Moments:
    """Of values without an end: the mean of the groups' means, as one of as many values as there were units."""
    full = seen.n > 0
    values = seen.total[full] / seen.n[full]
    n = int(seen.n.sum() / crowding(seen.n))
    if values.size < 2:
        return Moments()
    return Moments(n, float(values.mean()), float(values.var(ddof=1)) / values.size * n * n)


def moments_between(strata: Sequence[tuple[Tally, Tally]]) -> Moments:
    """Of (base's, other's) values without an end, by stratum: other's mean less base's, each stratum by its smaller
    arm, as a mean of as many values as there were units in these."""
    n = joined(each for both in strata for each in both).n
    each_item, per_unit = weights(n), crowding(n)
    gap, spread, whole, items = 0.0, np.zeros(GROUPS), 0.0, 0.0
    for both in strata:
        (n_base, base), (n_other, other) = (weighed(each, each_item) for each in both)
        least = min(n_base, n_other)
        if least:
            gap, whole = gap + least * (other - base), whole + least
            items += float(min(each.n.sum() for each in both))
            for seen, mean, weight, sign in zip(both, (base, other), (n_base, n_other), (-1.0, 1.0), strict=True):
                spread += sign * least * each_item * (seen.total - seen.n * mean) / weight
    units = int(items / per_unit)
    if not whole or units < 2:
        return Moments()
    full = int((n > 0).sum())
    variance = float(spread @ spread) / whole**2 * full / max(1, full - 1)
    return Moments(units, gap / whole, variance * units * units)
