"""Results for people, as a lane commits them: what walls keep back stays back, and a sink takes no more than it can."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.connectors.base import OutRecord, SinkName
from penstock.connectors.memory import MemoryStore
from penstock.connectors.registry import Stores
from penstock.engine.catalog import Wall
from penstock.engine.review import Review
from tests.workers import lane_rig as rig

WALLS = {name: Wall(name, sample=rule) for name, rule in (("open", "keep"), ("shy", "redact"), ("closed", "never"))}
EVERYTHING = Review(share=1.0)


def lane_of(name: str, lines: list[bytes], review: Review | None = EVERYTHING) -> rig.Rig:
    lane = rig.Rig(rig.MemoryPlace(name), rig.source(name, lines))
    lane.review = review
    return lane


def told(name: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(value) for value in MemoryStore(name).values("review")]


async def test_a_wall_keeps_back_from_people_what_it_keeps_back_from_samples() -> None:
    """`keep`: whole. `redact`: that it was chosen, and no word of it. `never`: nothing at all."""
    walls = [name for name in WALLS for _ in range(3)]
    lines = [rig.line(n, **{"penstock-sensitivity": wall}) for n, wall in enumerate(walls)]
    lane = lane_of("walls", lines)
    lane.catalog = msgspec.structs.replace(rig.CATALOG, walls=WALLS)
    await lane.life(lane.place.open())
    assert len(await lane.place.read("results")) == 9
    seen = told("walls")
    assert sorted(one["sensitivity"] for one in seen) == ["open"] * 3 + ["shy"] * 3
    assert {(one["answer"], one["input"] is None) for one in seen if one["sensitivity"] == "open"} == {("yes", False)}
    for one in (one for one in seen if one["sensitivity"] == "shy"):
        assert one["why"] == ["random share"]
        assert [one[n] for n in ("input", "answer", "custom_id", "input_hash", "output_hash")] == [None] * 5
    shy = [value for value in MemoryStore("walls").values("review") if b'"shy"' in value]
    assert not any(f"item {n}".encode() in value for value in shy for n in range(9))


async def test_without_rules_nothing_is_chosen() -> None:
    """The rules of a job that names no review sink are for `penstock label` alone."""
    lane = lane_of("no-rules", [rig.line(n) for n in range(3)], review=None)
    await lane.life(lane.place.open())
    assert len(await lane.place.read("results")) == 3
    assert told("no-rules") == []


class Small(MemoryStore):
    """Takes no more of a result for people than its frame."""

    def refuses(self, sink: SinkName, record: OutRecord) -> str | None:
        return "too large" if sink == "review" and len(record.value) > 800 else None


async def test_what_is_too_large_for_the_sink_goes_without_its_text() -> None:
    """The lane goes on, and people are told that there is one."""
    long = rig.line(1).replace(b"item 1", b"item 1 " + b"x" * 2000)
    lane = lane_of("too-large", [rig.line(0), long])
    placement: dict[SinkName, str] = dict.fromkeys(rig.SINKS, "primary")
    driver = await lane.life(Stores(Small("too-large"), {}, placement))
    assert driver.failures == []
    assert sorted((one["custom_id"] or "", one["input"] is None) for one in told("too-large")) == [
        ("", True),
        ("r0", False),
    ]
