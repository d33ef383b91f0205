"""What a run committed, read back as any reader would: topics with `read_committed`, a bucket by its manifests.

Everything becomes JSON lines in a folder, and from there on `penstock.jobs.look.verify` compares it with what was
offered and paid, as it does for files.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.crash.streams.kafka_lines import Seen

MANIFEST = "_manifest.json"
LETTER = "penstock-record"
"""Header of a dead letter on Kafka: the letter without its original, which is the record's value."""


class _File(msgspec.Struct, frozen=True):
    key: str
    rows: int


class _Manifest(msgspec.Struct, frozen=True):
    """Or one of the lists that it names."""

    files: list[_File]
    rows: int = 0
    lists: list[_File] = []


def kafka_values(records: Iterable[Seen]) -> list[bytes]:
    """Records as the JSON that a file would hold."""
    return [_letter(one) if LETTER in one.headers else one.value or b"" for one in records]


def _letter(record: Seen) -> bytes:
    letter: dict[str, Any] = msgspec.json.decode(record.headers[LETTER])
    if letter.get("original_encoding") == "base64":
        original = base64.b64encode(record.value or b"").decode()
    else:
        original = (record.value or b"").decode("utf-8", "surrogatepass")
    return msgspec.json.encode({**letter, "original": original})


def s3_values(client: Any, bucket: str, prefix: str) -> list[bytes]:
    """Lines of exactly the objects that the manifest names, which must hold as many as it says."""

    def get(key: str) -> bytes:
        return client.get_object(Bucket=bucket, Key=key)["Body"].read()

    manifest = msgspec.json.decode(get(f"{prefix}{MANIFEST}"), type=_Manifest)
    lists = [msgspec.json.decode(get(one.key), type=_Manifest) for one in manifest.lists]
    lines: list[bytes] = []
    for file in (file for one in [*lists, manifest] for file in one.files):
        data = get(file.key)
        rows = data.splitlines()
        assert len(rows) == file.rows, f"{file.key}: the manifest says {file.rows} rows, it has {len(rows)}"
        lines += rows
    assert len(lines) == manifest.rows
    return lines


def as_file(path: Path, lines: Iterable[bytes]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def misordered(offered: Sequence[tuple[bytes, str]], found: Iterable[tuple[object, bytes | None, str]]) -> list[str]:
    """Labels that come behind a later one of their key.

    offered: (key, label) in the order of the input. found: (where, key, label) in the order of what is checked; `where`
    tells apart what has no order between (partitions).
    """
    place = {label: number for number, (_, label) in enumerate(offered)}
    highest: dict[tuple[object, bytes | None], int] = {}
    wrong: list[str] = []
    for where, key, label in found:
        at = place.get(label, -1)
        if at < highest.get((where, key), -1):
            wrong.append(label)
        highest[where, key] = max(at, highest.get((where, key), -1))
    return wrong
