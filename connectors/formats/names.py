"""What a file holds: format and compression from its name; `.jsonl` is looked into."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import PurePath
from typing import BinaryIO

import msgspec

from penstock.connectors.formats.compression import SUFFIXES, Broken, blocks
from penstock.connectors.formats.lines import BOM

LOOK_BYTES = 256 * 1024
"""How much of a `.jsonl` file is looked into: any first line worth reading fits."""

_KINDS: dict[str, str] = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


def compression_of(path: str) -> str | None:
    return SUFFIXES.get(PurePath(path).suffix.lower())


def kind_of(path: str) -> str | None:
    """`json`, `csv` or `parquet` by the name's ending, compression's ending apart; None: the name says nothing."""
    name = PurePath(path.lower())
    return _KINDS.get(PurePath(name.stem).suffix if name.suffix in SUFFIXES else name.suffix)


def delimiter_of(path: str) -> str:
    return "\t" if ".tsv" in PurePath(path.lower()).suffixes else ","


def look(file: BinaryIO, compression: str | None) -> str | None:
    """`openai-batch` or `jsonl`, by the first line that is a JSON object; a line that isn't decides nothing. None: the
    file is blank."""
    head = _head(file, compression).removeprefix(BOM)
    if not head or head.isspace():
        return None
    for line in head.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            return "openai-batch" if _is_request(fields) else "jsonl"
        if len(line) > LOOK_BYTES // 2 and b'"custom_id"' in line and b'"body"' in line:
            return "openai-batch"
    return "jsonl"


def _is_request(fields: Mapping[str, msgspec.Raw]) -> bool:
    """`custom_id` and `body`. A request whose `custom_id` was forgotten is known by its `url` and an object as body:
    crawled pages have a `url` too, and text as `body`."""
    body = bytes(fields.get("body", b""))
    return bool(body) and ("custom_id" in fields or ("url" in fields and body.startswith(b"{")))


def _head(file: BinaryIO, compression: str | None) -> bytes:
    head = b""
    with contextlib.suppress(Broken):
        for block in blocks(file, compression):
            head += block
            if len(head) >= LOOK_BYTES:
                break
    return head
