"""Where lanes say what is ready, and workers wait for it: the board, with somebody who wakes those that wait."""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec

from penstock.workers.driving.board import Board
from penstock.workers.ports import Post

ASK_WAIT_S = 1.0

_posts = msgspec.msgpack.Decoder(list[Post])


class Desk:
    def __init__(self) -> None:
        self.board = Board()
        self._work = asyncio.Event()

    def post(self, posts: bytes, owner: int) -> None:
        for post in _posts.decode(posts):
            if self.board.post(post, owner):
                self._work.set()

    async def ask(self, worker: str, pool: str, room: int) -> tuple[int, int, int, int] | None:
        """The board's answer, waiting up to a second for work: (lane, owner, items, tokens)."""
        ends = time.monotonic() + ASK_WAIT_S
        while True:
            grant = self.board.grant(worker, pool, room, time.monotonic())
            if grant is not None:
                return grant.lane, grant.owner, grant.n, grant.max_tokens
            left = ends - time.monotonic()
            if left <= 0:
                return None
            self._work.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._work.wait(), left)
