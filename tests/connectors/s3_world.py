"""A bucket of a test's own, stores of one run in it, and what is committed to them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from penstock.connectors.base import Holder, OutRecord, SinkName
from penstock.connectors.filestore.disk import no_faults
from penstock.connectors.s3 import client as s3_client
from penstock.connectors.s3 import outputs
from penstock.connectors.s3.store.place import S3Place
from penstock.connectors.s3.store.store import S3Store
from penstock.connectors.s3.urls import parsed
from penstock.connectors.settings import S3Sink
from penstock.engine.plan import Plan

WHO = Holder(host="here", pid=7, user="ada", since=0.0, command="penstock run job.yaml")
PLAN = Plan("run", "name", {}, 3, (), {}, 0.0)
Faults = Callable[[str], None]


class World:
    """A bucket of the test's own, and stores of one run in it."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        self.endpoint = endpoint
        self.bucket = bucket
        self.s3 = s3_client.client(endpoint, "us-east-1")
        self.sinks: dict[SinkName, S3Sink] = {"results": self.sink("out/results/"), "costs": self.sink("out/costs/")}

    def sink(self, prefix: str, **options: object) -> S3Sink:
        return S3Sink(self.bucket, prefix, self.endpoint, "us-east-1", **options)  # pyright: ignore[reportArgumentType]

    def place(self, run_id: str = "run") -> S3Place:
        return S3Place(self.sinks, run_id)

    def store(self, faults: Faults = no_faults, beat_s: float = 0.05) -> S3Store:
        store = self.place().open()
        life = store._life  # pyright: ignore[reportPrivateUsage]
        return S3Store(life, store.outputs, beat_s=beat_s, owner_wait_s=0.0, faults=faults)

    def keys(self, prefix: str = "") -> list[str]:
        return [one.key for page in self.s3.pages(self.bucket, prefix) for one in page]

    def seen(self, prefix: str = "out/") -> list[str]:
        """What readers of data sets see: names that start with a dot or a low line are passed over."""
        return [k for k in self.keys(prefix) if not any(part[:1] in "._" for part in k.split("/"))]

    def seen_by(self, url: str) -> list[str]:
        """Keys of the objects that a manifest names."""
        return [parsed(one).key for one in outputs.objects(url)]

    def committed(self, sink: SinkName = "results") -> list[bytes]:
        return list(self.place().committed(sink))


class Requests:
    """Real requests of this process, as they go out."""

    def __init__(self, world: World) -> None:
        self.seen: Counter[str] = Counter()
        events: Any = world.s3._client.meta.events  # pyright: ignore[reportPrivateUsage]
        events.register("before-send.s3", self._count)

    def _count(self, request: Any, **_: object) -> None:
        self.seen[request.method] += 1

    def took(self) -> dict[str, int]:
        seen, self.seen = self.seen, Counter()
        return dict(seen)


def result(n: int, **ours: object) -> OutRecord:
    told = {"item_id": f"i{n}", "tier": n % 2 + 1, "task": "t", "model": "m", "finished_at": "2026-11-24T00:00:00.000Z"}
    return OutRecord(0, n, json.dumps({"n": n, "answer": "a", "penstock": told | ours}).encode())


def numbers(values: list[bytes]) -> list[int]:
    return [json.loads(value)["n"] for value in values]


def once(step: str, action: Callable[[], object]) -> Faults:
    """`Faults` that runs `action` the first time that `step` is reached."""
    left = [action]

    def faults(name: str) -> None:
        if name == step and left:
            left.pop()()

    return faults


def elsewhere(what: Callable[[], Awaitable[object]]) -> object:
    """Run it in another thread with its own loop: the hook stands within a running one."""
    found: list[object] = []

    async def run() -> None:
        found.append(await what())

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    thread.join()
    return found[0] if found else None


async def fill(store: S3Store, commits: int, lane: int = 0, each: int = 2) -> None:
    """Commits of `each` records, to all sinks of the store; numbers go on from `lane * 1000`."""
    taken = await store.take(lane, (1, 1))
    for seq in range(taken.seq + 1, taken.seq + commits + 1):
        rows = [result(lane * 1000 + seq * each + i) for i in range(each)]
        records = {sink: rows for sink in store.outputs if sink != "dead_letters"}
        await store.commit(lane, (1, 1), seq, records, {"progress": b"%d" % seq})
    await store.release(lane)
