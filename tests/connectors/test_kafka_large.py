"""Results over their topic's limit, with `too_large: s3://…`: the record on S3, a pointer in the topic."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from penstock.connectors.base import OutRecord
from penstock.connectors.filestore.disk import Faults, no_faults
from penstock.connectors.kafka.client import ended
from penstock.connectors.kafka.large import LargeObjects
from penstock.connectors.kafka.place import KafkaPlace
from penstock.connectors.kafka.store import KafkaStore
from penstock.connectors.s3.client import client
from penstock.connectors.settings import CreateTopic, KafkaSink
from penstock.engine.errors import Corrupt, PenstockError, SpecError
from penstock.jobs.streams.tailing import Seen, follow

if TYPE_CHECKING:
    from penstock.jobs.dev.kafka import KafkaServer
    from penstock.jobs.dev.s3 import S3Server

pytestmark = [pytest.mark.kafka, pytest.mark.s3]

LIMIT = 4000
LONG = "y" * LIMIT


class Killed(BaseException):
    """The process ends here."""


def dies(at: str) -> Faults:
    def fault(step: str) -> None:
        if step == at:
            raise Killed(step)

    return fault


def row(n: int, answer: str, generation: int = 0) -> OutRecord:
    head = {"item_id": f"item-{n}", "generation": generation}
    value = msgspec.json.encode({"shop": n, "answer": answer, "penstock": head})
    return OutRecord(0, n, value, key=b"k%d" % n, headers=(("trace", b"t"),), item_id=f"item-{n}")


def batch_line(n: int, text: str) -> OutRecord:
    response = {"status_code": 200, "request_id": None, "body": {"text": text}}
    value = {"id": f"b{n}", "custom_id": f"c{n}", "response": response, "error": None}
    value["penstock"] = {"item_id": f"item-{n}", "generation": 0}
    return OutRecord(0, n, msgspec.json.encode(value), item_id=f"item-{n}")


class Rig:
    """One run whose results topic takes `LIMIT` bytes a record."""

    def __init__(self, bootstrap: str, endpoint: str, bucket: str) -> None:
        self.run = f"r-{secrets.token_hex(6)}"
        self.s3, self.bucket = client(endpoint), bucket
        small = CreateTopic(config={"max.message.bytes": str(LIMIT)})
        self.url = f"s3://{bucket}/large/?endpoint={endpoint}"
        self.sink = KafkaSink(f"{self.run}-results", bootstrap, create=small, too_large=self.url)
        self.place = KafkaPlace({"results": self.sink}, self.run)
        self.opened: list[KafkaStore] = []

    def open(self, faults: Faults = no_faults) -> KafkaStore:
        self.opened.append(KafkaStore(self.place.settings, faults))
        return self.opened[-1]

    async def commit(self, store: KafkaStore, epoch: int, *records: OutRecord) -> None:
        taken = await store.take(0, (1, epoch), force=True)
        await store.commit(0, (1, epoch), taken.seq + 1, {"results": records}, {})

    async def committed(self) -> list[bytes]:
        return await asyncio.to_thread(lambda: list(self.place.committed("results")))

    async def topic(self) -> list[Seen]:
        """What any reader of the topic finds."""
        assert isinstance(self.place.settings.connection.bootstrap, str)
        async for batch in follow(self.place.settings.connection, self.sink.topic, from_start=True):
            if batch:
                return batch
        raise AssertionError("it never ends")

    def objects(self) -> dict[str, bytes]:
        keys = [one.key for page in self.s3.pages(self.bucket) for one in page]
        return {key: self.s3.get(self.bucket, key).data for key in keys}


@pytest.fixture
async def rig(
    kafka_server: KafkaServer, s3_server: S3Server, new_bucket: Callable[..., str], s3_keys: None
) -> AsyncIterator[Rig]:
    rig = Rig(kafka_server.bootstrap, s3_server.endpoint, new_bucket("large"))
    yield rig
    for store in rig.opened:
        store.kill()
    await ended()


async def test_a_result_too_large_for_its_topic_is_an_object_and_a_pointer(rig: Rig) -> None:
    """Its key, headers, kept columns and `penstock` stay; whoever reads the run's results gets the whole record."""
    large, small, batch = row(1, LONG), row(2, "yes"), batch_line(3, LONG)
    store = rig.open()
    await store.take(0, (1, 1))
    assert [store.refuses("results", one) for one in (large, small, batch)] == [None] * 3
    await store.commit(0, (1, 1), 1, {"results": [large, small, batch]}, {})
    assert await rig.committed() == [large.value, small.value, batch.value]
    found: dict[bytes | None, Any] = {seen.key: msgspec.json.decode(seen.value) for seen in await rig.topic()}
    told = found[b"k1"].pop("answer")["too_large"]
    assert found[b"k1"] == {"shop": 1, "penstock": {"item_id": "item-1", "generation": 0}}
    assert (told["bytes"], told["blake2b"]) == (
        len(large.value), hashlib.blake2b(large.value, digest_size=16).hexdigest()
    )  # fmt: skip
    assert told["url"].startswith(f"s3://{rig.bucket}/large/{rig.run}/item-1-0-")
    assert found[b"item-3"]["response"]["too_large"]["bytes"] == len(batch.value)
    assert (found[b"item-3"]["custom_id"], found[b"k2"]["answer"]) == ("c3", "yes")
    assert dict((await rig.topic())[0].headers)["trace"] == b"t"
    assert sorted(rig.objects().values()) == sorted([large.value, batch.value])


