"""New input of an endless run: what is there joins it, and what is missing is told, once."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Collection

from penstock.connectors import memory
from penstock.connectors.base import Later
from penstock.connectors.memory import MemoryStore
from penstock.connectors.settings import KafkaSource, MemorySink, Row
from penstock.engine.catalog import Catalog
from penstock.engine.plan import Plan, Split
from penstock.engine.policy import Policy, Task
from penstock.workers.driving.discovery import Discovery
from penstock.workers.runspec import RunSpec

SPEC = RunSpec(
    "r",
    "n",
    {},
    KafkaSource(("a", "b"), bootstrap="localhost:9092"),
    None,
    Row(),
    Catalog({}, {}, {}),
    Policy({"t": Task("t")}),
    {"results": MemorySink("growing")},
)


class Topics:
    """A source whose looks find what `then` says, one after another."""

    def __init__(self, *then: Later) -> None:
        self._then = [*then]

    async def later(self, known: Collection[str]) -> Later:
        return self._then.pop(0)


async def test_input_that_is_missing_is_told_once_and_what_is_there_joins() -> None:
    """And told again when it goes away another time."""
    memory.forget("growing")
    store, notes, plans = MemoryStore("growing"), list[str](), list[Plan]()
    plan = Plan("r", "n", {}, 1, (), {}, 0.0, started=True, bounded=False, sinks={"results": "primary"})
    await store.write_plan(plan)

    async def tell(longer: Plan) -> None:
        plans.append(longer)

    split = Split("a/1", "a/1", 0, 0, "kafka://h:1/a/1", 0, None)
    gone = "there is no topic b"
    looks = Later([], gone), Later([split], gone), Later([]), Later([], gone)
    discovery = Discovery(SPEC, plan, store, tell, notes.append)
    discovery._source = Topics(*looks)  # type: ignore[assignment]
    for _ in looks:
        await discovery.step([])
    assert notes == [gone, "1 new piece of input joined the run", gone]
    assert [split.id for split in plans[0].splits] == ["a/1"]
