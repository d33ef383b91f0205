"""What a call costs: usage × price → integer nano-dollars; its worst case before it is sent; GPU hours over tokens.

All arithmetic is on integers; a call is rounded up to one nano-dollar once. Prices are nano-dollars per million tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import msgspec

from penstock.engine.catalog import Model, Price, PriceAbove
from penstock.engine.errors import SpecError
from penstock.engine.items import NANO_PER_USD, Request, Usage
from penstock.engine.policy import Output

PER = 1_000_000
"""Prices are per so many tokens."""
DEFAULT_MAX_TOKENS = 1024
"""Output ceiling of a call where neither request, task nor model sets one (DESIGN: what is promised)."""
BYTES_PER_TOKEN = 4
"""Of JSON text, typical for English prose and code in today's vocabularies. A rule of thumb, for estimates only."""
TEMPLATE_TOKENS = 12
"""What a chat template adds to a short request, beyond the JSON around it. A guess, for estimates only."""
MAX_TEMPLATE_TOKENS = 256
"""The most that a chat template or a provider adds unseen (default system prompts, date headers). A guess, generous."""
MAX_TOOL_TOKENS = 1024
"""The most that a provider adds unseen where tools are given (published figures lie between 159 and 530)."""
IMAGE_TOKENS = 1_000
"""Typical tokens of one image. A guess, for estimates only."""
MAX_IMAGE_TOKENS = 20_000
"""Upper bound for one image: above the largest that providers bill for one. A guess, generous."""
OWN_TOKENS_PER_S = 1_000
"""Tokens a second of an own engine, assumed until it is measured. A guess: a 7B model on one GPU does more."""
RATE_AFTER_TOKENS = 10_000
"""Tokens an own engine serves before its measured rate replaces the assumed one; fewer make a wild rate."""


