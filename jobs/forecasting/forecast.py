"""What a run would take and cost, from a sample: the arithmetic, without I/O.

Every forecast is an interval. What nobody knows before the run says so: how long the answers get lies between a low
share of the ceiling and the ceiling, unless the history of this task and model has measured it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from penstock.engine.catalog import Account, Model, Price
from penstock.engine.pricing import rate_of

Z95 = 1.96
"""Normal quantile: intervals from a sample cover 95 %."""
LOW_OUTPUT_SHARE = 0.1
"""The shortest answers we expect, as a share of their ceiling. A guess; measured history replaces it."""
LIKELY_OUTPUT_SHARE = 0.35
"""A guess: ceilings are set with room to spare."""
TOKEN_ERROR = 0.25
"""Counting four bytes to a token is off by up to so much in English prose, more in code. A guess."""
LENGTHS_SPREAD = 1.0
"""How far measured answers lie around their mean length, as a share of it. A guess, wide on purpose: the sums of what
was measured don't hold their squares."""
OTHER_ROWS = 0.1
"""How far the mean of other rows may lie from that of those that were measured. A guess."""
OTHER_DAY = 1.5
"""A provider, or an engine of our own, is by so much faster or slower than when it was measured. A guess."""
SEATS = 256
"""What an engine answers at once, where `max_num_seqs` is not said: vLLM's own default."""
FIRST_TOKEN_S = (0.3, 3.0)
"""Seconds to an API's first token, fast and slow. A guess."""
TOKENS_PER_S = (150.0, 25.0)
"""Output tokens a second of one API answer, fast and slow. A guess."""


class Interval(msgspec.Struct, frozen=True):
    """`low` ≤ `likely` ≤ `high`."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, other: Interval) -> Interval:
        """Of two independent non-negative quantities, at their worst together: wide on purpose."""
        return Interval(self.low * other.low, self.likely * other.likely, self.high * other.high)

    def scaled(self, by: float) -> Interval:
        return Interval(self.low * by, self.likely * by, self.high * by)

    @property
    def exact(self) -> bool:
        return self.low == self.high


def exactly(value: float) -> Interval:
    return Interval(value, value, value)


ZERO = exactly(0.0)


def total(parts: Iterable[Interval]) -> Interval:
    found = ZERO
    for part in parts:
        found = found + part
    return found


def mean_interval(values: Sequence[float], *, floor: float = 0.0) -> Interval:
    """The mean of what the values are a sample of. One value alone says little: 0.5 to 2 times."""
    if not values:
        return ZERO
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Interval(max(floor, mean / 2), mean, mean * 2)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return Interval(max(floor, mean - Z95 * spread), mean, mean + Z95 * spread)


def share_interval(hits: int, n: int) -> Interval:
    """Wilson's interval of a share: honest at 0 and at all of them."""
    if n == 0:
        return Interval(0.0, 0.0, 1.0)
    p, z2 = hits / n, Z95 * Z95
    centre, scale = p + z2 / (2 * n), 1 + z2 / n
    reach = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Interval(max(0.0, min(p, (centre - reach) / scale)), p, min(1.0, max(p, (centre + reach) / scale)))


def rows_from_bytes(total_bytes: int, sizes: Sequence[float]) -> Interval:
    """How many records `total_bytes` hold, from the sizes of a sample. Rows aren't fewer than those seen."""
    mean = mean_interval(sizes, floor=1.0)
    if not sizes:
        return ZERO
    seen = float(len(sizes))
    return Interval(
        max(seen, total_bytes / mean.high), max(seen, total_bytes / mean.likely), max(seen, total_bytes / mean.low)
    )


class Measured(msgspec.Struct, frozen=True):
    """What earlier runs of this task showed of a model's version: of one item, all its tries together."""

    items: int
    output_tokens: float
    seconds: float
    engine_s: float | None = None
    """Of its engine's time, where it is our own: what runs at once shares that."""


def measured_output(measured: Measured, most: float) -> Interval:
    """Tokens that an item is answered with, of at most `most`."""
    mean = min(most, measured.output_tokens)
    reach = mean * (OTHER_ROWS + Z95 * LENGTHS_SPREAD / math.sqrt(measured.items))
    return Interval(max(0.0, mean - reach), mean, min(most, mean + reach))


