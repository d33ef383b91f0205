"""Where things are: a path, URL or mapping → settings of a source or sink; and where unnamed sinks stand."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from penstock.connectors.base import SinkName
from penstock.connectors.registry import where
from penstock.connectors.settings import (
    FilesSink,
    FilesSource,
    KafkaSink,
    MemorySink,
    S3Sink,
    SinkSettings,
    SourceSettings,
)
from penstock.jobs.spec.decode import NOT_YET
from penstock.jobs.spec.fields import SinksFile
from penstock.jobs.spec.tree import Doc, Path, nearest

SCHEMES: dict[str, tuple[Callable[[str], SourceSettings], Callable[[str], SinkSettings]]] = {}
"""URL scheme → how its URLs read as a source and as a sink. A connector adds its row here (and its settings to the
unions in connectors/settings.py), and leaves `decode.NOT_YET`."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")
_DATA = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_PACKED = (".gz", ".zst", ".gzip", ".zstd")
BESIDE: tuple[SinkName, ...] = ("costs", "quality", "dead_letters")
ALL_SINKS: tuple[SinkName, ...] = ("results", *BESIDE)


def scheme(text: str) -> str | None:
    found = _URL.match(text)
    return found.group(1).lower() if found else None


def absolute(base: str, path: str) -> str:
    """Absolute, from the job file's folder; a trailing slash (a folder is meant) stays."""
    slash = "/" if path.endswith(("/", os.sep)) else ""
    return os.path.normpath(os.path.join(base, os.path.expanduser(path))).rstrip("/") + slash


def source(doc: Doc, value: str | SourceSettings, base: str) -> SourceSettings:
    path: Path = ("source",)
    if isinstance(value, str):
        if kind := scheme(value):
            return _known(doc, path, kind)[0](value)
        return FilesSource(absolute(base, _given(doc, path, value)))
    if isinstance(value, FilesSource):
        return msgspec.structs.replace(value, path=absolute(base, _local(doc, (*path, "path"), value.path)))
    return value


def sinks(doc: Doc, value: str | SinksFile, base: str) -> dict[SinkName, SinkSettings]:
    """All four sinks; the unnamed ones beside the results."""
    named: dict[SinkName, SinkSettings]
    if isinstance(value, str):
        value = SinksFile(results=value)
        named = {"results": _sink(doc, ("sinks",), value.results, base)}
    else:
        given: dict[SinkName, str | SinkSettings | None] = {name: getattr(value, name) for name in ALL_SINKS}
        named = {n: _sink(doc, ("sinks", n), v, base) for n, v in given.items() if v is not None}
    results = named["results"]
    for name in BESIDE:
        named.setdefault(name, beside(results, name))
    _apart(doc, named)
    return {name: named[name] for name in ALL_SINKS}


def _sink(doc: Doc, path: Path, value: str | SinkSettings, base: str) -> SinkSettings:
    if isinstance(value, str):
        if kind := scheme(value):
            return _known(doc, path, kind)[1](value)
        return FilesSink(absolute(base, _writable(doc, path, _given(doc, path, value), None)))
    if isinstance(value, FilesSink):
        place = (*path, "path")
        text = _writable(doc, place, _local(doc, place, value.path), value.format)
        return msgspec.structs.replace(value, path=absolute(base, text))
    return value


def _writable(doc: Doc, path: Path, text: str, format: str | None) -> str:
    """A file's name must not promise what is not written: lines in a `.gz`, or in an `.xlsx`."""
    ending = os.path.splitext(text)[1].lower()
    if text.endswith("/") or not ending:
        return text
    if ending in _PACKED:
        raise doc.error(path, f"sinks are written uncompressed: {text[: -len(ending)]!r} without `{ending}`")
    if format is None and ending not in _DATA:
        known = ", ".join(_DATA)
        raise doc.error(path, f"`{ending}` names no format that is written ({known}); a folder ends in `/`")
    return text


def _known(doc: Doc, path: Path, kind: str) -> tuple[Callable[[str], SourceSettings], Callable[[str], SinkSettings]]:
    if kind in SCHEMES:
        return SCHEMES[kind]
    if kind in NOT_YET:
        raise doc.error(path, f"{kind}:// comes with the {NOT_YET[kind]} connector, which is not there yet")
    raise doc.error(path, f"no connector reads {kind}://{nearest(kind, [*SCHEMES, *NOT_YET])}")


def _local(doc: Doc, path: Path, text: str) -> str:
    if kind := scheme(text):
        raise doc.error(path, f"`type: files` wants a path, not a {kind}:// address")
    return _given(doc, path, text)


def _given(doc: Doc, path: Path, text: str) -> str:
    if not text.strip() or "\0" in text:
        raise doc.error(path, "expected a path, found empty text")
    return text


def beside(results: SinkSettings, name: str) -> SinkSettings:
    """`results.parquet` → `results.costs.parquet`; `out/` → `out.costs/`. Dead letters are JSON lines in any case: they
    hold what could not be read."""
    match results:
        case MemorySink():
            return MemorySink(f"{results.name}.{name}")
        case KafkaSink():
            return msgspec.structs.replace(results, topic=f"{results.topic}.{name}")
        case S3Sink():
            path, format = _path_beside(results.prefix, name, is_parquet(results.prefix, results.format))
            return msgspec.structs.replace(results, prefix=path, format=format)
        case FilesSink():
            return FilesSink(*_path_beside(results.path, name, is_parquet(results.path, results.format)))


def _path_beside(path: str, name: str, parquet: bool) -> tuple[str, Literal["parquet"] | None]:
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
    packed = next((p for p in _PACKED if path.endswith(p)), "")
    bare = path[: len(path) - len(packed)]
    data = next((d for d in _DATA if bare.lower().endswith(d)), "")
    if not data:
        stem, ext = os.path.splitext(path)
        return stem, ext
    return bare[: -len(data)], path[len(bare) - len(data) :]


def _apart(doc: Doc, named: Mapping[SinkName, SinkSettings]) -> None:
    """Two sinks in one file would write over each other."""
    seen: dict[str, str] = {}
    for name, sink in named.items():
        place = where(sink).rstrip("/")
        if place in seen:
            raise doc.error(("sinks", name), f"the same place as `{seen[place]}`; each sink needs its own")
        seen[place] = name


def check_not_input(doc: Doc, source: SourceSettings, named: Mapping[SinkName, SinkSettings]) -> None:
    """A sink inside the input would be read as input by the next run, or would write over it."""
    if not isinstance(source, FilesSource):
        return
    for name, sink in named.items():
        if isinstance(sink, FilesSink) and _reads(source.path, sink.path):
            path: Path = ("sinks", name) if ("sinks", name) in doc.lines else ("sinks",)
            raise doc.error(path, f"{name} would stand inside the source ({source.path}); give it a place of its own")


def _reads(source: str, sink: str) -> bool:
    """Whether listing the source (a file, a folder with all below it, a glob) would find the sink's files."""
    inside = f"{sink}part" if sink.endswith("/") else sink
    if any(c in source for c in "*?["):
        return _matches(source.split("/"), inside.split("/"))
    return inside == source or inside.startswith(source.rstrip("/") + "/")


def _matches(pattern: list[str], path: list[str]) -> bool:
    """As `glob` does: `**` is any number of folders, hidden names are matched by name only."""
    if not pattern or not path:
        return not pattern and not path
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        return _matches(rest, path) or (len(path) > 1 and _matches(pattern, path[1:])) or not rest
    return fnmatchcase(path[0], head) and _matches(rest, path[1:])
