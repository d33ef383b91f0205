"""Which lane moves, from which lane actor to which: away from one that is slow, and to one that has room.

An actor says itself how much of its time it did not run: a process that is stopped, starved or blocked can't hide that,
however its answers are delivered. Slow is only who runs far less than another: on a machine that is busy as a whole
all run late alike, and a move would help nobody.

Pure: `tick` is seconds of a clock that only grows, `at_s` such seconds of the actor's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping

import msgspec

WINDOW_S = 10.0
"""Over so long an actor's share is reckoned."""
SLOW_RUNS = 0.5
"""Who runs more of the time is never slow. A guess."""
TIMES = 3.0
"""Slow is who runs less than a third of what another does. A guess: far more than a busy machine makes of equals."""
WELL_RUNS, WELL_TIMES = 0.6, 2.0
"""For one that was slow: who stands at the edge must not pass it again and again."""
SLOW_S = 10.0
"""It was so for this long, beside the window: one long pause (a checkpoint, a full disk) moves nothing."""
WELL_S = 60.0
"""A slow one gets lanes again when it was well for so long; twice that each time that it was found slow again."""
WELL_MAX_S = 3_600.0
FRESH_S = 3.0
"""An actor tells its pace every second. Who was not heard for so long gets no lane."""
PAUSE_S = 2.0
"""Between two moves: what the last one brought shows, and what waits for it goes first."""
STAYS_S = 30.0
"""A lane that has moved stays for so long."""
NEVER = float("-inf")


class Move(msgspec.Struct, frozen=True):
    lane: int
    source: int
    target: int
    why: str


class _Pace:
    def __init__(self) -> None:
        self.heard_at = 0.0
        self.slow = False
        self.times = 0
        """That it was found slow."""
        self.since: float | None = None
        """Since when it has been otherwise than `slow` says, without a break."""
        self._told: deque[tuple[float, float]] = deque()

    def heard(self, at_s: float, lost_s: float, tick: float) -> None:
        told = self._told
        if told and at_s < told[-1][0]:  # another process has its number now
            told.clear()
            self.slow, self.times, self.since = False, 0, None
        told.append((at_s, lost_s))
        while len(told) > 2 and told[-1][0] - told[1][0] >= WINDOW_S:
            told.popleft()
        self.heard_at = tick

    @property
    def runs(self) -> float | None:
        """The share of its time in which it runs; None: not known yet."""
        if not self._told:
            return None
        (first, before), (last, lost) = self._told[0], self._told[-1]
        return max(0.0, 1.0 - (lost - before) / (last - first)) if last - first >= WINDOW_S else None


class Balance:
    """One move at a time: after each that `next` brings, `moved` has to be told."""

    def __init__(self) -> None:
        self._paces: dict[int, _Pace] = {}
        self._moving = False
        self._moved_at = NEVER
        self._came: dict[int, float] = {}
        """Lane → when it moved."""

    def heard(self, actor: int, at_s: float, lost_s: float, tick: float) -> None:
        """Of its `at_s` seconds so far the actor did not run in `lost_s`."""
        self._paces.setdefault(actor, _Pace()).heard(at_s, lost_s, tick)

    def runs(self, actor: int) -> float | None:
        """The share of its time in which it runs; None: not known yet."""
        return pace.runs if (pace := self._paces.get(actor)) is not None else None

    def moved(self, tick: float) -> None:
        """The last move is over, however it ended."""
        self._moving, self._moved_at = False, tick

    def next(self, held: Mapping[int, Collection[int]], tick: float, ended: Collection[int] = ()) -> Move | None:
        """`held`: actor → its lanes. `ended`: those without work, which stay where they are and make no room: what is
        left of a run that ends is not worth a move."""
        known = {actor: runs for actor in held if (runs := self.runs(actor)) is not None}
        for actor, runs in known.items():
            self._judge(self._paces[actor], runs, max(known.values()), tick)
        if self._moving or len(known) < 2 or tick - self._moved_at < PAUSE_S:
            return None
        free = {
            lane
            for lanes in held.values()
            for lane in lanes
            if lane not in ended and tick - self._came.get(lane, NEVER) >= STAYS_S
        }
        move = self._away(held, free, known, tick) or self._spread(held, free, known, tick)
        if move is not None:
            self._moving, self._came[move.lane] = True, tick
        return move

    def _judge(self, pace: _Pace, runs: float, best: float, tick: float) -> None:
        most, times = (WELL_RUNS, WELL_TIMES) if pace.slow else (SLOW_RUNS, TIMES)
        slow = runs <= most and runs * times < best
        if slow == pace.slow:
            pace.since = None
            return
        pace.since = tick if pace.since is None else pace.since
        if tick - pace.since >= (SLOW_S if slow else min(WELL_MAX_S, WELL_S * 2 ** (pace.times - 1))):
            pace.slow, pace.since = slow, None
            pace.times += slow

    def _away(
        self, held: Mapping[int, Collection[int]], free: Collection[int], known: Mapping[int, float], tick: float
    ) -> Move | None:
        """From who is slow, and is it still, slowest first."""
        slow = [actor for actor in known if self._paces[actor].slow and self._paces[actor].since is None]
        for source in sorted(slow, key=lambda actor: known[actor]):
            targets = [one for one in self._fit(known, tick) if known[source] * TIMES <= known[one]]
            lanes = [lane for lane in held[source] if lane in free]
            if targets and lanes:
                target = min(targets, key=lambda actor: (len(held[actor]), -known[actor]))
                return Move(min(lanes), source, target, f"lane actor {source} is slow")
        return None

    def _spread(
        self, held: Mapping[int, Collection[int]], free: Collection[int], known: Mapping[int, float], tick: float
    ) -> Move | None:
        """To who has two fewer than another, among those that are well."""
        fit = self._fit(known, tick)
        if not fit:
            return None
        target = min(fit, key=lambda actor: (len(held[actor]), -known[actor]))
        for source in sorted(fit, key=lambda actor: -len(held[actor])):
            lanes = [lane for lane in held[source] if lane in free]
            if lanes and len(held[source]) - len(held[target]) >= 2:
                return Move(min(lanes), source, target, f"lane actor {target} has room")
        return None

    def _fit(self, known: Mapping[int, float], tick: float) -> list[int]:
        """Who may get a lane: well, not about to be found slow, and heard of just now."""
        paces = self._paces
        return [
            actor
            for actor in known
            if not paces[actor].slow and paces[actor].since is None and tick - paces[actor].heard_at <= FRESH_S
        ]
