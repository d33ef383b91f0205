"""A wall comes before a price, and what isn't known isn't allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.catalog import Account, Catalog, Model, Version, Wall
from penstock.engine.walls import WallUnknown, refusal, wall_of

V = (Version("v1", "m"),)


def api(**fields: object) -> Model:
    return Model("m", V, "v1", account="a", **fields)  # type: ignore[arg-type]


def own(**fields: object) -> Model:
    return Model("m", V, "v1", worker="vllm", **fields)  # type: ignore[arg-type]


def account(**fields: object) -> Account:
    return Account("a", "openai", "http://x", **fields)  # type: ignore[arg-type]


def catalog(*walls: Wall, unknown: str = "refuse") -> Catalog:
    return Catalog({}, {}, {}, {w.name: w for w in walls}, unknown)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [None, "", "heath", "null"])
def test_where_walls_are_declared_a_missing_or_unnamed_sensitivity_goes_nowhere(said: str | None) -> None:
    """Missing, empty and misspelt sensitivities are refused, and the message names the walls there are."""
    found = wall_of(catalog(Wall("health"), Wall("public")), said)
    assert isinstance(found, WallUnknown)
    assert "health, public" in found.message


def test_a_named_sensitivity_that_nothing_defines_goes_nowhere() -> None:
    """A sensitivity with no walls declared at all is refused; none at all is no wall."""
    assert isinstance(wall_of(catalog(), "health"), WallUnknown)
    assert wall_of(catalog(), None) is None


def test_unknown_wall_public_sends_unnamed_items_behind_public() -> None:
    """`unknown_wall: public` is a choice of the company: missing and unnamed ones take the wall `public`."""
    wall = Wall("public", regions=("eu",))
    assert wall_of(catalog(wall, unknown="public"), None) is wall
    assert wall_of(catalog(wall, unknown="public"), "heath") is wall
    assert wall_of(catalog(wall, Wall("health"), unknown="public"), "health") == Wall("health")


@pytest.mark.parametrize(
    ("wall", "model", "acc", "reason"),
    [
        (Wall("w", regions=("eu",)), api(), account(regions=("us",)), "region us not in eu"),
        (Wall("w", regions=("eu",)), api(), account(), "unknown region"),
        (Wall("w", regions=("eu",)), api(), None, "unknown region"),
        (Wall("w", regions=("eu",)), api(), account(regions=("eu", "us")), "region us not in eu"),
        (Wall("w", regions=("eu",)), api(regions=("eu",)), account(regions=("us",)), None),
        (Wall("w", regions=("eu",)), api(), account(regions=("eu",)), None),
        (Wall("w", origin=("us", "eu")), api(origin="cn"), account(), "origin cn not in us, eu"),
        (Wall("w", origin=("us",)), api(), account(), "unknown origin"),
        (Wall("w", self_hosted=True), api(), account(), "not self-hosted"),
        (Wall("w", self_hosted=True), own(), None, None),
        (Wall("w", no_train=True), api(), account(), "may train on data"),
        (Wall("w", no_train=True), api(), account(no_train=True), None),
        (Wall("w", no_train=True), own(), None, None),
        (Wall("w", licence=("mit",)), api(licence="llama"), account(), "licence llama not in mit"),
        (Wall("w", licence=("mit",)), api(), account(), "unknown licence"),
        (Wall("w"), api(), None, None),
    ],
)
def test_a_refusal_says_why(wall: Wall, model: Model, acc: Account | None, reason: str | None) -> None:
    """Each thing a wall may ask of a target has its own words, and unknown values are refused."""
    assert refusal(wall, model, acc) == reason


REGIONS = st.lists(st.sampled_from(["eu", "us", "cn"]), unique=True).map(tuple)


@given(REGIONS, REGIONS, REGIONS)
def test_no_call_can_leave_the_walls_regions(
    asked: tuple[str, ...], model: tuple[str, ...], acc: tuple[str, ...]
) -> None:
    """Whatever is declared where: a permitted target's regions are known and all inside the wall's."""
    if asked and refusal(Wall("w", regions=asked), api(regions=model), account(regions=acc)) is None:
        served = model or acc
        assert served
        assert set(served) <= set(asked)
