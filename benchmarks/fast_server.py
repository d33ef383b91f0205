"""A local chat-completions server that is never the bottleneck: one asyncio protocol, one canned answer, a fixed delay.

    python benchmarks/fast_server.py --port 8099 --delay-ms 200

Keep-alive and pipelining work; request bodies are skipped, not read. `GET /stats` tells how many were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import re
import socket
from collections.abc import Iterator

ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":0,"model":"fast","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"billing"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":20,"completion_tokens":2,"total_tokens":22}}'
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
RESPONSE = HEAD % len(ANSWER) + ANSWER

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_END = b"\r\n\r\n"


class Server:
    """Settings and the count that all connections share."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.served = 0


class Connection(asyncio.Protocol):
    """Parses no more of a request than where it ends. Answers leave in the order of the requests: the delay is the
    same for all."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.pending = b""
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        data = self.pending + data if self.pending else data
        start, ready, stats = 0, 0, False
        while (end := data.find(_END, start)) >= 0:
            found = _LENGTH.search(data, start, end)
            after = end + 4 + (int(found.group(1)) if found else 0)
            if after > len(data):
                break
            stats = data.startswith(b"GET /stats", start)
            ready += not stats
            start = after
        self.pending = data[start:]
        self.server.served += ready
        if ready and self.server.delay_s:
            self.loop.call_later(self.server.delay_s, self.answer, ready)
        elif ready:
            self.answer(ready)
        if stats and self.transport is not None:
            body = b'{"served":%d}' % self.server.served
            self.transport.write(HEAD % len(body) + body)

    def answer(self, n: int) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(RESPONSE * n)


async def serve(host: str, port: int, delay_s: float) -> None:
    """Serve until cancelled."""
    state = Server(delay_s)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(state), host, port, backlog=4096)
    async with server:
        await server.serve_forever()


def _main(host: str, port: int, delay_s: float) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(host, port, delay_s))


@contextlib.contextmanager
def running(delay_s: float = 0.0, host: str = "127.0.0.1") -> Iterator[str]:
    """The server in a process of its own; yields its base URL (with `/v1`)."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=_main, args=(host, port, delay_s), daemon=True)
    process.start()
    try:
        _wait(host, port)
        yield f"http://{host}:{port}/v1"
    finally:
        process.terminate()
        process.join(5)


def _wait(host: str, port: int) -> None:
    import time

    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the server did not come up on {host}:{port}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    options = parser.parse_args()
    _main(options.host, options.port, options.delay_ms / 1000.0)
