"""Which objects a source means, and one object pinned to the content that the plan saw."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec

from penstock.connectors.formats import names
from penstock.connectors.s3.client import S3, Listed
from penstock.connectors.s3.errors import Missing, NotAsExpected
from penstock.connectors.settings import S3Source
from penstock.engine.errors import BadRecord, Refused, SpecError, Temporary
from penstock.engine.plan import Split

NO_VERSION = "null"
"""The version of what was put before the bucket kept versions: it may be replaced, so it pins nothing."""


class Pinned(msgspec.Struct, frozen=True):
    """One content of one object. `pin`: its version, or its ETag, which is told from a version by its quotes."""

    bucket: str
    key: str
    pin: str
    size: int

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def object_id(self) -> str:
        return f"{self.uri}@{self.pin}:{self.size}"


def pinned(bucket: str, one: Listed) -> Pinned:
    version = None if one.version == NO_VERSION else one.version
    return Pinned(bucket, one.key, version or one.etag, one.size)


def pinned_by(split: Split) -> Pinned:
    """What a split's `object_id` names."""
    bucket, _, key = split.uri.removeprefix("s3://").partition("/")
    pin, _, size = split.object_id[len(split.uri) + 1 :].rpartition(":")
    return Pinned(bucket, key, pin, int(size))


def is_etag(pin: str) -> bool:
    return pin.startswith(('"', "W/"))


def fetch(s3: S3, what: Pinned, start: int, end: int) -> bytes:
    """Bytes [start, end) of that content and no other.

    Raises `BadRecord("source_lost")` where it changed or is gone, `Temporary` where it can't be read now.
    """
    by_etag = is_etag(what.pin)
    try:
        got = s3.get(
            what.bucket,
            what.key,
            start,
            end,
            etag=what.pin if by_etag else None,
            version=None if by_etag else what.pin,
        )
    except Missing as error:
        raise BadRecord("source_lost", f"{what.uri} is gone: it was deleted after the run was planned") from error
    except NotAsExpected as error:
        raise BadRecord("source_lost", _changed(what)) from error
    if by_etag and got.etag != what.pin:  # a store that does not know If-Match
        raise BadRecord("source_lost", _changed(what))
    if len(got.data) != end - start:
        raise Temporary(f"{what.uri} came cut short: {len(got.data)} of {end - start} bytes", retry_after_s=1.0)
    return got.data


def _changed(what: Pinned) -> str:
    return f"{what.uri} is not the object this run planned: it was replaced"


def listed(s3: S3, source: S3Source) -> Iterator[Pinned]:
    """The objects that `source` means, in order of keys, as the listing's pages come. A prefix that is the whole key of
    an object, and named as one, means it alone: a packed copy beside it (`day.csv.gz`) has the same rows."""
    rest = matching(source.pattern) if source.pattern is not None else None
    skip = len(source.prefix)
    literal = "" if source.pattern is None else re.split(r"[*?\[]", source.pattern, maxsplit=1)[0]
    for page in _pages(s3, source.bucket, source.prefix + literal):
        for one in page:
            if one.key == source.prefix and rest is None and names.kind_of(one.key) is not None:
                yield pinned(source.bucket, one)
                return  # it comes first, in order of keys
            name = one.key[skip:]
            if not _is_hidden(source.prefix, name) and not _is_folder(one) and (rest is None or rest(name)):
                yield pinned(source.bucket, one)


def _pages(s3: S3, bucket: str, prefix: str) -> Iterator[list[Listed]]:
    """With versions where the bucket keeps them and they may be listed: a version can be read after it was replaced."""
    if s3.versioned(bucket):
        pages = s3.version_pages(bucket, prefix)
        try:
            first = next(pages, [])
        except Refused:
            pass
        else:
            yield first
            yield from pages
            return
    yield from s3.pages(bucket, prefix)


def _is_hidden(prefix: str, name: str) -> bool:
    """Files have dots for it, Hadoop and its heirs `_` (`_temporary/`, `_delta_log/`, `_SUCCESS`). What the prefix
    itself names is meant, also where it ends amid a name: `in/batch` means `in/batch_2.jsonl`."""
    amid = bool(prefix) and not prefix.endswith("/")
    return any(part.startswith((".", "_")) for part in name.split("/")[amid:])


def _is_folder(one: Listed) -> bool:
    """What consoles and Hadoop put where a folder should seem to be."""
    return one.size == 0 and one.key.endswith(("/", "_$folder$"))


def naming(source: S3Source) -> Callable[[str], bool]:
    """Whether an object, by its URI, is where a listing of `source` looks."""
    start = f"s3://{source.bucket}/{source.prefix}"
    rest = matching(source.pattern) if source.pattern is not None else None
    return lambda uri: uri.startswith(start) and (rest is None or bool(rest(uri.removeprefix(start))))


def matching(glob: str) -> Callable[[str], object]:
    """Whether a name is one that the glob means. Raises `SpecError` where it is no glob."""
    try:
        return re.compile(translate(glob)).fullmatch
    except re.error as error:
        raise SpecError(f"the pattern {glob[:200]!r} is no glob: what stands in its brackets is wrong") from error


def translate(glob: str) -> str:
    """A glob over keys as a regular expression: `*` and `?` stay between slashes, `**` crosses them (`**/`: none or
    more folders), `[a-z]` and `[!a-z]` are one character."""
    out: list[str] = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", glob, re.DOTALL):
        match token:
            case "**/":
                out.append("(?:[^/]+/)*")
            case "**":
                out.append(".*")
            case "*":
                out.append("[^/]*")
            case "?":
                out.append("[^/]")
            case _ if len(token) > 1:
                inner = token[1:-1].replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^")
                out.append(f"(?!/)[{'^' + inner[1:] if inner.startswith('!') else inner}]")
            case _:
                out.append(re.escape(token))
    return "(?s:" + "".join(out) + ")"
