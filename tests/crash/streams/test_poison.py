"""Poison records through a running job: each ends as a dead letter with its untouched bytes, and the lane goes on.

Kafka's own console consumer then counts what we count.
"""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.jobs.dev.kafka import CONSOLE_CONSUMER
from tests.crash.streams import kafka_lines
from tests.crash.streams.kafka_lines import Offered
from tests.crash.streams.outputs import kafka_values
from tests.crash.streams.registry import KNOWN, schema_registry
from tests.crash.streams.stage import Stage
from tests.crash.streams.stream_bench import StreamBench, StreamShape, stream_bench

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]

DEEP = b'{"custom_id": "deep", "body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
POISON: dict[bytes, bytes | None] = {
    b"not UTF-8": b'{"custom_id": "\xff\xfe"}',
    b"not JSON": b"{no json",
    b"empty": b"",
    b"deep": DEEP,
    b"huge": b'{"text": "' + b"x" * 9_000_000 + b'"}',
    b"tombstone": None,
    b"schema id": b"\x00\x00\x00\x03\xe7\x02a",
    b"NUL and controls": bytes(range(32)),
}
HEAD_BYTES = 1_000_000


def letters(b: StreamBench) -> dict[bytes, tuple[dict[str, Any], kafka_lines.Seen]]:
    """By the key of the record."""
    rows = b.rows("dead_letters")
    told = [msgspec.json.decode(value) for value in kafka_values(rows)]
    assert len({row.key for row in rows}) == len(rows), "a dead letter twice"
    return {row.key or b"": (letter, row) for letter, row in zip(told, rows, strict=True)}


def original(letter: dict[str, Any]) -> bytes:
    if letter.get("original_encoding") == "base64":
        return base64.b64decode(letter["original"])
    return letter["original"].encode("utf-8", "surrogatepass")


def test_poison_ends_as_dead_letters_with_its_bytes_and_good_records_go_on(servers: Stage, tmp_path: Path) -> None:
    with stream_bench(servers, tmp_path, StreamShape(items=200, model="sure", partitions=2, lanes=2)) as b:
        records = [Offered(value, key, (("trace", b"t-1"),)) for key, value in POISON.items()]
        asyncio.run(kafka_lines.publish(servers.kafka.bootstrap, b.topic, records))
        asyncio.run(b.offer([f"after-{n}" for n in range(100)]))
        command = b.start()
        assert b.end(command) == 0, b.log(command)
        found = letters(b)
        assert set(found) == set(POISON)
        for key, (letter, row) in found.items():
            sent = POISON[key] or b""
            assert original(letter) == (sent if len(sent) <= HEAD_BYTES else sent[:HEAD_BYTES]), key
            assert row.headers.get("trace") == b"t-1", key
            assert letter["reason"] in ("malformed", "too_large"), letter
        results = b.read_back().results
        assert sorted(one.key for one in results) == sorted(label for _, label in b.offered)
        assert counted(servers, b.out("results"), len(results)) == len(results)


def counted(servers: Stage, topic: str, wanted: int) -> int:
    """By Kafka's own console consumer, which stops after a silence: on a busy machine it may take longer to begin."""
    lines: list[str] = []
    for silence_ms in ("4000", "30000"):
        told = servers.kafka.tool(
            CONSOLE_CONSUMER, "--topic", topic, "--from-beginning", "--isolation-level", "read_committed",
            "--timeout-ms", silence_ms,
        )  # fmt: skip
        lines = told.splitlines()
        if len(lines) >= wanted:
            break
    return len(lines)


def avro(text: str, schema_id: int) -> bytes:
    """In Confluent's form; `text` of fewer than 64 characters."""
    data = text.encode()
    return b"\x00" + schema_id.to_bytes(4, "big") + bytes([2 * len(data)]) + data


def test_a_record_whose_schema_nobody_knows_is_a_dead_letter(servers: Stage, tmp_path: Path) -> None:
    """Avro with a registry: an unknown id, bytes that are none of the schema's, no magic byte."""
    poison = {b"unknown id": avro("lost", 999), b"cut short": avro("x" * 20, KNOWN)[:9], b"no magic": b"{}"}
    with schema_registry() as url, stream_bench(servers, tmp_path, StreamShape(items=0, model="sure")) as b:
        good = [f"row-{n}" for n in range(30)]
        records = [Offered(avro(text, KNOWN), b"good") for text in good[:15]]
        records += [Offered(value, key) for key, value in poison.items()]
        records += [Offered(avro(text, KNOWN), b"good") for text in good[15:]]
        asyncio.run(kafka_lines.publish(servers.kafka.bootstrap, b.topic, records))
        there = f'{{type: kafka, bootstrap: "{servers.bootstrap}", topics'
        job = b.job_text().replace(there, "{type: kafka, connection: c, format: avro, topics")
        job += f'connections: {{c: {{bootstrap: "{servers.bootstrap}", schema_registry: "{url}"}}}}\n'
        job += 'prompt: "{{ text }}"\n'
        (tmp_path / "job.yaml").write_text(job)
        command = b.start()
        assert b.end(command) == 0, b.log(command)
        found = letters(b)
        assert set(found) == set(poison)
        assert all(original(letter) == poison[key] for key, (letter, _) in found.items())
        assert sorted(one.key for one in b.read_back("text").results) == sorted(good)
