"""An S3 endpoint that fails as real ones do: in front of a real server, by seed, some requests go wrong.

slow_down   503 SlowDown; the server never saw the request
silent      no answer, and the connection breaks after a while; the server never saw the request
half        the server got half of the body, then the connection broke
lost        the server did all of it, and the answer got lost (a conditional put that succeeded, for one)
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from typing import Literal

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from penstock.jobs.dev.ports import LOOPBACK, free_port

Fault = Literal["slow_down", "silent", "half", "lost"]
SILENT_S = 1.0
_SLOW_DOWN = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>slow down</Message></Error>'
_CONDITIONS = ("If-Match", "If-None-Match")
_HOP = {"Connection", "Keep-Alive", "Transfer-Encoding", "Expect", "Content-Length"}
_BODY_BYTES = 256 << 20


class Shares(msgspec.Struct, frozen=True):
    """Of all requests (0…1). `conditional_lost`: of the puts with a condition."""

    slow_down: float = 0.0
    silent: float = 0.0
    half: float = 0.0
    lost: float = 0.0
    conditional_lost: float = 0.0


class S3Proxy:
    """Listens on `port` in a thread of its own. `harm` and `heal` may come at any time; `seen` counts the faults."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.shares = Shares()
        self.seen: Counter[str] = Counter()
        self._target = f"{LOOPBACK}:{target_port}"
        self._chance = random.Random(0)
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._listening.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def harm(self, shares: Shares, seed: int) -> None:
        self._chance = random.Random(seed)
        self.shares = shares

    def heal(self) -> None:
        self.shares = Shares()

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(auto_decompress=False, connector=connector) as self._session:
            runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, LOOPBACK, self.port).start()
            self._listening.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        request._client_max_size = _BODY_BYTES  # pyright: ignore[reportPrivateUsage] the default is 1 MB
        if request.headers.get("Expect") == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # else each put waits a second for it
        body = await request.read()
        fault = self._draw(request)
        if fault is not None:
            self.seen[fault] += 1
        match fault:
            case "slow_down":
                return web.Response(status=503, body=_SLOW_DOWN, content_type="application/xml")
            case "silent":
                await asyncio.sleep(SILENT_S)
                return self._gone(request)
            case "half":
                await self._half(request, body)
                return self._gone(request)
            case "lost":
                await self._forward(request, body)
                return self._gone(request)
            case None:
                answer = await self._forward(request, body)
                return answer if answer is not None else self._gone(request)

    def _draw(self, request: web.BaseRequest) -> Fault | None:
        """Half a body needs a body."""
        shares, draw = self.shares, self._chance.random()
        if any(name in request.headers for name in _CONDITIONS) and self._chance.random() < shares.conditional_lost:
            return "lost"
        names: tuple[Fault, ...] = ("slow_down", "silent", "half", "lost")
        for name in names:
            share = getattr(shares, name)
            if draw < share:
                return name if name != "half" or request.method in ("PUT", "POST") else "slow_down"
            draw -= share
        return None

    async def _forward(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse | None:
        """The server's answer; None where it can't be reached."""
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        url = URL(f"http://{self._target}{request.raw_path}", encoded=True)
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with self._session.request(
                request.method, url, headers=headers, data=body or None, allow_redirects=False,
                skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
            ) as answer:  # fmt: skip
                return await self._passed_on(request, answer)
        return None

    async def _passed_on(self, request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        content = await answer.read()
        headers = {name: value for name, value in answer.headers.items() if name not in _HOP}
        if request.method == "HEAD":  # its length is that of the object, and there is no body
            headers["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, headers=headers)
        return web.Response(status=answer.status, headers=headers, body=content)

    async def _half(self, request: web.BaseRequest, body: bytes) -> None:
        host, _, port = self._target.partition(":")
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"{request.method} {request.raw_path} HTTP/1.1\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items() if name != "Expect")
            writer.write(head.encode() + b"\r\n" + body[: len(body) // 2])
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.transport.abort()

    def _gone(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)
