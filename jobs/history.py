"""What a state URL remembers of runs: `runs/<run_id>/spec.json`, `status.json`, `cancel`.

History is for people and tools. It never decides whether an item is done: that stands in the results' store alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from penstock.connectors.settings import with_replies
from penstock.connectors.state import ABSENT, State, open_state
from penstock.engine.errors import Corrupt, PenstockError, SpecError
from penstock.workers.driving.asked import change_paused, read_paused
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunState, RunStatus

T = TypeVar("T")

ENDED: frozenset[RunState] = frozenset(
    {"done", "stopped_by_budget", "too_many_dead_letters", "failed", "cancelled", "interrupted", "handed_over"}
)


STALE_AFTER_S = 60.0
"""A run that goes says something every two seconds; a minute of silence means that its command is gone."""
SUBMITTED_S = 600.0
"""A cluster may take so long to start a command, and that one to list its input, before anything is said. A guess."""
GONE = "its command seems to be gone; run the job again and it goes on where it was"


class History:
    """The runs of one state URL. `url` is kept for the sentences that name it."""

    def __init__(self, state: State, url: str) -> None:
        self._state = state
        self.url = url

    def save_spec(self, spec: RunSpec) -> None:
        """A spec holds references to secrets (`env:NAME`), never secrets."""
        self._state.put(_key(spec.run_id, "spec.json"), msgspec.json.encode(spec), None)

    def add_spec(self, spec: RunSpec) -> None:
        """Raises `Conflict` where the run is known already."""
        self._state.put(_key(spec.run_id, "spec.json"), msgspec.json.encode(spec), ABSENT)

    def save_status(self, status: RunStatus) -> None:
        """A command that was taken over, and wakes up, does not write over what its successor says."""
        found = self._state.get(_key(status.run_id, "status.json"))
        there = _decode(found[0], RunStatus, _key(status.run_id, "status.json"), self.url) if found else None
        if there is not None and there.epoch > status.epoch > 0 and there.started_at > status.started_at:
            return
        self._state.put(_key(status.run_id, "status.json"), msgspec.json.encode(status), None)

    def spec(self, run_id: str) -> RunSpec:
        """A spec that was written before results knew the topics for replies means the same as one of today."""
        spec = self._read(run_id, "spec.json", RunSpec)
        return msgspec.structs.replace(spec, sinks=with_replies(spec.source, spec.sinks))

    def status(self, run_id: str) -> RunStatus:
        return self._read(run_id, "status.json", RunStatus)

    def knows(self, run_id: str) -> bool:
        return self._state.get(_key(run_id, "spec.json")) is not None

    def has_told(self, run_id: str) -> bool:
        """How it stands: it was begun, by whatever command."""
        return self._state.get(_key(run_id, "status.json")) is not None

    def runs(self, unread: Callable[[str, PenstockError], None] | None = None) -> list[RunStatus]:
        """All runs, the latest first. One whose status was never written is shown as starting. `unread`: hears of one
        that is written and can't be read, which is left out then; None: it raises."""
        found: list[RunStatus] = []
        for key in self._state.list("runs/"):
            _, run_id, name = ("/" + key).rsplit("/", 2)
            if name != "spec.json":
                continue
            try:
                found.append(self.status_or_starting(run_id))
            except (Corrupt, SpecError) as error:
                if unread is None:
                    raise
                unread(run_id, error)
        return sorted(found, key=lambda status: (-status.started_at, status.run_id))

    def ask_cancel(self, run_id: str, by: str) -> None:
        """The driver looks for this key while it runs; `by` says who asked. An empty value asks nothing."""
        self._state.put(_key(run_id, "cancel"), by.encode() or b"somebody", None)

    def cancel_asked(self, run_id: str) -> bool:
        found = self._state.get(_key(run_id, "cancel"))
        return found is not None and found[0] != b""

    def forget_cancel(self, run_id: str) -> None:
        """A new command for the run takes an old request back; otherwise it would stop at once, for ever."""
        if self.cancel_asked(run_id):
            self._state.put(_key(run_id, "cancel"), b"", None)

    def paused(self, run_id: str) -> tuple[int, ...]:
        """The tiers that are held back, now and after every restart, until they are resumed."""
        return read_paused(self._state, run_id)

    def pause(self, run_id: str, change: Callable[[set[int]], Iterable[int]]) -> tuple[int, ...]:
        """Hold back the tiers that `change` makes of those that are, and no others: the driver looks for it while it
        runs. Returns them."""
        return change_paused(self._state, run_id, change)

    def find(self, wanted: str | None) -> str:
        """A run id, the start of one, or a job's name (its latest run); None: the latest run of all.

        Raises `SpecError` with the nearest names where nothing or too much matches. A run whose whole id was given is
        found whatever can't be read beside it.
        """
        unread = dict[str, PenstockError]()
        runs = self.runs(unread.__setitem__)
        if any(run.run_id == wanted for run in runs):
            return str(wanted)
        for error in unread.values():  # it may be the one that is meant
            raise error
        if not runs:
            raise SpecError(f"no run is known in {self.url}; run a job first, or name another folder with --state")
        if wanted is None:
            return runs[0].run_id
        named = [run.run_id for run in runs if run.name == wanted][:1]
        matches = named or [run.run_id for run in runs if run.run_id.startswith(wanted)]
        match matches:
            case [one]:
                return one
            case []:
                raise SpecError(_unknown(wanted, runs, self.url))
            case _:
                raise SpecError(f"{wanted!r} fits {len(matches)} runs: {', '.join(matches[:4])}; say more of the id")

    def status_or_starting(self, run_id: str) -> RunStatus:
        """A command that died right after it wrote the spec left no status."""
        found = self._state.get(_key(run_id, "status.json"))
        if found is None:
            return RunStatus(run_id=run_id, name=self.spec(run_id).name, state="starting")
        return _decode(found[0], RunStatus, _key(run_id, "status.json"), self.url)

    def _read(self, run_id: str, name: str, kind: type[T]) -> T:
        found = self._state.get(_key(run_id, name))
        if found is None:
            raise SpecError(f"{self.url} has no {name} of run {run_id!r}; `penstock list` shows the runs it knows")
        return _decode(found[0], kind, _key(run_id, name), self.url)


