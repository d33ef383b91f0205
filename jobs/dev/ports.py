"""Ports of the loopback interface."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

from penstock.engine.errors import SpecError, Temporary

LOOPBACK = "127.0.0.1"
_FREE_PORTS = range(15_000, 30_000)
"""Below those that Linux gives to outgoing connections (32768 and up): a server that is down for a moment must not
find its port taken by a client's own end, or a client be connected to itself."""


def free_port() -> int:
    """A port that nobody listens on now."""
    for _ in range(100):
        port = random.choice(_FREE_PORTS)
        if is_free(port):
            return port
    raise Temporary(f"no free port found between {_FREE_PORTS.start} and {_FREE_PORTS.stop}")


def is_free(port: int) -> bool:
    """Closed connections that linger don't count, as they don't for the servers."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def need_free(title: str, ports: Sequence[int]) -> None:
    """Raises `SpecError` that names the first port that is taken."""
    for port in ports:
        if not is_free(port):
            raise SpecError(f"{title} can't start: port {port} of {LOOPBACK} is in use by another process. Stop that "
                            "process or choose another port")  # fmt: skip
