"""S3 sources and sinks of the job file: `s3://` URLs, keys, partitions, and what must not meet."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl, urlsplit

import msgspec

from penstock.connectors.base import SinkName
from penstock.connectors.s3.objects import matching
from penstock.connectors.s3.state import root_of
from penstock.connectors.s3.urls import OPTIONS, SSE, parsed
from penstock.connectors.settings import S3Sink, S3Source, SinkSettings
from penstock.engine.errors import SpecError
from penstock.jobs.spec.accounts import check_url
from penstock.jobs.spec.places.files import PACKED, STATE_NAMES, matches, split_suffix
from penstock.jobs.spec.tree import Doc, Path, nearest

MAX_KEY = 1024
"""Bytes of a key: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html."""
MAX_PARTITIONS = 5
"""Each level multiplies the number of small objects. A guess."""
ALWAYS = ("date", "tier", "task", "model")
"""What every record can be parted by; results also by a column that is kept."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
"""Lenient: old buckets and other stores allow more than AWS does today."""
_WILD = re.compile(r"[*?\[]")
_DATA = (".jsonl", ".parquet")


def read_url(doc: Doc, path: Path, url: str) -> tuple[str, str]:
    """`s3://bucket/key` → (bucket, key)."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return check_bucket(doc, path, bucket), check_key(doc, path, key)


def check_bucket(doc: Doc, path: Path, bucket: str) -> str:
    if not _BUCKET.fullmatch(bucket):
        raise doc.error(path, "a bucket's name has 3 or more letters, digits and . _ - (s3://bucket/prefix/)")
    return bucket


def check_key(doc: Doc, path: Path, key: str) -> str:
    if key.startswith("/") or "//" in key or not (key.isprintable() or not key) or len(key.encode()) > MAX_KEY:
        raise doc.error(path, f"a key has at most {MAX_KEY:,} printable bytes, no / in front and no // in it")
    return key


def check_folder_url(doc: Doc, path: Path, url: str, wanted: str) -> str:
    """An `s3://bucket/prefix/`, with the options of `check_state`."""
    if not url.startswith("s3://") or not urlsplit(url).path.endswith("/"):
        raise doc.error(path, f"expected {wanted}")
    return check_state(doc, path, url)


def check_state(doc: Doc, path: Path, url: str) -> str:
    """`s3://bucket/prefix`, with `?endpoint=…&region=…` where the store is not AWS's own, and `?sse=…&sse_kms_key_id=…`
    for what is written."""
    parts = urlsplit(url)
    read_url(doc, path, f"s3://{parts.netloc}{parts.path}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := next((name for name in options if name not in OPTIONS), None):
        raise doc.error(path, f"`?{unknown[:60]}=` is not known here{nearest(unknown, OPTIONS)}")
    if "endpoint" in options:
        check_url(doc, path, options["endpoint"])
    if (sse := options.get("sse")) is not None and sse not in SSE:
        raise doc.error(path, f"`?sse=` is one of {', '.join(SSE)}")
    if "sse_kms_key_id" in options and sse != "aws:kms":
        raise doc.error(path, "`?sse_kms_key_id=` belongs to `?sse=aws:kms`")
    return url


def source_of(bucket: str, key: str) -> S3Source:
    """A glob is a prefix up to the last slash before its first wildcard, and the pattern of the rest."""
    wild = _WILD.search(key)
    if wild is None:
        return S3Source(bucket, key)
    cut = key.rfind("/", 0, wild.start()) + 1
    return S3Source(bucket, key[:cut], key[cut:])


def source(doc: Doc, value: S3Source) -> S3Source:
    path: Path = ("source",)
    check_bucket(doc, (*path, "bucket"), value.bucket)
    check_key(doc, (*path, "prefix"), value.prefix)
    if value.pattern is not None and not check_key(doc, (*path, "pattern"), value.pattern):
        raise doc.error((*path, "pattern"), "expected a glob like *.jsonl, found empty text")
    if value.pattern is not None:
        _check_glob(doc, path, value.pattern)
    _check_endpoint(doc, path, value)
    return value


def _check_glob(doc: Doc, path: Path, pattern: str) -> None:
    try:
        matching(pattern)
    except SpecError as error:
        raise doc.error((*path, "pattern"), str(error)) from None


def _check_endpoint(doc: Doc, path: Path, value: S3Source | S3Sink) -> None:
    if value.endpoint is not None:
        check_url(doc, (*path, "endpoint"), value.endpoint)


def sink(doc: Doc, path: Path, value: S3Sink) -> S3Sink:
    check_bucket(doc, (*path, "bucket"), value.bucket)
    place = (*path, "prefix") if (*path, "prefix") in doc.lines else path
    _check_name(doc, place, check_key(doc, place, value.prefix), value.format)
    _check_endpoint(doc, path, value)
    if value.sse_kms_key_id is not None and value.sse != "aws:kms":
        raise doc.error((*path, "sse_kms_key_id"), "belongs to `sse: aws:kms`")
    return value


def _check_name(doc: Doc, path: Path, key: str, format: str | None) -> None:
    if not key:
        raise doc.error(path, "name a prefix (`labels/`) or an object (`labels.parquet`): outputs fill no whole bucket")
    if _WILD.search(key):
        raise doc.error(path, "no wildcards in the name of what is written")
    if key.endswith("/"):
        return
    suffix = split_suffix(key)[1]
    if any(suffix.endswith(packed) for packed in PACKED):
        raise doc.error(path, "sinks are written uncompressed: leave the last suffix out")
    if format is None and suffix not in _DATA:
        raise doc.error(path, f"an object's name says its format ({', '.join(_DATA)}); a prefix of parts ends in `/`")


def check_partitions(doc: Doc, name: str, sink: S3Sink, keep: Collection[str] | None) -> None:
    """`keep`: columns that are carried to the results; None: all."""
    path: Path = ("sinks", name, "partition_by")
    if sink.partition_by and not sink.prefix.endswith("/"):
        raise doc.error(path, "parts a prefix that ends in `/`; one object has no parts")
    if len(sink.partition_by) > MAX_PARTITIONS:
        raise doc.error(path, f"at most {MAX_PARTITIONS} levels; each multiplies the number of objects")
    for i, column in enumerate(sink.partition_by):
        if column in sink.partition_by[:i]:
            raise doc.error((*path, i), f"`{column}` stands here twice")
        known = (*ALWAYS, *(keep or ())) if name == "results" else ALWAYS
        if column not in known and not (name == "results" and keep is None and _is_column(column)):
            hint = " (or a column of `row.keep`)" if name == "results" else ""
            raise doc.error((*path, i), f"can't part by `{column[:100]}`{hint}{nearest(column, known)}")


def _is_column(name: str) -> bool:
    return bool(name) and name.isprintable() and not set(name) & set("/=")


def check_apart(doc: Doc, source: S3Source, sinks: Mapping[SinkName, SinkSettings]) -> None:
    """What the next listing would find among the input must not be written there."""
    for name, sink in sinks.items():
        if isinstance(sink, S3Sink) and _is_one_bucket(source, sink) and reads(source, sink.prefix):
            path: Path = ("sinks", name) if ("sinks", name) in doc.lines else ("sinks",)
            place = f"s3://{source.bucket}/{source.prefix}{source.pattern or ''}"
            raise doc.error(path, f"{name} would stand inside the source ({place}); give it a place of its own")


def check_state_apart(doc: Doc, source: S3Source, url: str) -> None:
    """As of files; names that begin with `.` or `_` are hidden there."""
    if not url.startswith("s3://"):
        return
    state = parsed(url)
    root = root_of(state)
    hidden = any(part.startswith((".", "_")) for part in root.removeprefix(source.prefix).split("/"))
    here = _is_one_bucket(source, S3Sink(state.bucket, root, state.endpoint)) and not hidden
    if here and any(reads(source, f"{root}{name}") for name in STATE_NAMES):
        place = f"s3://{source.bucket}/{source.prefix}{source.pattern or ''}"
        raise doc.error(("state",), f"would stand inside the source ({place}); give it a place of its own")


def check_encrypted(doc: Doc, sinks: Mapping[SinkName, SinkSettings]) -> None:
    """A commit writes the records of a bucket's sinks into one object."""
    found = [(name, sink) for name, sink in sinks.items() if isinstance(sink, S3Sink)]
    for name, one in found:
        other = next(sink for _, sink in found if _is_one_bucket(one, sink))
        if (one.sse, one.sse_kms_key_id) != (other.sse, other.sse_kms_key_id):
            raise doc.error(
                ("sinks", name), "sinks of one bucket are encrypted alike: give all the same `sse:` and key"
            )