def _decode(raw: bytes, kind: type[T], key: str, url: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise Corrupt(f"{key} in {url} can't be read ({error}); was it written by a newer Penstock?") from error


def _key(run_id: str, name: str) -> str:
    return f"runs/{run_id}/{name}"


def _unknown(wanted: str, runs: list[RunStatus], url: str) -> str:
    names = dict.fromkeys([*(run.run_id for run in runs), *(run.name for run in runs)])
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "`penstock list` shows the runs it knows"
    return f"{url} knows no run {wanted!r}; {hint}"


def is_over(status: RunStatus) -> bool:
    return status.state in ENDED


def goes_on(status: RunStatus) -> bool:
    """By the command that told this, or the one that it handed the run over to."""
    return not is_over(status) or status.state == "handed_over"


def is_silent(status: RunStatus, now: float) -> bool:
    """For longer than whoever is at it would be. `now`: Unix seconds."""
    return now - status.updated_at > (SUBMITTED_S if status.submitted else STALE_AFTER_S)


def is_gone(status: RunStatus, now: float) -> bool:
    """Nobody seems to be at it, though it has more to do: its command was killed, say, or the one that it was handed
    over to. One that never said anything is waited for. `now`: Unix seconds."""
    return goes_on(status) and status.updated_at > 0 and is_silent(status, now)


def left_out(run_id: str, error: PenstockError) -> str:
    """What a person is told of a run that can't be read, and holds up nothing."""
    return f"run {run_id} was left out: {error}"


def open_history(url: str) -> History:
    """The history at a state URL; nothing is made there before something is saved. Raises `SpecError`."""
    return History(open_state(url), url)
