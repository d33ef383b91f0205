"""What a terminal says to a whole process group, and who shall not hear it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator


@contextlib.contextmanager
def children_deaf_to_hangups() -> Generator[None]:
    """A closed terminal tells a whole process group: the run drains, for which Ray's processes must live. They inherit
    what is blocked here. (Ray does the same for SIGINT.)"""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
