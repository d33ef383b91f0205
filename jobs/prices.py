"""What a model's tokens cost: from the file, or from the price table that ships with `genai_prices` (offline).

Prices are integer nano-dollars per million tokens. Decimal is used here, once a model, so that what a person wrote is
what is charged; the hot path counts in integers.
"""

from __future__ import annotations

import datetime
import re
import sys
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib.util import find_spec, module_from_spec
from typing import Any

from penstock.engine.catalog import Price, PriceAbove
from penstock.engine.items import NANO_PER_USD

PRETEND = "sandbox-pretend"
"""`price_version` of the sandbox: no one is billed."""

_PRETEND = Price(input=NANO_PER_USD, output=5 * NANO_PER_USD, version=PRETEND)
"""For sandbox models that no table knows: 1 and 5 dollars, about a small closed model. A guess."""

MAX_USD_PER_MILLION = 1_000_000
"""A dollar a token: beyond it somebody mistook the unit."""
MAX_USD_PER_REQUEST = 1
"""Beyond it somebody wrote the price of a thousand. A guess: the dearest known is 0.014."""

_ON_DEMAND = frozenset(
    {
        "web_searches_kcount",
        "storage_searches_kcount",
        "audio_hours",
        "input_audio_hours",
        "input_audio_mtok",
        "cache_audio_read_mtok",
        "input_video_mtok",
    }
)
"""Prices of what only certain requests ask for, and those are refused when they are read."""
_SEARCHES = re.compile(r"\bsonar\b|-search\b|deep-research")
"""Models that search on every call, for a fee that the table leaves out or knows for one of several sizes."""


class Uncounted(ValueError):
    """The table's price of this model has parts that calls can't be charged by. The message names them."""


def nano(usd: int | float | str | Decimal) -> int:
    """Exact nano-dollars. Raises `ValueError` where the amount is negative, not finite, or finer than a nano-dollar."""
    try:
        amount = Decimal(str(usd))
    except InvalidOperation:
        raise ValueError("not a number") from None
    if not amount.is_finite():
        raise ValueError("not a finite number")
    if amount < 0:
        raise ValueError("negative")
    scaled = amount * NANO_PER_USD
    if scaled != scaled.to_integral_value():
        raise ValueError("finer than a nano-dollar (nine decimals)")
    return int(scaled)


def table_price(provider: str | None, base_url: str, model: str) -> Price | None:
    """The table's price today, or None where it does not know provider or model.

    Where a price depends on the length of the prompt, the base price is taken and `Price.above` holds the dearer ones;
    where it depends on the time of day, the dearest one holds, so that a budget is never overrun. Raises `Uncounted`.
    """
    found = _find(provider, base_url, model)
    if found is None:
        return None
    if parts := _uncounted(found, model):
        raise Uncounted(", ".join(parts))
    return _convert(found, f"genai-prices {_version()}")


def _uncounted(info: Any, model: str) -> list[str]:
    """Names of what a call of this model may be charged for beside the tokens of `_FIELDS`. The table takes a name that
    it does not know for the one that it begins with: `gpt-4o-mini-search-preview` for a plain `gpt-4o-mini`."""
    priced = {name for price in _candidates(info) for name, value in vars(price).items() if value is not None}
    odd = sorted(name for name in priced - {*_FIELDS.values()} - _ON_DEMAND if not name.startswith("_"))
    return [*odd, "searches"] if _SEARCHES.search(f"{info.id} {model}") and not odd else odd


def sandbox_price(model: str) -> Price:
    """The price that the model's real namesake has, marked as pretend."""
    found = _find(None, "", model)
    price = _convert(found, PRETEND) if found is not None else None
    return price or _PRETEND


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("genai-prices")


@cache
def _table() -> Any:
    """The table, without what its package opens with: an HTTP client for newer tables, which takes as long to import
    as the table. Whoever imports the package later gets all of it."""
    name = "genai_prices"
    spec = find_spec(name)
    bare = name not in sys.modules and spec is not None
    if spec is not None and bare:
        sys.modules[name] = module_from_spec(spec)
    try:
        from genai_prices.data_snapshot import get_snapshot

        return get_snapshot()
    finally:
        if bare:
            del sys.modules[name]


def _find(provider: str | None, base_url: str, model: str) -> Any | None:
    try:
        _, info = _table().find_provider_model(model, None, provider, base_url or None)
    except LookupError:
        return None
    return info


def _convert(info: Any, version: str) -> Price | None:
    prices = [_one(p, version) for p in _candidates(info)]
    known = [p for p in prices if p is not None]
    return max(known, key=lambda p: (p.output, p.input), default=None)


def _candidates(info: Any) -> list[Any]:
    """The prices that hold at some half-hour of today."""
    from genai_prices.types import ModelPrice

    if isinstance(info.prices, ModelPrice):
        return [info.prices]
    today = datetime.datetime.now(datetime.UTC).replace(hour=0, minute=1)
    return [info.get_prices(today + datetime.timedelta(minutes=30 * n)) for n in range(48)]


def _one(price: Any, version: str) -> Price | None:
    base = _at(price, 0)
    if base["input"] is None or base["output"] is None:
        return None
    starts = sorted({tier.start for name in _FIELDS.values() for tier in _tiers(getattr(price, name))})
    above = tuple(PriceAbove(start=start, **_rates(_at(price, start + 1))) for start in starts)
    return Price(**_rates(base), version=version, above=above)


_FIELDS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
}


def _tiers(value: Any) -> list[Any]:
    return list(getattr(value, "tiers", ()))


def _at(price: Any, input_tokens: int) -> dict[str, int | None]:
    """Nano-dollars of each kind of token in a call with so many input tokens."""
    return {ours: _nano_at(getattr(price, theirs), input_tokens) for ours, theirs in _FIELDS.items()}


def _nano_at(value: Any, input_tokens: int) -> int | None:
    if value is None:
        return None
    usd = getattr(value, "base", value)
    for tier in _tiers(value):
        if input_tokens > tier.start:
            usd = tier.price
    return int((usd * NANO_PER_USD).to_integral_value())


def _rates(kinds: dict[str, int | None]) -> dict[str, Any]:
    return {kind: rate for kind, rate in kinds.items() if rate is not None}
