"""A store whose listings lag behind what was put: nothing that is committed is left out of the outputs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.connectors.base import OutRecord, this_process
from penstock.connectors.s3.client import PLAIN, Got, Listed, Stored
from penstock.connectors.s3.errors import Missing, NotAsExpected
from penstock.connectors.s3.store.run import Base, claim
from penstock.connectors.s3.store.store import S3Store
from penstock.connectors.settings import S3Sink
from penstock.engine.errors import Corrupt
from penstock.engine.plan import Plan

PLAN = Plan("run", "n", {}, 2, (), {}, 0.0, started=True)


class Bucket:
    """As much of S3 as a small run needs. `unlisted`: keys that its listings don't show yet."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.unlisted: set[str] = set()
        self._puts = 0

    def pages(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[list[Listed]]:
        seen = [key for key in sorted(self.objects) if key.startswith(prefix) and key > after]
        yield [self._listed(key) for key in seen if key not in self.unlisted]

    def head(self, bucket: str, key: str) -> Listed | None:
        return self._listed(key) if key in self.objects else None

    def get(
        self, bucket: str, key: str, start: int = 0, end: int | None = None, *,
        etag: str | None = None, version: str | None = None,
    ) -> Got:  # fmt: skip
        if key not in self.objects:
            raise Missing(key)
        data, now = self.objects[key]
        if etag not in (None, now):
            raise NotAsExpected(key)
        return Got(data[start:end], now)

    def put(
        self, bucket: str, key: str, data: bytes, *,
        absent: bool = False, etag: str | None = None, stored: Stored = PLAIN,
    ) -> str:  # fmt: skip
        there = self.objects.get(key)
        if (absent and there is not None) or (etag is not None and (there is None or there[1] != etag)):
            raise NotAsExpected(key)
        self._puts += 1
        self.objects[key] = data, f'"{self._puts}"'
        return self.objects[key][1]

    def delete(self, bucket: str, keys: list[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    def uploads(self, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
        return iter(())

    def _listed(self, key: str) -> Listed:
        return Listed(key, len(self.objects[key][0]), self.objects[key][1])


async def two_lanes(prefix: str) -> tuple[Bucket, S3Store]:
    """Each has committed a record, and is let go."""
    bucket = Bucket()
    life = claim(Base(bucket, "b", "out/.r.penstock/", PLAIN), "run")  # pyright: ignore[reportArgumentType]
    store = S3Store(life, {"results": S3Sink("b", prefix)}, beat_s=0.05)
    epoch = (await store.hold(this_process()), 1)
    for lane in range(2):
        await store.take(lane, epoch)
        await store.commit(lane, epoch, 1, {"results": [OutRecord(lane, 0, b'{"lane":%d}' % lane)]}, {})
        await store.release(lane)
    return bucket, store


@pytest.mark.parametrize("prefix", ["out/results.jsonl", "out/results/"])
async def test_a_lane_that_is_not_listed_yet_is_in_the_outputs(prefix: str) -> None:
    bucket, store = await two_lanes(prefix)
    bucket.unlisted = {key for key in bucket.objects if key.endswith("progress/0001")}
    await store.finish(PLAN)
    await store.let_go()
    shown = [data for key, (data, _) in bucket.objects.items() if key.startswith(prefix) and key.endswith(".jsonl")]
    assert sorted(b"".join(shown).splitlines()) == [b'{"lane":0}', b'{"lane":1}']


@pytest.mark.parametrize("prefix", ["out/results.jsonl", "out/results/"])
async def test_a_lane_that_started_and_is_gone_is_no_empty_lane(prefix: str) -> None:
    bucket, store = await two_lanes(prefix)
    bucket.delete("b", [key for key in bucket.objects if key.endswith("progress/0001")])
    with pytest.raises(Corrupt, match=r"progress/0001 is gone, but its lane had started.*--fresh"):
        await store.finish(PLAN)
    await store.let_go()
    assert not {"out/results.jsonl", "out/results/_manifest.json"} & set(bucket.objects)
