"""Budgets: what may be spent, in leases (see DESIGN: a lease is durable before the first call that it covers)."""

from __future__ import annotations

from typing import Literal

import msgspec


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """A hard limit. `per` None: the whole run. `tenant` "*": one such budget for each tenant."""

    limit_nano: int
    per: Literal["day", "month"] | None = None
    tenant: str | None = None
