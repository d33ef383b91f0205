"""Conditional puts under what goes wrong with them: answers that get lost, and stores that ignore conditions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from botocore.exceptions import ClientError

from penstock.connectors.base import OutRecord
from penstock.connectors.registry import open_stores
from penstock.connectors.s3 import client as s3_client
from penstock.connectors.s3 import fence
from penstock.connectors.s3.errors import translated
from penstock.connectors.s3.fence import Lost
from penstock.connectors.s3.store.place import S3Place
from penstock.connectors.settings import FilesSink, S3Sink
from penstock.connectors.state import ABSENT, Conflict, open_state
from penstock.engine.errors import Away, Fenced, Refused

if TYPE_CHECKING:
    from conftest import S3At

    from penstock.jobs.dev.s3 import S3Server

pytestmark = pytest.mark.s3

Handler = Callable[[web.Request], "asyncio.Future[web.StreamResponse]"]


@contextlib.contextmanager
def serving(app: web.Application) -> Iterator[str]:
    """An HTTP server in a thread, on a free port of this machine."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app)
    ready = threading.Event()
    ports: list[int] = []

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        ready.set()

    def serve() -> None:
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


class LosingProxy:
    """Passes requests on; drops the connection instead of the answer to the next `lose` successful conditional puts."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.lose = 0
        self.lost = 0
        self.app = web.Application(client_max_size=1 << 30)
        self.app.router.add_route("*", "/{rest:.*}", self._pass)

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        url = self.backend + request.raw_path
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, _raw(url), headers=request.headers, data=body) as answer,
        ):
            data = await answer.read()
            conditional = "If-Match" in request.headers or "If-None-Match" in request.headers
            if self.lose and conditional and request.method == "PUT" and answer.status == 200:
                self.lose -= 1
                self.lost += 1
                assert request.transport is not None
                request.transport.abort()
            skip = {"transfer-encoding", "content-length", "connection"}
            headers = {k: v for k, v in answer.headers.items() if k.lower() not in skip}
            if request.method == "HEAD":
                headers["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, body=data, headers=headers)


def _raw(url: str) -> object:
    from yarl import URL

    return URL(url, encoded=True)


class Careless:
    """A store that speaks S3 and ignores `ignores`: one of the headers, or both; where an upload in parts ends, all of
    them, unless `parts`."""

    def __init__(self, *ignores: str, parts: bool = True) -> None:
        self.objects: dict[str, bytes] = {}
        self._ignores = ignores
        self._parts = parts
        self.app = web.Application()
        self.app.router.add_route("*", "/{rest:.*}", self._answer)

    async def _answer(self, request: web.Request) -> web.Response:
        key, body = request.path, await request.read()
        there = self.objects.get(key)
        match request.method:
            case "PUT" if "partNumber" in request.query:
                return web.Response(headers={"ETag": _etag(body)})
            case "POST" if "uploads" in request.query:
                return web.Response(body=b"<Begun><UploadId>u</UploadId></Begun>", content_type="application/xml")
            case "POST" if "uploadId" in request.query:
                if self._parts and not self._allowed(request, there):
                    return web.Response(status=412, body=b"<Error><Code>PreconditionFailed</Code></Error>")
                return web.Response(body=b'<Ended><ETag>"e"</ETag></Ended>', content_type="application/xml")
            case "DELETE":
                return web.Response(status=204)
            case "PUT":
                if not self._allowed(request, there):
                    return web.Response(status=412, body=b"<Error><Code>PreconditionFailed</Code></Error>")
                self.objects[key] = body
                return web.Response(headers={"ETag": _etag(body)})
            case "POST":
                return web.Response(body=b"<DeleteResult/>", content_type="application/xml")
            case _ if there is None:
                return web.Response(status=404, body=b"<Error><Code>NoSuchKey</Code></Error>")
            case _:
                return web.Response(body=there, headers={"ETag": _etag(there)})

    def _allowed(self, request: web.Request, there: bytes | None) -> bool:
        headers = {name: value for name, value in request.headers.items() if name not in self._ignores}
        if headers.get("If-None-Match") == "*" and there is not None:
            return False
        return "If-Match" not in headers or (there is not None and headers["If-Match"] == _etag(there))


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


@pytest.fixture
def proxy(s3_server: S3Server | S3At, s3_keys: None) -> Iterator[tuple[LosingProxy, str]]:
    losing = LosingProxy(s3_server.endpoint)
    with serving(losing.app) as endpoint:
        yield losing, endpoint


async def test_a_put_whose_answer_got_lost_is_known_to_be_ours(
    proxy: tuple[LosingProxy, str], new_bucket: Callable[..., str]
) -> None:
    """The client sends it again and is told 412; reading back tells that it was us. One that was somebody else's is
    `Lost`, with what is there."""
    losing, endpoint = proxy
    s3, bucket = s3_client.client(endpoint, "us-east-1"), new_bucket("lost")
    losing.lose = 1
    first = await asyncio.to_thread(fence.swap, s3, bucket, "k", b"one", None)
    losing.lose = 1
    second = await asyncio.to_thread(fence.swap, s3, bucket, "k", b"two", first)
    assert losing.lost == 2
    assert fence.read(s3, bucket, "k") == s3_client.Got(b"two", second)
    for stale in (first, None):
        with pytest.raises(Lost) as lost:
            await asyncio.to_thread(fence.swap, s3, bucket, "k", b"three", stale)
        assert lost.value.found == s3_client.Got(b"two", second)


async def test_a_run_whose_answers_get_lost_commits_each_record_once(
    proxy: tuple[LosingProxy, str], new_bucket: Callable[..., str]
) -> None:
    """Taking, committing, holding and finishing go on as if nothing had been lost; nobody takes himself for another."""
    losing, endpoint = proxy
    sink = S3Sink(new_bucket("lost"), "out/", endpoint, "us-east-1")
    place = S3Place({"results": sink}, "run")
    losing.lose = 1
    store = place.open()
    losing.lose = 1
    await store.take(0, (1, 1))
    for seq in range(1, 6):
        losing.lose = seq % 3
        await store.commit(0, (1, 1), seq, {"results": [OutRecord(0, seq, b"%d" % seq)]}, {"a": b"%d" % seq})
    losing.lose = 0
    assert losing.lost >= 7
    assert (await store.peek(0)).chunks == {"a": b"5"}
    assert list(place.committed("results")) == [b"%d" % n for n in range(1, 6)]
    other = place.open()
    losing.lose = 1
    await other.take(0, (1, 2), force=True)
    with pytest.raises(Fenced):
        await store.commit(0, (1, 1), 6, {"results": []}, {})
    for each in (store, other):
        await each.release(0)
        await each.beacon.put_out()


def test_a_state_whose_answers_get_lost_counts_each_write_once(
    proxy: tuple[LosingProxy, str], new_bucket: Callable[..., str]
) -> None:
    """A swap that succeeded is no `Conflict`; equal values of two writers are two writes."""
    losing, endpoint = proxy
    state = open_state(f"s3://{new_bucket('state')}/x?endpoint={endpoint}&region=us-east-1")
    losing.lose = 1
    tag = state.put("n", b"1", ABSENT)
    losing.lose = 1
    state.put("n", b"2", tag)
    assert losing.lost >= 2
    with pytest.raises(Conflict):
        state.put("n", b"2", tag)


@pytest.mark.parametrize("ignores", [("If-None-Match",), ("If-Match",), ("If-None-Match", "If-Match")])
def test_a_store_that_ignores_conditions_is_refused_at_start(ignores: tuple[str, ...], s3_keys: None) -> None:
    """As a sink, primary or follower, and as a state with budgets: with what to do. One that keeps them isn't."""
    with serving(Careless(*ignores).app) as endpoint:
        sink = S3Sink("bucket", "out/", endpoint, "us-east-1")
        with pytest.raises(Refused, match="ignores conditional puts"):
            open_stores({"results": sink}, "run")
        with pytest.raises(Refused, match="ignores conditional puts"):
            open_state(f"s3://bucket/state?endpoint={endpoint}&region=us-east-1").put("n", b"", ABSENT)
    with serving(Careless().app) as endpoint:
        open_stores({"results": S3Sink("bucket", "out/", endpoint, "us-east-1")}, "run")


