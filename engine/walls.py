"""Walls: item × target → permitted, or the reason in words. Fails closed: what a target does not say, it has not."""

from __future__ import annotations

import msgspec

from penstock.engine.catalog import Account, Catalog, Model, Wall

PUBLIC = "public"


class WallUnknown(msgspec.Struct, frozen=True):
    """The item's sensitivity names no wall: the item goes nowhere (dead letter `unknown_sensitivity`)."""

    sensitivity: str | None
    message: str


def wall_of(catalog: Catalog, sensitivity: str | None) -> Wall | WallUnknown | None:
    """The wall around an item. None: the company declares no walls and the item asks for none.

    A sensitivity that nothing defines is refused, also where no walls are declared at all. `unknown_wall: public`
    sends missing, null and unnamed ones behind the wall named `public` (an empty one where it isn't declared).
    """
    if not catalog.walls:
        return None if sensitivity is None else _unknown(catalog, sensitivity)
    wall = catalog.walls.get(sensitivity) if sensitivity is not None else None
    if wall is not None:
        return wall
    if catalog.unknown_wall == "public":
        return catalog.walls.get(PUBLIC, Wall(name=PUBLIC))
    return _unknown(catalog, sensitivity)


def refusal(wall: Wall, model: Model, account: Account | None) -> str | None:
    """Why this wall forbids this target; None: it is permitted."""
    if wall.self_hosted and not model.self_hosted:
        return "not self-hosted"
    return (
        _outside("region", regions_of(model, account), wall.regions)
        or _outside("origin", _one(model.origin), wall.origin)
        or _training(wall, model, account)
        or _outside("licence", _one(model.licence), wall.licence)
    )


def regions_of(model: Model, account: Account | None) -> tuple[str, ...]:
    """Where a call to this model may be processed: what the model says, else what its account says."""
    return model.regions or (account.regions if account is not None else ())


def _outside(what: str, has: tuple[str, ...], allowed: tuple[str, ...]) -> str | None:
    """Every value must be allowed: a provider that serves from two regions may use either."""
    if not allowed:
        return None
    if not has:
        return f"unknown {what}"
    bad = [value for value in has if value not in allowed]
    return f"{what} {', '.join(bad)} not in {', '.join(allowed)}" if bad else None


def _training(wall: Wall, model: Model, account: Account | None) -> str | None:
    promised = model.self_hosted or model.no_train or (account is not None and account.no_train)
    return "may train on data" if wall.no_train and not promised else None


def _one(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)


def _unknown(catalog: Catalog, sensitivity: str | None) -> WallUnknown:
    said = "the item names no sensitivity" if sensitivity is None else f"no wall is named {sensitivity[:100]!r}"
    names = ", ".join(sorted(catalog.walls)[:20]) or "none"
    return WallUnknown(sensitivity, f"{said}; walls declared: {names}")
