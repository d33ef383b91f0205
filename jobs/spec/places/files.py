"""Files of the job file: paths, suffixes, what stands beside what, and what must not meet."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from penstock.connectors.base import SinkName
from penstock.connectors.filestore.assembly import MANIFEST, format_of, is_single_file
from penstock.connectors.settings import FilesSink, FilesSource, SinkSettings
from penstock.connectors.state import folder_of
from penstock.jobs.spec.tree import Doc, Path

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")
_DATA = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
PACKED = (".gz", ".zst", ".gzip", ".zstd")
STATE_NAMES = ("runs/run/status.json", "audit/000001.jsonl")
"""As documents of the state are named."""


def scheme(text: str) -> str | None:
    found = _URL.match(text)
    return found.group(1).lower() if found else None


def absolute(base: str, path: str) -> str:
    """Absolute, from the job file's folder; a trailing slash (a folder is meant) stays."""
    slash = "/" if path.endswith(("/", os.sep)) else ""
    return os.path.normpath(os.path.join(base, os.path.expanduser(path))).rstrip("/") + slash


def source(doc: Doc, value: FilesSource, base: str) -> FilesSource:
    return msgspec.structs.replace(value, path=absolute(base, _local(doc, ("source", "path"), value.path)))


def source_at(doc: Doc, text: str, base: str) -> FilesSource:
    return FilesSource(absolute(base, _given(doc, ("source",), text)))


def sink(doc: Doc, path: Path, value: FilesSink, base: str) -> FilesSink:
    place = (*path, "path")
    text = _writable(doc, place, _local(doc, place, value.path), value.format)
    return msgspec.structs.replace(value, path=absolute(base, text))


def sink_at(doc: Doc, path: Path, text: str, base: str) -> FilesSink:
    return FilesSink(absolute(base, _writable(doc, path, _given(doc, path, text), None)))


def _writable(doc: Doc, path: Path, text: str, format: str | None) -> str:
    """A file's name must not promise what is not written: lines in a `.gz`, or in an `.xlsx`."""
    ending = os.path.splitext(text)[1].lower()
    if text.endswith("/") or not ending:
        return text
    if ending in PACKED:
        raise doc.error(path, f"sinks are written uncompressed: {text[: -len(ending)]!r} without `{ending}`")
    if format is None and ending not in _DATA:
        known = ", ".join(_DATA)
        raise doc.error(path, f"`{ending}` names no format that is written ({known}); a folder ends in `/`")
    return text


def _local(doc: Doc, path: Path, text: str) -> str:
    if kind := scheme(text):
        raise doc.error(path, f"`type: files` wants a path, not a {kind}:// address")
    return _given(doc, path, text)


def _given(doc: Doc, path: Path, text: str) -> str:
    if not text.strip() or "\0" in text:
        raise doc.error(path, "expected a path, found empty text")
    return text


def path_beside(path: str, name: str, parquet: bool) -> tuple[str, Literal["parquet"] | None]:
    table = name != "dead_letters" and parquet
    head, suffix = split_suffix(path)
    if suffix:
        return f"{head}.{name}{'.parquet' if table else '.jsonl'}", None
    return f"{path.rstrip('/')}.{name}/", "parquet" if table else None


def is_parquet(path: str, format: str | None) -> bool:
    return format == "parquet" or (format is None and split_suffix(path)[1].startswith(".parquet"))


def split_suffix(path: str) -> tuple[str, str]:
    """`out/x.jsonl.gz` → (`out/x`, `.jsonl.gz`); a folder has no suffix."""
    if path.endswith("/"):
        return path.rstrip("/"), ""
    packed = next((p for p in PACKED if path.endswith(p)), "")
    bare = path[: len(path) - len(packed)]
    data = next((d for d in _DATA if bare.lower().endswith(d)), "")
    if not data:
        stem, ext = os.path.splitext(path)
        return stem, ext
    return bare[: -len(data)], path[len(bare) - len(data) :]


def is_table(path: str, format: str | None) -> bool:
    """Whether what is read or written there is a table, by its name or format."""
    suffix = split_suffix(path)[1].lower().split(".")
    named = not {"csv", "parquet"}.isdisjoint(suffix)
    return format in ("csv", "parquet") or (format is None and named)


def check_apart(doc: Doc, source: FilesSource, sinks: Mapping[SinkName, SinkSettings]) -> None:
    """A sink inside the input would be read as input by the next run, or would write over it."""
    for name, sink in sinks.items():
        if isinstance(sink, FilesSink) and any(_reads(source.path, made) for made in _made(sink)):
            path: Path = ("sinks", name) if ("sinks", name) in doc.lines else ("sinks",)
            raise doc.error(path, f"{name} would stand inside the source ({source.path}); give it a place of its own")


def check_state_apart(doc: Doc, source: FilesSource, state: str) -> None:
    """Its documents are JSON: they would be read as input, and change while the run goes. In a hidden folder, as by
    default, they are none."""
    folder = folder_of(state)
    if folder is None:
        return
    root = re.split(r"[*?\[]", source.path, maxsplit=1)[0]
    hidden = any(part.startswith(".") for part in str(folder).removeprefix(root).split("/"))
    if not hidden and any(_reads(source.path, f"{folder}/{name}") for name in STATE_NAMES):
        raise doc.error(("state",), f"would stand inside the source ({source.path}); give it a place of its own")


def _made(sink: FilesSink) -> list[str]:
    """Files that a sink is made of: of a folder, one of each kind."""
    if is_single_file(sink):
        return [sink.path]
    return [f"{sink.path.rstrip('/')}/{name}" for name in (f"part-0000.{format_of(sink)}", MANIFEST)]


def _reads(source: str, made: str) -> bool:
    """Whether listing the source (a file, a folder with all below it, a glob) would find this file."""
    if any(c in source for c in "*?["):
        return matches(source.split("/"), made.split("/"))
    return made == source or made.startswith(source.rstrip("/") + "/")


def matches(pattern: list[str], path: list[str]) -> bool:
    """As `glob` does: `**` is any number of folders, hidden names are matched by name only."""
    if not pattern or not path:
        return not pattern and not path
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        return matches(rest, path) or (len(path) > 1 and matches(pattern, path[1:])) or not rest
    return fnmatchcase(path[0], head) and matches(rest, path[1:])
