"""What a host says itself that it charges for a call. Believed at the host's own address alone: a gateway may pass on
such members and bill otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from penstock.engine.pricing import usd_to_nano
from penstock.workers.wire.base import at_host


class Told(msgspec.Struct):
    """The members of a response's `usage` that tell it. Other hosts have other things of these names."""

    cost: Any = None
    cost_details: Any = None
    is_byok: Any = None
    cost_in_usd_ticks: Any = None


MOST_USD = 1_000
"""Of one call: beyond it somebody mistook the unit. Ten times what the longest context costs at the dearest model."""


def charged_nano(told: Told | None, base_url: str) -> int | None:
    """Nano-dollars, or None where the host tells nothing that can be true: then the price decides."""
    tell = at_host(base_url, _BILLS)
    return tell(told) if tell is not None and told is not None else None


def _openrouter(told: Told) -> int | None:
    """Credits are US dollars. With a key of one's own for the host behind it (`is_byok`), `cost` is the fee alone, and
    the host bills `upstream_inference_cost` apart: nothing, where OpenRouter doesn't know it. (Calls on credits
    tell that too: it is in their `cost`.)"""
    if told.is_byok is not True:
        return _dollars(told.cost)
    details = told.cost_details
    upstream = _dollars(details.get("upstream_inference_cost")) if isinstance(details, dict) else None
    fee = _dollars(told.cost)
    return upstream + fee if upstream and fee is not None else None


def _xai(told: Told) -> int | None:
    """docs.x.ai, cost tracking: 10¹⁰ ticks are a dollar."""
    ticks = told.cost_in_usd_ticks
    return -(-ticks // 10) if type(ticks) is int and 0 <= ticks <= MOST_USD * 10**10 else None


def _dollars(value: object) -> int | None:
    return usd_to_nano(value) if isinstance(value, (int, float)) and 0 <= value <= MOST_USD else None


_BILLS: dict[str, Callable[[Told], int | None]] = {"openrouter.ai": _openrouter, "api.x.ai": _xai}
