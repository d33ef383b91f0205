"""Models that answer under another name than they are asked for by, and fingerprints that change: told once each.

What was met is remembered at the state (`connectors.fingerprints`), so that the next command compares with it.
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
            prints = _prints(row)
            if not set(prints) <= set(self._before(row, version)):
                found[_target(row)] = Met(version.model, prints, self._run_id, now)
        return found

    def _rows(self, tally: Tally) -> Iterator[tuple[ModelTally, Model, Version]]:
        for row in tally.models.values():
            pair = self._versions.get((row.model, row.version))
            if pair is not None and (row.answered_as or row.fingerprints):
                yield row, *pair

    def _before(self, row: ModelTally, version: Version) -> tuple[str, ...]:
        known = self.known.get(_target(row))
        return known.fingerprints if known is not None and known.model == version.model else ()

    def _names(self, row: ModelTally, version: Version) -> Iterator[Facts]:
        for name in row.answered_as:
            if name == OTHERS or not self._is_new(row, "name", name):
                continue
            what, asked = named(version.model, name), f"{_target(row)} is asked for as {version.model!r}"
            if what == "alias":
                self._note(
                    f"{asked}, which answers as {name!r}: an alias may mean another model any day, so pin that name"
                )
            else:
                self._note(f"{asked}, and ANOTHER MODEL ANSWERS: {name!r}; its answers are {_treated(version)}")
            yield {"model": row.model, "version": row.version, "pinned": version.model, "answered": name, "what": what}

    def _pinned(self, row: ModelTally, version: Version) -> Iterator[Facts]:
        for name in row.fingerprints:
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
        run = self.known[_target(row)].run if remembered else self._run_id
        known = remembered or _prints(row)[:1]
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


def _prints(row: ModelTally) -> tuple[str, ...]:
    return tuple(name for name in row.fingerprints if name not in (OTHERS, UNSAID))


def _treated(version: Version) -> str:
    return "refused" if version.on_other_model == "refuse" else "taken (on_other_model: refuse would not)"
