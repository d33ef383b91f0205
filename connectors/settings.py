"""Settings of sources and sinks, as the job file says them (paths already absolute)."""

from __future__ import annotations

from typing import Literal

import msgspec

Format = Literal["openai-batch", "jsonl", "csv", "parquet"]


class FilesSource(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="files"):
    """`path`: a file, a folder or a glob. `format` None: found from each name (`.jsonl` is looked into: a first line
    with `custom_id` and `body` is openai-batch)."""

    path: str
    format: Format | None = None
    replay: bool = False
    """The lines are dead-letter records of Penstock: each stands for its `original`, which keeps its item_id and enters
    again as the next generation."""


class MemorySource(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="memory"):
    """The source that ships for tests and `ps.map`: see `connectors.memory`. `name` finds it in the process."""

    name: str


class FilesSink(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="files"):
    """`path` ending in a file name: one file in input order; a folder (trailing slash or no suffix): part files and a
    manifest. `format` None: found from the name (`.jsonl`, `.parquet`, `.csv`), else JSONL."""

    path: str
    format: Literal["jsonl", "parquet", "csv"] | None = None


class MemorySink(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="memory"):
    name: str


SourceSettings = FilesSource | MemorySource
SinkSettings = FilesSink | MemorySink


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a plain row becomes an item. Values are Jinja2 templates."""

    id: str | None = None
    keep: tuple[str, ...] | None = None
    """Columns carried to the result; None: all that fit in 64 kB."""
    attributes: dict[str, str] = {}
