"""A network between a job and its broker (or S3) that can be cut, held up and slowed down. No bytes are changed.

proxy = TcpProxy(port_of_the_broker); proxy.start()       `plain=True`: what passes is no Kafka
proxy.pause(); …; proxy.resume()       connections stay open and carry nothing
proxy.cut(); …; proxy.mend()           connections break, and new ones break at once
proxy.delay_s = 0.05                   each chunk of at most 64 kB is that late
proxy.swallowed = {28}                 Kafka requests of these kinds (API keys) never arrive
proxy.hold_back({0}); proxy.deliver()  they arrive late: those of connections that are open now, whatever became of them
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

from penstock.jobs.dev.ports import LOOPBACK, free_port

CHUNK_BYTES = 65_536


class TcpProxy:
    """Listens on `port` in a thread of its own. Its controls may be called from any thread."""

    def __init__(self, target_port: int, *, plain: bool = False) -> None:
        self.port = free_port()
        self._plain = plain
        self.delay_s = 0.0
        self.swallowed: set[int] = set()
        self._held_kinds: set[int] = set()
        self._held: dict[asyncio.StreamReader, list[bytes]] = {}
        """Requests that are on their way, of each connection that was open when they were first held back."""
        self._readers: set[asyncio.StreamReader] = set()
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._whole = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name="tcp proxy", daemon=True)
        self._listening = threading.Event()

    def start(self) -> None:
        self._thread.start()
        assert self._listening.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def pause(self) -> None:
        self._loop.call_soon_threadsafe(self._open.clear)

    def resume(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self._break)

    def mend(self) -> None:
        self._whole = True

    def heal(self) -> None:
        """Everything as it was at the start."""
        self.delay_s = 0.0
        self.swallowed = set()
        self._held_kinds, self._held = set(), {}
        self.mend()
        self.resume()

    def hold_back(self, kinds: set[int]) -> None:
        """From now on, where a connection is open already; on new ones all goes through."""
        self._held_kinds, self._held = kinds, {reader: [] for reader in self._readers}

    def deliver(self) -> int:
        """What was held back reaches the broker now, and was handled when this returns. How many requests it was."""
        held, self._held = [requests for requests in self._held.values() if requests], {}
        for requests in held:
            asyncio.run_coroutine_threadsafe(self._send_late(requests), self._loop).result(30)
        return sum(map(len, held))

    async def _send_late(self, requests: list[bytes]) -> None:
        """A broker answers one connection's requests in order, each with a size in front."""
        reader, writer = await asyncio.open_connection(LOOPBACK, self._target_port)
        for request in requests:
            writer.write(request)
            await writer.drain()
            await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
        writer.close()

    def _break(self) -> None:
        self._whole = False
        for writer in self._writers:
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._open.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, LOOPBACK, self.port))
        self._listening.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._whole:
                await self._carry(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(LOOPBACK, self._target_port)
        except OSError:
            return  # the broker is down: so is the connection
        self._writers.add(back)
        self._readers.add(reader)
        ways = [
            asyncio.ensure_future((self._copy if self._plain else self._copy_requests)(reader, back)),
            asyncio.ensure_future(self._copy(there, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self._writers.discard(back)
            self._readers.discard(reader)
            back.transport.abort()

    async def _copy_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As `_copy`, frame by frame: a size of four bytes, then the request, which begins with its kind."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                size = await reader.readexactly(4)
                request = await reader.readexactly(int.from_bytes(size))
                await self._open.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                kind = int.from_bytes(request[:2])
                if kind in self._held_kinds and reader in self._held:
                    self._held[reader].append(size + request)
                elif kind not in self.swallowed:
                    writer.write(size + request)
                    await writer.drain()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._open.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(chunk)
                await writer.drain()
