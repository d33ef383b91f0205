"""A network between a job and its broker that can be cut, held up and slowed down. No bytes are changed.

proxy = TcpProxy(port_of_the_broker); proxy.start()
proxy.pause(); …; proxy.resume()       connections stay open and carry nothing
proxy.cut(); …; proxy.mend()           connections break, and new ones break at once
proxy.delay_s = 0.05                   each chunk of at most 64 kB is that late
proxy.swallowed = {28}                 Kafka requests of these kinds (API keys) never arrive
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

from penstock.jobs.dev.ports import LOOPBACK, free_port

CHUNK_BYTES = 65_536


class TcpProxy:
    """Listens on `port` in a thread of its own. Its controls may be called from any thread."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.delay_s = 0.0
        self.swallowed: set[int] = set()
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
        self.mend()
        self.resume()

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
        ways = [
            asyncio.ensure_future(self._copy_requests(reader, back)),
            asyncio.ensure_future(self._copy(there, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self._writers.discard(back)
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
                if int.from_bytes(request[:2]) not in self.swallowed:
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
