"""Running the sandbox: in the foreground, in a thread, or in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any

from penstock.engine.errors import SpecError
from penstock.jobs.sandbox.settings import PORT, Settings

PLAIN = Settings()
Announce = Callable[[str], None]


def serve(
    host: str = "127.0.0.1", port: int = PORT, settings: Settings = PLAIN, announce: Announce | None = None
) -> None:
    """Serve until SIGINT or SIGTERM. `announce` is told the URL once it listens; `port` 0 takes a free one.

    Raises `SpecError` where the address is taken.
    """
    asyncio.run(_until_signal(host, port, settings, announce or (lambda url: None)))


async def _until_signal(host: str, port: int, settings: Settings, announce: Announce) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    await _run(host, port, settings, announce, stop)


async def _run(host: str, port: int, settings: Settings, announce: Announce, stop: asyncio.Event) -> None:
    from aiohttp import web

    from penstock.jobs.sandbox.server import Sandbox

    sandbox = Sandbox(settings)
    runner = web.ServerRunner(web.Server(sandbox.handle, access_log=None), shutdown_timeout=1.0)
    try:
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=4096)
        try:
            await site.start()
        except OSError as error:
            raise SpecError(f"the sandbox can't listen on {host}:{port}: {error.strerror}. Try --port") from error
        announce(f"http://{host}:{runner.addresses[0][1]}")
        await stop.wait()
    finally:
        sandbox.close()
        await runner.cleanup()


@contextlib.contextmanager
def running_sandbox(settings: Settings = PLAIN, *, port: int = 0, process: bool = False) -> Generator[str]:
    """A sandbox while the block runs; yields its URL (without `/v1`). In a thread, or in a process of its own."""
    with (_in_process if process else _in_thread)(settings, port) as url:
        yield url


@contextlib.contextmanager
def _in_thread(settings: Settings, port: int) -> Generator[str]:
    up = threading.Event()
    seen: list[Any] = []

    async def main() -> None:
        stop = asyncio.Event()
        seen.append((asyncio.get_running_loop(), stop))

        def announce(url: str) -> None:
            seen.append(url)
            up.set()

        try:
            await _run("127.0.0.1", port, settings, announce, stop)
        except SpecError as error:
            seen.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="sandbox", daemon=True)
    thread.start()
    up.wait(30)
    (loop, stop), url = seen if len(seen) == 2 else (seen[0], SpecError("the sandbox did not come up"))
    if isinstance(url, SpecError):
        raise url
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@contextlib.contextmanager
def _in_process(settings: Settings, port: int) -> Generator[str]:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(settings, port, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(30):
            raise SpecError(f"the sandbox did not come up on port {port}")
        yield ours.recv()
    except EOFError as error:
        raise SpecError(f"the sandbox did not come up on port {port}") from error
    finally:
        child.terminate()
        child.join(5)
        ours.close()


def _child(settings: Settings, port: int, pipe: Any) -> None:
    serve("127.0.0.1", port, settings, pipe.send)
