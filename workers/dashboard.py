"""The dashboard of a local Ray, started behind the first call.

Ray waits for it before anything can be sent, and its six processes want two seconds of two cores. Private names of
Ray's: where they are gone, it starts when Ray does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator

from penstock.workers.signals import children_deaf_to_hangups

LATEST_S = 10.0
"""It starts then, though nothing was sent yet: a model loads, or nothing comes in. A guess."""
AFTER_S = 2.0
"""Behind the first call. A command that is over by then needs none."""
STARTS_S = 30.0
"""Ray gives it about so long to come up."""


class LateDashboard:
    """Of one Ray."""

    def __init__(self) -> None:
        self._start: Callable[[], str | None] | None = None
        self._due = threading.Event()
        self._settled = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._url: str | None = None
        self._ending = threading.Event()

    @contextlib.contextmanager
    def put_off(self) -> Generator[None]:
        """Around `ray.init`: Ray's own start of it only says how. From then on `due` is waited for."""
        from ray._private.node import Node

        method = getattr(Node, "start_api_server", None)
        if method is None:
            yield
            return

        def later(node: object, **how: object) -> None:
            def start() -> str | None:
                method(node, **how)
                return getattr(node, "webui_url", None)

            self._start = start

        Node.start_api_server = later  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            Node.start_api_server = method
        if self._start is not None:
            self._thread = threading.Thread(
                target=self._run, args=(self._start,), name="penstock-dashboard", daemon=True
            )
            self._thread.start()

    def due(self) -> None:
        """The first call is out. May be told again and again."""
        self._due.set()

    def url(self) -> str | None:
        """Where it listens; waits until it does. None: it never came up."""
        self._due.set()
        self._settled.wait(STARTS_S)
        return self._url

    @contextlib.contextmanager
    def closing(self) -> Generator[None]:
        """Around Ray's end: nothing is started from now on, and what is starting has started."""
        self._ending.set()
        self._due.set()
        if self._thread is not None:
            self._settled.wait(STARTS_S)
        try:
            yield
        finally:
            self._over.set()

    def _run(self, start: Callable[[], str | None]) -> None:
        self._due.wait(LATEST_S)
        with children_deaf_to_hangups(), contextlib.suppress(Exception):  # nobody's run ends for want of it
            if not self._ending.wait(AFTER_S):
                self._url = start()
        self._settled.set()
        self._over.wait()  # Linux ends a process that Ray has started with the very thread that started it
