"""`sse:` of an S3 sink: whatever object holds a record, or tells of one, is put with the encryption that the job asks
for. What is looked at is what we send; the encryption itself is the store's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
import pytest

from penstock.connectors.base import SinkName
from penstock.connectors.s3.store import merge, progress, told, upload
from penstock.connectors.s3.store.chunks import LARGE
from penstock.connectors.settings import S3Sink
from tests.connectors.s3_world import PLAN, WHO, World, result

if TYPE_CHECKING:
    from penstock.jobs.dev.s3 import S3Server
    from tests.conftest import S3At

pytestmark = pytest.mark.s3

_SSE = "x-amz-server-side-encryption"
_KEY = f"{_SSE}-aws-kms-key-id"
WANTED = ("aws:kms", "our-key")
SINKS: tuple[SinkName, ...] = ("results", "costs")
BEGINS = ("PutObject", "CreateMultipartUpload", "CopyObject")
"""Requests that say how an object is encrypted; those for the parts of an upload say it no more."""


class Sent:
    """Key → encryption and KMS key of each request that begins an object. The store never sees them: it may have no
    such key."""

    def __init__(self) -> None:
        self.by_key: dict[str, set[tuple[str | None, str | None]]] = {}
        self.uploads: list[str] = []

    def note(self, model: Any, params: dict[str, Any], **_: object) -> None:
        key = unquote(params["url"].split("?")[0].split("/", 4)[4])
        self.by_key.setdefault(key, set()).add((params["headers"].pop(_SSE, None), params["headers"].pop(_KEY, None)))
        if model.name == "CreateMultipartUpload":
            self.uploads.append(key)


@pytest.fixture
def world(s3_server: S3Server | S3At, s3_keys: None, new_bucket: Callable[..., str]) -> World:
    return World(s3_server.endpoint, new_bucket("encrypted"))


@pytest.fixture
def sent(world: World) -> Iterator[Sent]:
    found = Sent()
    events = world.s3._client.meta.events  # pyright: ignore[reportPrivateUsage]
    with contextlib.ExitStack() as ends:
        for name in BEGINS:
            events.register(f"before-call.s3.{name}", found.note)
            ends.callback(events.unregister, f"before-call.s3.{name}", found.note)
        yield found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists, merges and uploads in parts begin early."""
    for module in (progress, merge):
        monkeypatch.setattr(module, "SEAL", 2)
    monkeypatch.setattr(told, "LIST_FILES", 1)
    monkeypatch.setattr(upload, "PART_BYTES", 5 << 20)


def encrypted(world: World, prefix: str, **more: object) -> S3Sink:
    return world.sink(prefix, sse="aws:kms", sse_kms_key_id="our-key", **more)


async def whole_run(world: World, *, size: int) -> None:
    """Held, planned; then twice taken, four commits with large and small chunks, finished."""
    store = world.store()
    run = await store.hold(WHO)
    for version in (1, 2):
        await store.write_plan(msgspec.structs.replace(PLAN, version=version))
        seq = (await store.take(0, (run, version))).seq
        for n in range(seq + 1, seq + 5):
            rows = [result(n, pad="x" * size)]
            chunks = {"large": b"l" * (LARGE + n), **{f"small/{n}/{i}": b"s" * (LARGE - 1) for i in range(3)}}
            await store.commit(0, (run, version), n, dict.fromkeys(SINKS, rows), chunks)
        await store.release(0)
        await store.finish(PLAN)
    await store.let_go()


async def test_all_that_a_prefix_sink_writes_is_encrypted_as_its_sink_says(
    world: World, sent: Sent, small: None
) -> None:
    """Probes of the store, progress, parts, chunks, lists, plan and signs of life in the working prefix; objects,
    manifest and its lists where readers look; one of them so large that it is put in parts."""
    world.sinks = {name: encrypted(world, f"out/{name}/", partition_by=("tier",)) for name in SINKS}
    await whole_run(world, size=1_400_000)
    base = r"out/results/\.penstock/"
    life = base + "[0-9a-f]{8}/"
    for kind in (
        f"{base}probe-.+", rf"{base}run\.json", r"out/costs/\.penstock/run\.json",
        f"{life}hold", f"{life}plan/.+", f"{life}alive/.+", f"{life}progress/0000", f"{life}told/costs",
        rf"{life}lane/.+\.part", rf"{life}lane/.+\.list", rf"{life}lane/.+\.chunk", rf"{life}lane/.+\.base",
        r"out/results/_manifest\.json", r"out/costs/_manifest/.+", r"out/results/tier=1/part-.+",
    ):  # fmt: skip
        assert any(re.fullmatch(kind, key) for key in sent.by_key), (kind, sorted(sent.by_key))
    assert any("/part-" in key for key in sent.uploads)
    assert {key: how for key, how in sent.by_key.items() if how != {WANTED}} == {}


@pytest.mark.parametrize(("size", "in_parts"), [(10, False), (1_000_000, True)])
async def test_a_single_object_is_encrypted_as_its_sink_says(
    world: World, sent: Sent, small: None, size: int, in_parts: bool
) -> None:
    """Put at once, or in parts where it is large; and what waits for it meanwhile."""
    world.sinks = {name: encrypted(world, f"out/{name}.jsonl") for name in SINKS}
    await whole_run(world, size=size)
    assert {"out/results.jsonl", "out/costs.jsonl"} <= sent.by_key.keys()
    assert ("out/costs.jsonl" in sent.uploads) == in_parts
    assert any(re.fullmatch(r"out/\.results\.jsonl\.penstock/.*lane/.+\.whole", key) for key in sent.by_key)
    assert {key: how for key, how in sent.by_key.items() if how != {WANTED}} == {}
