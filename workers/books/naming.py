"""Models that answer under another name than they are asked for by, and fingerprints that change: told once each.

What was met is remembered at the state (`connectors.fingerprints`), so that the next command compares with it. An alias
is told once a state, and where it comes to mean another model; a model that was not asked for with every command.
Only what answers this command is compared and remembered: its run's counters hold what earlier commands met as well,
and other runs may have met another one since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from penstock.connectors.fingerprints import Met
from penstock.engine.catalog import Catalog, Model, Version
from penstock.engine.flow.tally import OTHERS, UNSAID, ModelTally, Tally
from penstock.engine.naming import named

Facts = dict[str, object]


class Naming:
    """`note`: tells people."""

    def __init__(self, catalog: Catalog, run_id: str, note: Callable[[str], None]) -> None:
        self._versions = {(m.name, v.id): (m, v) for m in catalog.models.values() for v in m.versions}
        self._run_id = run_id
        self._note = note
        self._told: set[tuple[str, str, str, str]] = set()
        self.known: dict[str, Met] = {}
        """`model@version` → what earlier commands met, and this one has remembered."""

    def news(self, tally: Tally) -> list[Facts]:
        """What was not told before, for the audit log."""
        found: list[Facts] = []
        for row, model, version in self._rows(tally):
            found += self._names(row, version)
            found += self._unpinned(row, model, version) if version.fingerprint is None else self._pinned(row, version)
        return found

    def met(self, tally: Tally, now: float) -> dict[str, Met]:
        """What is to be remembered."""
        found: dict[str, Met] = {}
        for row, _, version in self._rows(tally):
            before, prints = self._before(row, version), _prints(row)
            names = tuple(name for name in _names_now(row) if named(version.model, name) == "alias")
            if not (set(prints) <= set(before.fingerprints) and set(names) <= set(before.names)):
                prints, names = prints or before.fingerprints, names or before.names
                found[_target(row)] = Met(version.model, prints, self._run_id, now, names)
        return found

    def _rows(self, tally: Tally) -> Iterator[tuple[ModelTally, Model, Version]]:
        for row in tally.models.values():
            pair = self._versions.get((row.model, row.version))
            if pair is not None and (row.answered_as or row.fingerprints):
                yield row, *pair

    def _before(self, row: ModelTally, version: Version) -> Met:
        known = self.known.get(_target(row))
        return (
            known if known is not None and known.model == version.model else Met(version.model, (), self._run_id, 0.0)
        )

    def _names(self, row: ModelTally, version: Version) -> Iterator[Facts]:
        before = self._before(row, version)
        for name in _names_now(row):
            if name in before.names or not self._is_new(row, "name", name):
                continue
            what, asked = named(version.model, name), f"{_target(row)} is asked for as {version.model!r}"
            facts: Facts = {"pinned": version.model, "answered": name, "what": what}
            if what == "alias" and before.names:
                facts["before"] = before.names[-1]
                self._note(
                    f"{asked}: THE ALIAS MEANS ANOTHER MODEL NOW: {before.names[-1]!r} answered run {before.run}, and "
                    f"{name!r} answers now; pin one of these names"
                )
            elif what == "alias":
                self._note(
                    f"{asked}, which answers as {name!r}: an alias may mean another model any day, so pin that name"
                )
            else:
                self._note(f"{asked}, and ANOTHER MODEL ANSWERS: {name!r}; its answers are {_treated(version)}")
            yield {"model": row.model, "version": row.version, **facts}

    def _pinned(self, row: ModelTally, version: Version) -> Iterator[Facts]:
        for name in _now(row.fingerprints, row.fingerprints_before):
            if name in (version.fingerprint, OTHERS) or not self._is_new(row, "fingerprint", name):
                continue
            said = "NONE IS TOLD" if name == UNSAID else f"ANOTHER ONE ANSWERS: {name!r}"
            self._note(
                f"{_target(row)} is pinned to the fingerprint {version.fingerprint!r}, and {said}; these answers are "
                f"{_treated(version)}"
            )
            facts: Facts = {"pinned": version.fingerprint, "answered": name, "what": "fingerprint"}
            yield {"model": row.model, "version": row.version, **facts}

    def _unpinned(self, row: ModelTally, model: Model, version: Version) -> Iterator[Facts]:
        remembered = self._before(row, version)
        known, run = remembered.fingerprints or _prints(row)[:1], remembered.run
        for name in _prints(row):
            if name in known or not self._is_new(row, "fingerprint", name):
                continue
            before = known[-1]
            if model.self_hosted:
                told = (
                    f"OTHER WEIGHTS WERE LOADED: commit {before} answered run {run}, and {name} answers now. What is "
                    "measured of both counts as one version: pin `revision:`, and give each its own id"
                )
            else:
                told = (
                    f"the provider's fingerprint was {before!r} and is {name!r} now; it may answer otherwise (the "
                    f"former one answered run {run})"
                )
            self._note(f"{_target(row)}: {told}")
            yield {"model": row.model, "version": row.version, "what": "fingerprint", "before": before, "after": name}

    def _is_new(self, row: ModelTally, kind: str, name: str) -> bool:
        key = row.model, row.version, kind, name
        is_new = key not in self._told
        self._told.add(key)
        return is_new


def _target(row: ModelTally) -> str:
    return f"{row.model}@{row.version}"


def _now(counts: dict[str, int], before: dict[str, int]) -> tuple[str, ...]:
    """Who answered this command."""
    return tuple(name for name, n in counts.items() if n > before.get(name, 0))


def _names_now(row: ModelTally) -> tuple[str, ...]:
    return tuple(name for name in _now(row.answered_as, row.answered_before) if name != OTHERS)


def _prints(row: ModelTally) -> tuple[str, ...]:
    return tuple(n for n in _now(row.fingerprints, row.fingerprints_before) if n not in (OTHERS, UNSAID))


def _treated(version: Version) -> str:
    return "refused" if version.on_other_model == "refuse" else "taken (on_other_model: refuse would not)"
