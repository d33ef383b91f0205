"""Scores in the order they came, in few windows: old ones must not hide that a model has become worse.

All jobs add to the newest window of a (task, model version, prompt, scorer); one that is full is followed by a new one.
Where there are too many, neighbours are joined, the old ones first, so that windows grow with their age: a change is
seen to within a small share of what came after it, and nothing is forgotten.
"""

from __future__ import annotations

import msgspec

from penstock.engine.flow.cells import Scored, add_scores, hundredths

FULL = 50
"""Scores after which a new window begins. A guess: a change is placed to within so many."""
MOST = 24


class Window(msgspec.Struct):
    at: float
    """When its first score was added, Unix seconds."""
    scores: Scored


def grow(windows: list[Window], more: Scored, now: float) -> None:
    """Add scores that are new; those that are taken back (a count below 0) leave the newest windows first."""
    new = Scored(0, {step: n for step, n in more.counts.items() if n > 0}, more.coarse)
    if new.counts:
        if not windows or windows[-1].scores.n >= FULL:
            windows.append(Window(now, Scored()))
        add_scores(windows[-1].scores, new)
    for step, n in more.counts.items():
        if n < 0:
            _take_back(windows, step, -n, coarse=more.coarse)
    windows[:] = [window for window in windows if window.scores.counts]
    while len(windows) > MOST:
        _join(windows)


def _take_back(windows: list[Window], step: int, n: int, *, coarse: bool) -> None:
    """`coarse`: the step is a hundredth."""
    for window in reversed(windows):
        counts = window.scores.counts
        for at in _alike(window.scores, step, coarse=coarse):
            taken = min(n, counts[at])
            counts[at] -= taken
            if not counts[at]:
                del counts[at]
            n -= taken


def _alike(scores: Scored, step: int, *, coarse: bool) -> list[int]:
    """Where one side is in hundredths, the steps that are the same in hundredths."""
    if coarse or scores.coarse:
        return [at for at in scores.counts if hundredths(at) == hundredths(step)]
    return [step] if step in scores.counts else []


def _join(windows: list[Window]) -> None:
    """The two neighbours that are the smallest for their age."""
    newer, best, least = 0, 0, float("inf")
    for i in range(len(windows) - 2, -1, -1):
        weight = (windows[i].scores.n + windows[i + 1].scores.n) / (newer + FULL)
        if weight < least:
            best, least = i, weight
        newer += windows[i + 1].scores.n
    add_scores(windows[best].scores, windows[best + 1].scores)
    del windows[best + 1]