def _is_one_bucket(source: S3Source | S3Sink, sink: S3Sink) -> bool:
    one, other = ((s.endpoint or "").rstrip("/").replace("localhost:", "127.0.0.1:") for s in (source, sink))
    return source.bucket == sink.bucket and one == other


def reads(source: S3Source, key: str) -> bool:
    inside = f"{key}part" if key.endswith("/") else key
    if not inside.startswith(source.prefix):
        return False
    if source.pattern is None:
        return True
    rest = inside.removeprefix(source.prefix)
    # A part's name is not known here: any pattern that reaches into the prefix may find one.
    return matches(source.pattern.split("/"), rest.split("/")) or (key.endswith("/") and _reaches(source, key))


def _reaches(source: S3Source, folder: str) -> bool:
    levels = folder.removeprefix(source.prefix).rstrip("/").split("/")
    pattern = (source.pattern or "").split("/")[:-1]
    return "**" in pattern or (len(pattern) == len(levels) and all(map(fnmatchcase, levels, pattern)))


def beside(results: S3Sink, prefix: str, format: str | None) -> S3Sink:
    """Partitions are the results' own: other records may not have their columns."""
    made = "parquet" if format == "parquet" else None
    return msgspec.structs.replace(results, prefix=prefix, format=made, partition_by=())