def output_ceiling(request: Request, task_max: int | None = None, model: Model | None = None) -> int:
    """The most output tokens one answer may have: the request's, else the task's, else the model's, else 1,024 (or
    half of the context, where that is less: a default must leave room for the prompt)."""
    for ceiling in (request.max_tokens, task_max, model.default_max_tokens if model is not None else None):
        if ceiling is not None:
            return ceiling
    if model is not None and model.context is not None:
        return max(1, min(DEFAULT_MAX_TOKENS, model.context // 2))
    return DEFAULT_MAX_TOKENS


def estimate_input_tokens(request: Request) -> int:
    """Typical input tokens of a request; for forecasts, limits and order, never for budgets."""
    return _text_bytes(request) // BYTES_PER_TOKEN + TEMPLATE_TOKENS + IMAGE_TOKENS * request.images


def max_input_tokens(request: Request, extra_bytes: int = 0) -> int:
    """More input tokens than this request can have.

    A token is at least one UTF-8 byte of content, and JSON text is never shorter than what it says. `extra_bytes`:
    what the wire adds to the body (a schema, a list of choices).
    """
    tools = MAX_TOOL_TOKENS if "tools" in request.needs else 0
    return _text_bytes(request) + extra_bytes + MAX_TEMPLATE_TOKENS + tools + MAX_IMAGE_TOKENS * request.images


def wire_extra(output: Output | None) -> int:
    """Bytes that the wire may add to a request for what its answer must look like: choices or schema, and the words
    around them. A schema whose objects are closed, and whose bounds are told in words, is up to twice as long."""
    if output is None:
        return 0
    choices = sum(len(choice.encode()) + 4 for choice in output.choices or ())
    return 512 + 2 * len(output.json_schema or b"") + choices


def _text_bytes(request: Request) -> int:
    return len(request.body_json) - request.image_bytes


def sane(usage: Usage) -> tuple[Usage, bool]:
    """A usage that adds up, and whether it did. Where it contradicts itself the larger reading counts: no bill is
    understated by a provider's slip."""
    cached, written, written_1h = usage.cached, usage.cache_write, usage.cache_write_1h
    reasoning = usage.reasoning
    if (
        cached >= 0
        and written >= 0
        and written_1h >= 0
        and 0 <= reasoning <= usage.output
        and cached + written + written_1h <= usage.input
    ):
        return usage, True
    cached, written, written_1h, reasoning = max(0, cached), max(0, written), max(0, written_1h), max(0, reasoning)
    fixed = Usage(
        input=max(usage.input, cached + written + written_1h),
        cached=cached,
        cache_write=written,
        cache_write_1h=written_1h,
        output=max(usage.output, reasoning),
        reasoning=reasoning,
    )
    return fixed, False


def cost_nano(usage: Usage, price: Price, calls: int = 1) -> int:
    """Nano-dollars of one call, or of so many whose tokens are told together, rounded up once.

    `cached`, `cache_write` (5 minutes) and `cache_write_1h` are disjoint parts of `input`; each is charged at its own
    price, or as plain input where it has none (`cache_write_1h`: as `cache_write` first). A long prompt's price holds
    for the whole call.
    """
    usage, _ = sane(usage)
    at = rate_of(price, usage.input)
    written = at.input if at.cache_write is None else at.cache_write
    plain = usage.input - usage.cached - usage.cache_write - usage.cache_write_1h
    total = plain * at.input + usage.output * at.output
    total += usage.cached * (at.input if at.cached is None else at.cached)
    total += usage.cache_write * written
    total += usage.cache_write_1h * (written if at.cache_write_1h is None else at.cache_write_1h)
    return _up(total) + calls * price.per_request


def dearer(nano: int, percent: int) -> int:
    """With a surcharge, rounded up."""
    return -(-nano * (100 + percent) // 100)


def rate_of(price: Price, input_tokens: int) -> Price | PriceAbove:
    """The rates that hold for a call with so much input."""
    at: Price | PriceAbove = price
    for above in price.above:
        if input_tokens > above.start:
            at = above
    return at


def worst_case_nano(max_input_tokens: int, max_output_tokens: int, price: Price) -> int:
    """The most that a call may cost: all input at the dearest rate it may meet (cache writes cost more than input)."""
    reachable = [price, *(above for above in price.above if max_input_tokens > above.start)]
    dearest = max(max(at.input, at.cached or 0, at.cache_write or 0, at.cache_write_1h or 0) for at in reachable)
    tokens = _up(max_input_tokens * dearest + max_output_tokens * max(at.output for at in reachable))
    return tokens + price.per_request


def expected_nano(input_tokens: int, output_tokens: int, price: Price) -> int:
    """What a call of this size costs at plain rates; for order, `max_cost_usd` and forecasts."""
    at = rate_of(price, input_tokens) if price.above else price
    return _up(input_tokens * at.input + output_tokens * at.output) + price.per_request


MOST_USD = 1e9


def usd_to_nano(usd: float) -> int:
    """Dollars as a person writes them → nano-dollars, to the nearest. Raises `SpecError` for what is no number, or too
    large for what is sent between processes (64 bits)."""
    if not isfinite(usd):
        raise SpecError(f"an amount of money is a finite number of dollars, not {usd}")
    if usd > MOST_USD:
        raise SpecError(f"an amount of money is a billion dollars at most, not {usd:g}")
    return round(usd * NANO_PER_USD)


def _up(price_units: int) -> int:
    return -(-price_units // PER)


# ---- own GPUs: $/hour over the tokens that were served


class Adjustments(msgspec.Struct, frozen=True):
    """Closing lines: charged + load + idle = hours × price, to the nano-dollar. `idle_nano` is negative where the
    running rate charged more than the hours cost."""

    load_nano: int
    idle_nano: int


class GpuClock(msgspec.Struct):
    """The bill of one own engine, all its replicas together. Events in (`started`, `ready`, `stopped`, `served`), a
    rate out; times are Unix seconds, held as whole milliseconds so that sums are exact.

    While it runs, calls are charged by `price(now)`; whoever charges them adds up. `close(charged, now)` gives the
    adjustments that make the sum true.
    """

    hour_nano: int
    tokens: int = 0
    load_ms: int = 0
    """Closed milliseconds between start and ready."""
    work_ms: int = 0
    """Closed milliseconds after ready, less what other jobs bear of them."""
    loading: dict[str, int] = {}
    working: dict[str, int] = {}
    borne: dict[str, int] = {}
    """Of working replicas: milliseconds since ready that other jobs bear, which they serve as well."""

    def started(self, replica: str, now: float) -> None:
        self.stopped(replica, now)
        self.loading[replica] = _ms(now)

    def ready(self, replica: str, now: float) -> None:
        since = self.loading.pop(replica, None)
        if since is not None:
            self.load_ms += max(0, _ms(now) - since)
            self.working[replica] = max(_ms(now), since)

    def shared(self, replica: str, others_s: float) -> None:
        """Other jobs bear so many seconds of this replica's work since it was ready for us."""
        if replica in self.working:
            self.borne[replica] = max(self.borne.get(replica, 0), _ms(others_s))

    def stopped(self, replica: str, now: float) -> None:
        """The replica is gone (or died). Unknown ones are ignored."""
        since = self.loading.pop(replica, None)
        if since is not None:
            self.load_ms += max(0, _ms(now) - since)
        since, borne = self.working.pop(replica, None), self.borne.pop(replica, 0)
        if since is not None:
            self.work_ms += max(0, _ms(now) - since - borne)

    def served(self, usage: Usage) -> None:
        self.tokens += usage.input + usage.output

    def price(self, now: float) -> Price:
        """The running rate: hours since ready over tokens so far; every token costs the same."""
        return price_together([self], now)

    def total_nano(self, now: float) -> int:
        """Hours × price so far."""
        return _hours_nano(self.hour_nano, self.load_ms + _open(self.loading, now) + self.worked_ms(now))

    def worked_ms(self, now: float) -> int:
        open_ms = (max(0, _ms(now) - since - self.borne.get(name, 0)) for name, since in self.working.items())
        return self.work_ms + sum(open_ms)

    def close(self, charged_nano: int, now: float) -> Adjustments:
        """Closing lines for what calls were charged in all. May be asked again: it changes nothing."""
        load = _hours_nano(self.hour_nano, self.load_ms + _open(self.loading, now))
        return Adjustments(load, self.total_nano(now) - load - charged_nano)


def price_together(clocks: Sequence[GpuClock], now: float) -> Price:
    """One running rate for engines that cost the same an hour: versions of one model."""
    hour_nano, tokens = clocks[0].hour_nano, sum(clock.tokens for clock in clocks)
    if tokens < RATE_AFTER_TOKENS:
        return own_price(hour_nano)
    rate = _hours_nano(hour_nano, sum(clock.worked_ms(now) for clock in clocks)) * PER // tokens
    return Price(input=rate, output=rate, version="amortised")


def own_price(hour_nano: int, tokens_per_s: float = OWN_TOKENS_PER_S) -> Price:
    """$/hour as a price per token at a given speed; the default speed stands in until one is measured."""
    rate = round(hour_nano * PER / (3600 * tokens_per_s))
    return Price(input=rate, output=rate, version="amortised")


def price_of(model: Model, version: str) -> Price | None:
    """What a call to this version (its id) costs: the version's own price, else the model's, else the model's hour
    spread at the assumed speed, else None (unknown). Raises `KeyError` where the model has no such version.

    An API model of unknown price is refused before a run, so None is met in models made by hand only.
    """
    price = model.version(version).price or model.price
    if price is not None:
        return price
    if model.hour_usd is not None:
        return own_price(usd_to_nano(model.hour_usd))
    return Price(version="free") if model.self_hosted else None


def _ms(now: float) -> int:
    return round(now * 1000)


def _open(since: dict[str, int], now: float) -> int:
    return sum(max(0, _ms(now) - start) for start in since.values())


def _hours_nano(hour_nano: int, ms: int) -> int:
    return hour_nano * ms // 3_600_000