async def test_the_object_is_there_before_the_pointer_and_once_whatever_is_redone(rig: Rig) -> None:
    """Killed between object and transaction: nothing is committed. The same again finds its object; another answer has
    one of its own, and the pointer is to that."""
    with pytest.raises(Killed):
        await rig.commit(rig.open(dies("commit.large")), 1, row(1, LONG))
    assert (list(rig.objects().values()), await rig.committed()) == ([row(1, LONG).value], [])
    await rig.commit(rig.open(), 2, row(1, LONG))
    assert (len(rig.objects()), await rig.committed()) == (1, [row(1, LONG).value])
    with pytest.raises(Killed):
        await rig.commit(rig.open(dies("commit.large")), 3, row(2, LONG))
    await rig.commit(rig.open(), 4, row(2, "z" * LIMIT))
    assert (len(rig.objects()), (await rig.committed())[1]) == (3, row(2, "z" * LIMIT).value)


async def test_without_its_object_no_pointer_is_committed(rig: Rig) -> None:
    gone = msgspec.structs.replace(rig.sink, too_large=rig.url.replace(rig.bucket, "no-such-bucket"))
    store = KafkaPlace({"results": gone}, rig.run).open()
    rig.opened.append(store)
    with pytest.raises(PenstockError, match="no-such-bucket"):
        await rig.commit(store, 1, row(1, LONG))
    assert await rig.committed() == []


async def test_a_pointer_that_does_not_fit_either_is_told(rig: Rig) -> None:
    """Kept columns can be what is too large: then the result becomes a dead letter, as without S3."""
    store = rig.open()
    await store.take(0, (1, 1))
    value = msgspec.json.encode({"text": LONG, "answer": "yes", "penstock": {"item_id": "i", "generation": 0}})
    assert "max.message.bytes" in (store.refuses("results", OutRecord(0, 0, value, item_id="i")) or "")


async def test_an_object_that_is_gone_or_another_is_told(rig: Rig) -> None:
    await rig.commit(rig.open(), 1, row(1, LONG))
    (key,) = rig.objects()
    rig.s3.put(rig.bucket, key, b"{}")
    with pytest.raises(Corrupt, match="not the result"):
        await rig.committed()
    rig.s3.delete(rig.bucket, [key])
    with pytest.raises(SpecError, match="is gone"):
        await rig.committed()


async def test_large_results_are_encrypted_as_the_url_says_and_found_without_it(rig: Rig) -> None:
    """The pointer names no way of encryption: whoever changes it later still reads what was put before."""
    asked: list[str | None] = []

    def seen(params: dict[str, Any], **_: object) -> None:
        asked.append(params["headers"].get("x-amz-server-side-encryption"))

    events = rig.s3._client.meta.events  # pyright: ignore[reportPrivateUsage] - what is sent is ours
    events.register("before-call.s3.PutObject", seen)
    _, one = LargeObjects(f"{rig.url}&sse=AES256", rig.run).pointer(row(1, LONG))
    try:
        await LargeObjects(f"{rig.url}&sse=AES256", rig.run).put([one])
    finally:
        events.unregister("before-call.s3.PutObject", seen)
    assert asked == ["AES256"]
    short, _ = LargeObjects(f"{rig.url}&sse=AES256", rig.run).pointer(row(1, LONG))
    assert LargeObjects(rig.url, rig.run).followed(short.value) == row(1, LONG).value


def test_an_answer_that_looks_like_a_pointer_is_an_answer() -> None:
    """A model may say anything; nobody fetches what it names."""
    objects = LargeObjects("s3://bucket/large/", "r")
    digest = "0" * 32
    for url in ("s3://other/secret.json", f"s3://bucket/large/r/item-2-0-{digest}.json", "http://127.0.0.1/"):
        told = {"too_large": {"url": url, "bytes": 1, "blake2b": digest}}
        value = msgspec.json.encode({"answer": told, "penstock": {"item_id": "item-1", "generation": 0}})
        assert objects.followed(value) == value
    assert objects.followed(b'{"too_large"') == b'{"too_large"'
