"""Puts that were given up and come true all the same: what a progress names by then must still be there."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from penstock.connectors.base import OutRecord
from penstock.connectors.s3.store import home as s3_home
from penstock.connectors.s3.store import merge as s3_merge
from penstock.connectors.s3.store.place import S3Place
from penstock.connectors.s3.store.store import S3Store
from penstock.connectors.settings import S3Sink
from penstock.connectors.writing.tables import read_records
from penstock.engine.errors import Temporary
from penstock.engine.plan import Plan

if TYPE_CHECKING:
    from conftest import S3At

    from penstock.jobs.dev.s3 import S3Server

_spec = importlib.util.spec_from_file_location("s3_fence_tests", Path(__file__).with_name("test_s3_fence.py"))
assert _spec is not None
assert _spec.loader is not None
nets = sys.modules["s3_fence_tests"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(nets)

pytestmark = pytest.mark.s3

PLAN = Plan("run", "name", {}, 1, (), {}, 0.0)


class Holding(nets.LosingProxy):
    """Keeps the next swap of a lane's progress back until it is let go; then it goes on as if it had been slow."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        self.armed = False
        self.go = threading.Event()
        self.landed = threading.Event()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        held = self.armed and request.method == "PUT" and "/progress/" in request.path
        if held:
            self.armed = False
            await asyncio.to_thread(self.go.wait)
        answer = await super()._pass(request)
        if held:
            self.landed.set()
        return answer

    def let_go(self) -> None:
        """Returns once the put was decided."""
        self.go.set()
        assert self.landed.wait(20)


@pytest.mark.parametrize("when", ["at once", "while the run is finished"])
async def test_the_end_of_a_merge_that_comes_true_late_finds_its_objects(
    s3_server: S3Server | S3At,
    s3_keys: None,
    new_bucket: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """The swap that names merged objects gets no answer in time, and nobody knows what becomes of it: whoever removes
    them must be sure first that it can't come true any more."""
    proxy = Holding(s3_server.endpoint)
    bucket = new_bucket("late")
    with nets.serving(proxy.app) as endpoint:
        slow = S3Place({"results": S3Sink(bucket, "out/", endpoint, "us-east-1")}, "run").open()
        await slow.take(0, (1, 1))
        await slow.commit(0, (1, 1), 1, {"results": [OutRecord(0, 1, b'{"n":1}')]}, {})
        await give_up(slow, proxy, monkeypatch)
        direct = S3Place({"results": S3Sink(bucket, "out/", s3_server.endpoint, "us-east-1")}, "run").open()
        if when == "at once":
            proxy.let_go()
        else:
            remove = s3_merge.remove_attempt

            def removed(*arguments: object) -> None:
                remove(*arguments)  # pyright: ignore[reportArgumentType]
                proxy.let_go()

            monkeypatch.setattr(s3_merge, "remove_attempt", removed)
        [url] = (await direct.finish(PLAN))["results"]
        await slow.beacon.put_out()
    assert list(read_records(url)) == [b'{"n":1}']


async def give_up(store: S3Store, proxy: Holding, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge whose last swap is held back until its deadline has passed."""
    lane = store._lanes[0]  # pyright: ignore[reportPrivateUsage]

    def arm(step: str) -> None:
        if step == "merge.written":
            proxy.armed = True
            monkeypatch.setattr(s3_home, "DEADLINE_S", 1.0)

    lane._faults = arm  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(Temporary):
        await s3_merge.merge(lane, store.home, store._sinks, 0.0, threading.Event())  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(s3_home, "DEADLINE_S", 30.0)
