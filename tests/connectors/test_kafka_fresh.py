"""`--fresh` on Kafka while a process of the old life only sleeps."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from penstock.connectors.kafka.client import ended
from penstock.connectors.registry import Sinks, Stores, discard_stores, iter_committed, open_stores
from penstock.connectors.settings import FilesSink, KafkaSink
from penstock.engine.errors import Fenced, Temporary

if TYPE_CHECKING:
    from conftest import KafkaAt

    from penstock.jobs.dev.kafka import KafkaServer

_spec = importlib.util.spec_from_file_location("store_kafka_tests", Path(__file__).with_name("test_store_kafka.py"))
assert _spec is not None
assert _spec.loader is not None
kafka = sys.modules["store_kafka_tests"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kafka)

pytestmark = pytest.mark.kafka
run = kafka.run


async def test_an_owner_that_slept_while_its_run_was_begun_anew_leaves_nothing_in_it(run: Callable[..., Any]) -> None:
    """Stopped, thought dead, woken up before the new command has taken its lanes: what it had finished would count as
    finished, and its records as nobody's."""
    one = run()
    old = one.process()
    await old.hold(kafka.WHO)
    await old.take(0, (1, 1))
    await old.commit(0, (1, 1), 1, {"results": [kafka.record(1)]}, {"progress": b"one"})
    assert old.heart is not None
    old.heart.kill()
    await one.process(alive_s=0.5).forget()
    with pytest.raises((Fenced, Temporary)):
        await old.commit(0, (1, 1), 2, {"results": [kafka.record(2)]}, {"progress": b"one and two"})
    for lane in (0, 1):
        with pytest.raises(Fenced):
            await old.take(lane, (1, 2), force=True)
    new = one.process(alive_s=0.5)
    assert await new.hold(kafka.WHO) == 2
    assert (await new.take(0, (2, 1))).chunks == {}
    await new.commit(0, (2, 1), 1, {"results": [kafka.record(7)]}, {})
    assert one.committed() == [b'{"n":7}']
    await new.let_go()


async def test_a_run_in_files_whose_costs_follow_in_kafka_begins_anew(
    tmp_path: Path, kafka_server: KafkaServer | KafkaAt, new_topic: Callable[..., Any]
) -> None:
    """The folder counts its commands from 1 again; the topic has disowned that epoch, and takes no owner of it."""
    costs = KafkaSink(await new_topic("costs"), kafka_server.bootstrap)
    sinks: Sinks = {"results": FilesSink(str(tmp_path / "out.jsonl")), "costs": costs}
    run_id = costs.topic
    for number in (1, 2):
        stores = open_stores(sinks, run_id)
        epoch = await stores.hold(kafka.WHO)
        assert await stores.primary.owner(0) < (epoch, 1)
        await stores.primary.take(0, (epoch, 1))
        (follower,) = stores.followers.values()
        assert (await follower.take(0, (epoch, 1))).seq == 0
        await follower.commit(0, (epoch, 1), 1, {"costs": [kafka.record(number)]}, {})
        assert await asyncio.to_thread(lambda: list(iter_committed(sinks, run_id, "costs"))) == [b'{"n":%d}' % number]
        await close(stores)
        await discard_stores(sinks, run_id)
    assert not list(iter_committed(sinks, run_id, "results"))
    await ended()


async def close(stores: Stores) -> None:
    for store in (*stores.followers.values(), stores.primary):
        await store.release(0)
    await stores.primary.let_go()