def output_tokens(ceiling: int, *, longest_choice: int | None = None) -> Interval:
    """Tokens of one answer, before anything was measured. `longest_choice`: tokens of the longest permitted answer,
    where only choices are."""
    if longest_choice is not None:
        most = float(min(ceiling, longest_choice))
        return Interval(1.0, (1.0 + most) / 2, max(1.0, most))
    return Interval(ceiling * LOW_OUTPUT_SHARE, ceiling * LIKELY_OUTPUT_SHARE, float(ceiling))


class Load(msgspec.Struct, frozen=True):
    """What one account or engine gets to do."""

    calls: Interval
    input_tokens: Interval
    output_tokens: Interval


def api_seconds(load: Load, account: Account, measured_s: float | None = None) -> Interval:
    """How long one account takes: the narrowest of its limits, or its answers' own time at full concurrency.
    `measured_s`: of one item, all its tries together."""
    fast = _api_seconds(load.calls.low, load.input_tokens.low, load.output_tokens.low, account, 0, measured_s)
    slow = _api_seconds(load.calls.high, load.input_tokens.high, load.output_tokens.high, account, 1, measured_s)
    guess = _api_seconds(load.calls.likely, load.input_tokens.likely, load.output_tokens.likely, account, 1, measured_s)
    return Interval(fast, min(max(fast, (fast + guess) / 2), slow), slow)


def _api_seconds(
    calls: float, inputs: float, outputs: float, account: Account, slow: int, measured_s: float | None
) -> float:
    """`slow` indexes the assumptions above: 0 fast, 1 slow."""
    if calls <= 0:
        return 0.0
    limits = account.limits
    if measured_s is not None:
        one = measured_s * (1 / OTHER_DAY, OTHER_DAY)[slow]
    else:
        one = FIRST_TOKEN_S[slow] + outputs / calls / TOKENS_PER_S[slow]
    narrow = [one * max(1.0, calls / max(1, limits.concurrency))]
    for used, a_minute in (
        (calls, limits.rpm),
        (inputs, limits.input_tpm),
        (outputs, limits.output_tpm),
        (inputs + outputs, limits.tpm),
    ):
        if a_minute:
            # A bucket starts full: the first minute's worth goes at once.
            narrow.append(max(0.0, used / a_minute - 1.0) * 60.0)
    return max(narrow)


def own_seconds(load: Load, model: Model, one: tuple[float, float] | None = None) -> Interval | None:
    """How long an own worker takes; None: its speed is neither measured nor declared. `one`: of an item, as measured,
    seconds from its call to its answer, and those of them that were the engine's time for it alone.

    More replicas than the least start only when there is work: the slow end
    counts the least, the fast end the most.
    """
    few, many = max(1, model.min_replicas), max(1, model.max_replicas)
    if one is not None:
        item_s, engine_s = one
        rows, at_once = load.calls, item_s / engine_s
        seats = model.engine.get("max_num_seqs", SEATS)
        wanted = min(seats if isinstance(seats, int) else SEATS, rows.likely)
        fuller = min(1.0, at_once / wanted) if wanted else 1.0  # at best it is faster by as much
        fast, slow = rows.low * engine_s * fuller / OTHER_DAY, rows.high * engine_s * OTHER_DAY
        return Interval(fast / many, rows.likely * engine_s / few, slow / few)
    speed = model.tokens_per_s
    if not speed:
        return None
    out = load.output_tokens
    return Interval(out.low / speed / many, out.likely / speed / few, out.high / speed / few)


def call_cost(inputs: Interval, outputs: Interval, price: Price) -> Interval:
    """Of one call of so many tokens, in nano-dollars. A long prompt's price holds for the whole call."""

    def at(tokens: float, said: float) -> float:
        rates = rate_of(price, round(tokens))
        return (tokens * rates.input + said * rates.output) / 1e6 + price.per_request

    return Interval(at(inputs.low, outputs.low), at(inputs.likely, outputs.likely), at(inputs.high, outputs.high))


def token_interval(mean: Interval) -> Interval:
    """A count by bytes, with the error of counting so."""
    return Interval(mean.low * (1 - TOKEN_ERROR), mean.likely, mean.high * (1 + TOKEN_ERROR))
