"""After a commit that failed, a lane is taken with its topics as they are now; the cluster here is a script."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from aiokafka import TopicPartition

from penstock.connectors.kafka import opening
from penstock.connectors.kafka import store as module
from penstock.connectors.kafka.keys import Scope
from penstock.connectors.kafka.opening import Cluster, looked_up_again
from penstock.connectors.kafka.store import KafkaStore, Settings
from penstock.connectors.kafka.topics import TopicFacts
from penstock.connectors.settings import Connection, CreateTopic, KafkaSink
from penstock.engine.errors import Away, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HERE = Connection("k:1")


def facts(name: str, cleanup: str = "delete") -> TopicFacts:
    return TopicFacts(name, 4, 1 << 20, cleanup)


CLUSTER = Cluster(Scope("r", 4), {"results": facts("results")}, {"inbox": facts("inbox")}, facts("progress", "compact"))


class Script:
    """`failing`: commits fail. `looks`: how often topics were looked up again; each look waits for `looked`."""

    def __init__(self) -> None:
        self.failing = False
        self.looks = 0
        self.looking = asyncio.Event()
        self.looked = asyncio.Event()
        self.error: Away | None = None

    async def again(self, cluster: Cluster, _connection: Connection) -> Cluster:
        self.looks += 1
        self.looking.set()
        await self.looked.wait()
        if self.error is not None:
            raise self.error
        return cluster

    def producer(self, *_args: object, **_settings: object) -> SimpleNamespace:
        async def write(_rows: object, _faults: object, *, seconds: float = 0.0) -> None:
            if seconds and self.failing:
                raise Away("not now")

        return SimpleNamespace(lost=False, start=nothing, write=write, close=lambda: None, kill=lambda: None)


async def nothing(*_args: object, **_settings: object) -> None:
    return None


async def no_rows(*_args: object) -> Mapping[bytes, bytes]:
    return {}


async def cluster_of(*_args: object) -> Cluster:
    return CLUSTER


def control(*_args: object) -> SimpleNamespace:
    return SimpleNamespace(
        partition=TopicPartition("progress", 0), claims={}, owner=lambda _lane: (0, 0), refresh=nothing, end=nothing
    )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    doubles: dict[str, Callable[..., object]] = {
        "open_cluster": cluster_of,
        "looked_up_again": made.again,
        "Control": control,
        "Heart": lambda *_args: SimpleNamespace(process="p", start=nothing),
        "Run": lambda *_args: SimpleNamespace(epoch=0),
        "Transactions": made.producer,
        "read_rows": no_rows,
    }
    for name, double in doubles.items():
        monkeypatch.setattr(module, name, double)
    return made


async def taken(lanes: int) -> KafkaStore:
    store = KafkaStore(Settings(HERE, "r", "r", {"results": KafkaSink("results", bootstrap="k:1")}))
    for lane in range(lanes):
        await store.take(lane, (1, 1))
    return store


async def fail(script: Script, store: KafkaStore, lane: int, epoch: int) -> None:
    script.failing = True
    async with asyncio.timeout(5):
        with pytest.raises(Away):
            await store.commit(lane, (1, epoch), 1, {}, {})
    script.failing = False


async def test_other_lanes_commit_while_one_looks_its_topics_up_again(script: Script) -> None:
    """On a broker that is slow to answer they would wait past their rights to send."""
    store = await taken(2)
    await fail(script, store, 0, 1)
    take = asyncio.create_task(store.take(0, (1, 2)))
    await script.looking.wait()
    async with asyncio.timeout(5):
        await store.commit(1, (1, 1), 1, {}, {})
    script.looked.set()
    await take


async def test_a_commit_that_fails_during_a_look_asks_for_one_more(script: Script) -> None:
    """What it broke on may have changed since."""
    store = await taken(2)
    await fail(script, store, 0, 1)
    take = asyncio.create_task(store.take(0, (1, 2)))
    await script.looking.wait()
    await fail(script, store, 1, 1)
    script.looked.set()
    await take
    await store.take(1, (1, 2))
    assert script.looks == 2


async def test_a_look_that_fails_is_taken_again(script: Script) -> None:
    store = await taken(1)
    await fail(script, store, 0, 1)
    script.looked.set()
    script.error = Away("not now")
    with pytest.raises(Away):
        await store.take(0, (1, 2))
    script.error = None
    await store.take(0, (1, 2))
    assert script.looks == 2


@pytest.mark.parametrize("gone", ["results", "inbox", "progress"])
async def test_a_topic_that_is_gone_in_mid_run_is_waited_for_and_never_made(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that made it anew would end as done, without what it had committed; and a broker that was just started may
    not know it for a moment, which is no mistake in the job."""

    @asynccontextmanager
    async def opened(client: object, _connection: Connection) -> AsyncIterator[object]:
        yield client

    async def look_up(_admin: object, _connection: Connection, names: set[str]) -> dict[str, TopicFacts]:
        known = {"results": facts("results"), "inbox": facts("inbox"), "progress": CLUSTER.progress}
        return {name: known[name] for name in names if name != gone}

    monkeypatch.setattr(opening, "new_admin", lambda _connection: object())
    monkeypatch.setattr(opening, "opened", opened)
    monkeypatch.setattr(opening, "look_up", look_up)
    with pytest.raises(Away, match=f"the topic {gone} is gone"):
        await looked_up_again(CLUSTER, HERE)


async def test_the_progress_topic_is_made_where_a_policy_takes_no_small_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Confluent Cloud takes none under 50 MB: each first run there was refused, with words about `create:`."""
    made = list[dict[str, str]]()

    async def ensure(_: object, __: object, name: str, how: CreateTopic) -> TopicFacts:
        if "segment.bytes" in how.config:
            raise Refused("Config property 'segment.bytes' is lower than the minimum allowed value of 52428800")
        made.append(how.config)
        return facts(name, how.config["cleanup.policy"])

    monkeypatch.setattr(opening, "ensure", ensure)
    sinks = {"results": KafkaSink("results", bootstrap="k:1")}
    found = await opening._progress_topic(None, HERE, sinks)  # type: ignore[arg-type]
    assert (found.name, found.cleanup, made) == ("penstock-progress", "compact", [{"cleanup.policy": "compact"}])