def test_a_single_object_wants_conditions_at_the_end_of_uploads_too(s3_keys: None) -> None:
    """A large one is put in parts, and ends in another request, which a store may take without looking."""
    for parts in (True, False):
        with serving(Careless(parts=parts).app) as endpoint:
            open_stores({"results": S3Sink("bucket", "out/", endpoint, "us-east-1")}, "run")
            one = {"results": S3Sink("bucket", "all.jsonl", endpoint, "us-east-1")}
            if parts:
                open_stores(one, "run")
                continue
            with pytest.raises(Refused, match=r"ignores conditional puts .*upload in parts"):
                open_stores(one, "run")


def test_a_clock_that_is_wrong_is_waited_for() -> None:
    """It jumped, and is set right again: a run of days must not end for it."""
    answer = {"Error": {"Code": "RequestTimeTooSkewed"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    with pytest.raises(Away, match="clock"), translated("write s3://b/k", "AWS"):
        raise ClientError(answer, "PutObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(("off_s", "error"), [(3600, Away), (-3600, Away), (5, Refused), (None, Refused)])
def test_a_wrong_clock_is_seen_where_an_answer_names_no_code(off_s: int | None, error: type[Exception]) -> None:
    """As to a HEAD: it has no body."""
    headers = {} if off_s is None else {"date": formatdate(time.time() + off_s, usegmt=True)}
    answer = {"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPStatusCode": 403, "HTTPHeaders": headers}}
    with pytest.raises(error, match="clock" if error is Away else "403"), translated("look at s3://b/k", "AWS"):
        raise ClientError(answer, "HeadObject")  # type: ignore[arg-type]


def test_an_s3_sink_may_follow_a_folder(tmp_path: object, s3_server: S3Server | S3At, s3_keys: None) -> None:
    """Results in files, costs on S3: two stores, the folder leads."""
    bucket = S3Sink("bucket-costs", "costs/", s3_server.endpoint, "us-east-1")
    s3_server.client().create_bucket(Bucket="bucket-costs")
    stores = open_stores({"results": FilesSink(f"{tmp_path}/r.jsonl"), "costs": bucket}, "run")
    assert stores.placement == {"results": "primary", "costs": f"s3:{s3_server.endpoint}/bucket-costs"}
