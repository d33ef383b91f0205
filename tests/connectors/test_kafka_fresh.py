"""`--fresh` on Kafka while a process of the old life only sleeps."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.errors import Fenced, Temporary

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
