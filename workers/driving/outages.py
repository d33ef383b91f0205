"""What a run says of targets that don't answer, and when it stops waiting for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from penstock.workers.lanes.report import LaneReport

STUCK_S = 10.0
"""Nothing moves and some item has nowhere to go until a person acts, for so long: the run stops and says why."""
OUTAGE_S = 7_200.0
"""Nothing moves because of an outage, for so long: the run stops, to be run again. Shorter ones it sits out. Above the
hour that an item waits for a daily limit, below the hours after which it gives up (`engine.retry`)."""

Target = tuple[str | None, str]
"""(account, model); `*`: all of the account."""


class Outages:
    """Pure: times are monotonic seconds. An endless run is told why nothing moves, and never ended for it."""

    def __init__(self, now: float, *, endless: bool = False) -> None:
        self._endless = endless
        self._open: dict[int, set[Target]] = {}
        """Lane → who does not answer it. A lane that is opened anew changes that once it knows better."""
        self._answering: dict[int, frozenset[Target]] = {}
        """Lane → who answered it, at the last look."""
        self._away: dict[int, str] = {}
        """Lane → why its input can't be read."""
        self._finished = 0
        self._moved_at = now
        self._stuck_at: float | None = None
        self.standstill: str | None = None
        """Why nothing moves; None: something does, or it is too early to say."""
        self._told: str | None = None

    def news(self, reports: Collection[LaneReport]) -> list[str]:
        """Sentences for the run's notes: who has stopped answering since the last look, and who answers again."""
        open_before, away_before = self._all_open(), bool(self._away)
        for report in reports:
            self._hear(report)
        self._forget_answered(reports)
        now_open, away = self._all_open(), next(iter(self._away.values()), None)
        gone, back = sorted(now_open - open_before, key=str), sorted(open_before - now_open, key=str)
        told, self._told = self._told, self.standstill
        return [
            *([self.standstill] if self._endless and self.standstill not in (None, told) else []),
            *([f"the run waits for its input, and goes on by itself: {away}"] if away and not away_before else []),
            *(["its input is read again"] if away_before and not away else []),
            *(f"{_named(target)} does not answer: its items wait, or go to others" for target in gone),
            *(f"{_named(target)} is asked again" for target in back),
        ]

    def _hear(self, report: LaneReport) -> None:
        known = self._open.get(report.lane, set[Target]()).difference(report.answering)
        self._open[report.lane] = known.union(report.open_breakers)
        if report.input_away is not None:
            self._away[report.lane] = report.input_away
        elif report.input_read:
            self._away.pop(report.lane, None)

    def _forget_answered(self, reports: Collection[LaneReport]) -> None:
        """What answers one lane is well for all but those that say now that it does not answer them: another one that
        was opened anew, and has nothing to send, would never know. What a lane heard long ago says nothing of today: it
        has to begin to hear of it, or to have calls there."""
        well = set[Target]()
        for report in reports:
            well.update(set(report.answering).difference(self._heard_by(report.lane)), _in_use(report))
        down = {report.lane: report.open_breakers for report in reports}
        for lane, known in self._open.items():
            known -= well.difference(down.get(lane, ()))
        self._answering.update((report.lane, frozenset(report.answering)) for report in reports)

    def _heard_by(self, lane: int) -> frozenset[Target]:
        return self._answering.get(lane, frozenset())

    def _all_open(self) -> set[Target]:
        return {target for targets in self._open.values() for target in targets}

    def verdict(self, reports: Iterable[LaneReport], finished: int, flying: bool, now: float) -> str | None:
        """Why the run should stop waiting; None: go on. `finished`: items that have ended; `flying`: calls are out."""
        self.standstill = why = self._why(list(reports), finished, flying, now)
        return None if self._endless else why

    def _why(self, reports: Collection[LaneReport], finished: int, flying: bool, now: float) -> str | None:
        nothing_waits = not any(report.waiting for report in reports)
        if flying or finished != self._finished or nothing_waits:
            self._finished, self._moved_at = finished, now
        stuck = next((report.stuck for report in reports if report.stuck is not None), None)
        if stuck is None:
            self._stuck_at = None
        else:
            self._stuck_at = now if self._stuck_at is None else self._stuck_at
            if now - max(self._stuck_at, self._moved_at) > STUCK_S:
                return f"no model can answer: {stuck}"
        down = {target for report in reports for target in report.open_breakers}
        if down and now - self._moved_at > OUTAGE_S:
            who = ", ".join(_named(target) for target in sorted(down, key=str))
            then = "" if self._endless else "; run it again when it does"
            return f"nothing has moved for {OUTAGE_S / 3600:.0f} hours: {who} does not answer{then}"
        return None


def _in_use(report: LaneReport) -> set[Target]:
    """Of what has answered it, that to which it has calls under way."""
    models = {target for target in report.answering if report.tally.flying.get(target[1])}
    accounts = {(account, "*") for account, _ in models}
    return models | accounts.intersection(report.answering)


def _named(target: Target) -> str:
    account, model = target
    if account is None:
        return f"model {model}"
    return f"account {account}" if model == "*" else f"model {model} (account {account})"
