"""Counts of ready work, a pool at a time, and who may take how much from which lane. No item is ever here."""

from __future__ import annotations

from penstock.workers.ports import Grant, Post

MAX_TAKE = 256
"""Items a take: Ray moves 70,000 items/s at this size, 1,800 at one (measured)."""


BULK_TURN = 8
"""One grant in eight looks at no urgency: a steady stream of urgent items must not stop the rest."""


class Board:
    """Pure: the driver awaits around it."""

    def __init__(self) -> None:
        self._posts: dict[str, dict[int, Post]] = {}
        self._owners: dict[int, int] = {}
        self._asking: dict[str, dict[str, float]] = {}
        self._turn = 0
        self._served: dict[tuple[str, int], int] = {}
        """(pool, lane) → the turn in which it was last granted."""

    def own(self, lane: int, owner: int) -> None:
        """The lane has a new owner: what the old one posted is void."""
        self._owners[lane] = owner
        for posts in self._posts.values():
            posts.pop(lane, None)

    def drop(self, lane: int) -> None:
        self._owners.pop(lane, None)
        for posts in self._posts.values():
            posts.pop(lane, None)

    def post(self, post: Post, owner: int) -> bool:
        """True where there is work now."""
        if self._owners.get(post.lane) != owner:
            return False
        self._posts.setdefault(post.pool, {})[post.lane] = post
        return post.ready > 0

    def ready(self, pool: str) -> int:
        return sum(post.ready for post in self._posts.get(pool, {}).values())

    def pools(self) -> list[str]:
        return [pool for pool in self._posts if self.ready(pool)]

    def grant(self, worker: str, pool: str, room: int, now: float) -> Grant | None:
        """min(256, room, ready / (2 × workers)) items, from the lane with the most urgent item, else round about."""
        asking = self._asking.setdefault(pool, {})
        asking[worker] = now
        for other in [name for name, at in asking.items() if now - at > 10.0]:
            del asking[other]
        lanes = [post for post in self._posts.get(pool, {}).values() if post.ready > 0]
        if not lanes:
            return None
        total, tokens = sum(post.ready for post in lanes), sum(post.tokens for post in lanes)
        share = 2 * len(asking)
        post = self._next(pool, lanes)
        n = max(1, min(MAX_TAKE, room, -(-total // share), post.ready))
        self._posts[pool][post.lane] = Post(
            post.lane, pool, post.ready - n, max(0, post.tokens - post.tokens * n // post.ready)
        )
        return Grant(post.lane, self._owners[post.lane], n, max(1, -(-tokens // share)))

    def _next(self, pool: str, lanes: list[Post]) -> Post:
        """Who waits longest: among lanes with the most urgent work, but every eighth turn among all: none starves."""
        self._turn += 1
        if self._turn % BULK_TURN:
            most = max(post.urgency for post in lanes)
            lanes = [post for post in lanes if post.urgency == most]
        post = min(lanes, key=lambda post: self._served.get((pool, post.lane), 0))
        self._served[pool, post.lane] = self._turn
        return post
