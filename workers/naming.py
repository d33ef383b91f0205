"""Models that answer under another name than they are asked for by, and fingerprints that change: told once each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from penstock.engine.catalog import Catalog, Version
from penstock.engine.flow.tally import OTHERS, ModelTally, Tally
from penstock.engine.naming import named

Facts = dict[str, object]


class Naming:
    """`note`: tells people."""

    def __init__(self, catalog: Catalog, note: Callable[[str], None]) -> None:
        self._versions = {(m.name, v.id): v for m in catalog.models.values() for v in m.versions}
        self._note = note
        self._told: set[tuple[str, str, str, str]] = set()
        self._first: dict[tuple[str, str], str] = {}
        """(model, version) → the fingerprint that was there first."""

    def news(self, tally: Tally) -> list[Facts]:
        """What was not told before, for the audit log."""
        found: list[Facts] = []
        for row in tally.models.values():
            version = self._versions.get((row.model, row.version))
            if version is not None and (row.answered_as or row.fingerprints):
                found += [*self._names(row, version), *self._prints(row)]
        return found

    def _names(self, row: ModelTally, version: Version) -> Iterator[Facts]:
        for name in row.answered_as:
            if name == OTHERS or not self._is_new(row, "name", name):
                continue
            what, asked = named(version.model, name), f"{row.model}@{row.version} is asked for as {version.model!r}"
            if what == "alias":
                self._note(
                    f"{asked}, which answers as {name!r}: an alias may mean another model any day, so pin that name"
                )
            else:
                refused = (
                    "refused" if version.on_other_model == "refuse" else "taken (on_other_model: refuse would not)"
                )
                self._note(f"{asked}, and ANOTHER MODEL ANSWERS: {name!r}; its answers are {refused}")
            yield {"model": row.model, "version": row.version, "pinned": version.model, "answered": name, "what": what}

    def _prints(self, row: ModelTally) -> Iterator[Facts]:
        for name in row.fingerprints:
            first = self._first.setdefault((row.model, row.version), name)
            if name in (first, OTHERS) or not self._is_new(row, "fingerprint", name):
                continue
            target = f"{row.model}@{row.version}"
            self._note(
                f"{target}: the provider's fingerprint was {first!r} and is {name!r} now; it may answer otherwise"
            )
            yield {"model": row.model, "version": row.version, "what": "fingerprint", "before": first, "after": name}

    def _is_new(self, row: ModelTally, kind: str, name: str) -> bool:
        key = row.model, row.version, kind, name
        is_new = key not in self._told
        self._told.add(key)
        return is_new
