"""What there is to label: the review list of a run, or the rows of a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from penstock.connectors.reading.records_from import records_from
from penstock.connectors.registry import open_source
from penstock.connectors.settings import FilesSource
from penstock.engine.errors import SpecError
from penstock.engine.fingerprints import short_hash
from penstock.jobs.people.review import MOST, Asked, as_text

ROWS = (".jsonl", ".ndjson", ".csv", ".parquet")
_REVIEW = {"item_id", "run_id", "why", "answer", "output_hash"}
"""Columns of a review sink's file: as rows of their own its items would be labelled in vain."""


def is_rows(path: str | None) -> bool:
    return path is not None and path.endswith(ROWS) and Path(path).is_file()


def name_of_rows(path: str) -> str:
    return f"rows-{Path(path).name.partition('.')[0]}"


def rows(path: str, choices: tuple[str, ...]) -> tuple[Asked, ...]:
    """The first rows of a file, each known by its content. A column `answer` is shown as one. Raises `SpecError`."""
    return asyncio.run(_rows(path, choices))


async def _rows(path: str, choices: tuple[str, ...]) -> tuple[Asked, ...]:
    found: list[Asked] = []
    async for row in _each(path):
        if len(found) >= MOST:
            break
        key = short_hash(msgspec.json.encode(row, order="deterministic"))
        answer = row.pop("answer", None)
        text = "\n".join(f"{name}: {as_text(value)}" for name, value in row.items())
        found.append(Asked(f"row-{key}", "", (), text, as_text(answer) if answer else "", choices=choices))
    return tuple(found)


async def _each(path: str) -> AsyncIterator[dict[str, Any]]:
    source = open_source(FilesSource(str(Path(path).resolve())))
    async for _, records in records_from(source, await source.splits(1), {}):
        for raw in records:
            if raw.error is not None:
                raise SpecError(f"a row can't be read: {raw.error[1]}", path=path)
            try:
                row = msgspec.json.decode(raw.row_json or raw.data, type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise SpecError(f"a row is no JSON object: {error}", path=path) from error
            if row.keys() >= _REVIEW:
                run = row["run_id"]
                raise SpecError(f"this holds items of the run {run}: `penstock label {run}` shows them", path=path)
            yield row
