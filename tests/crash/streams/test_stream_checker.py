"""The checks of stream jobs find what they must find: each test plants one fault in what a clean run would give."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from penstock.jobs.look.committed import read_outputs
from penstock.jobs.look.verify import Paid, check
from tests.crash.streams import outputs
from tests.crash.streams.kafka_lines import Seen, read
from tests.crash.streams.reliability import noted, shown, table
from tests.crash.streams.storms import Line

ITEMS = 12


def result(n: int, *, maybe_paid: bool = False) -> bytes:
    tried = {"n": 1, "role": "primary", "request_id": f"r{n}", "cost_usd": 0.0000015}
    penstock = {"item_id": f"id{n}", "attempts": [tried], "cost_usd": 0.0000015, "maybe_paid": maybe_paid}
    return msgspec.json.encode({"custom_id": f"row-{n}", "penstock": penstock})


def cost(n: int) -> bytes:
    tokens = {"input": 10, "output": 5}
    line = {"entry_id": f"id{n}:0:1", "item_id": f"id{n}", "attempt": 1, "role": "primary", "usd": 0.0000015}
    return msgspec.json.encode({**line, "basis": "metered", "tokens": tokens})


def clean() -> list[Seen]:
    """Keyed by three keys, each in a partition of its own."""
    return [Seen(n % 3, n // 3, b"key-%d" % (n % 3), result(n), {}) for n in range(ITEMS)]


OFFERED = [(b"key-%d" % (n % 3), f"row-{n}") for n in range(ITEMS)]
JOURNAL = [Paid(f"r{n}", f"id{n}", float(n), 10, 5) for n in range(ITEMS)]


def kinds(tmp_path: Any, rows: Sequence[Seen], journal: Sequence[Paid] = JOURNAL, bound: int = 0) -> set[str]:
    results = outputs.as_file(tmp_path / "results.jsonl", outputs.kafka_values(rows))
    costs = outputs.as_file(tmp_path / "costs.jsonl", map(cost, range(ITEMS)))
    committed = read_outputs({"results": [results], "costs": [costs]})
    return {v.kind for v in check([label for _, label in OFFERED], committed, journal, bound=bound).violations}


def labelled(rows: Sequence[Seen]) -> list[tuple[object, bytes | None, str]]:
    return [(r.partition, r.key, msgspec.json.decode(r.value or b"")["custom_id"]) for r in rows]


def test_a_clean_topic_passes(tmp_path: Any) -> None:
    assert not kinds(tmp_path, clean())
    assert not outputs.misordered(OFFERED, labelled(clean()))


def test_a_planted_loss_is_found(tmp_path: Any) -> None:
    assert "lost" in kinds(tmp_path, clean()[1:])


def test_a_planted_duplicate_is_found(tmp_path: Any) -> None:
    """The same result again, in another partition."""
    rows = clean()
    assert "duplicate" in kinds(tmp_path, [*rows, msgspec.structs.replace(rows[0], partition=1, offset=99)])


def test_a_planted_second_payment_is_found(tmp_path: Any) -> None:
    """A call that no record tells of; marked, it counts against the bound."""
    again = [*JOURNAL, Paid("r0-again", "id0", 99.0, 10, 5)]
    assert kinds(tmp_path, clean(), again, bound=1) == {"unmarked"}
    marked = [msgspec.structs.replace(clean()[0], value=result(0, maybe_paid=True)), *clean()[1:]]
    assert not kinds(tmp_path, marked, again, bound=1)
    assert kinds(tmp_path, marked, again, bound=0) == {"too_many"}


def test_a_planted_reorder_is_found() -> None:
    """Two records of one key change places; those of different keys may."""
    rows = clean()
    a, b = (n for n, row in enumerate(rows) if row.key == b"key-1" and row.offset in (1, 2))
    rows[a], rows[b] = rows[b], rows[a]
    assert outputs.misordered(OFFERED, labelled(rows)) == ["row-4"]
    rows = clean()
    rows[0], rows[1] = rows[1], rows[0]
    assert not outputs.misordered(OFFERED, labelled(rows))


def test_a_dead_letter_is_read_with_its_untouched_original() -> None:
    """Its value is the original; the letter stands in a header."""
    letter = msgspec.json.encode({"item_id": "id1", "reason": "malformed", "original_encoding": "utf-8"})
    (line,) = outputs.kafka_values([Seen(0, 0, b"k", b"not json", {outputs.LETTER: letter})])
    found = msgspec.json.decode(line)
    assert (found["item_id"], found["original"]) == ("id1", "not json")


@pytest.mark.kafka
async def test_what_was_aborted_is_not_read_and_what_is_open_is_waited_for(
    kafka_server: Any, new_topic: Callable[..., Awaitable[str]]
) -> None:
    """Readers see neither an aborted record nor one whose transaction is open; ours waits until it has ended."""
    topic = await new_topic("checked")
    producer = AIOKafkaProducer(bootstrap_servers=kafka_server.bootstrap, transactional_id=secrets.token_hex(4))
    await producer.start()
    try:
        for value, good in ((b"1", True), (b"no", False), (b"2", True)):
            await producer.begin_transaction()
            await producer.send_and_wait(topic, value)
            await (producer.commit_transaction() if good else producer.abort_transaction())
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"3")
        reading = asyncio.create_task(read(kafka_server.bootstrap, topic))
        await producer.commit_transaction()
        assert [row.value for row in await reading] == [b"1", b"2", b"3"]
    finally:
        await producer.stop()


def test_what_was_noted_takes_the_place_of_the_row_of_its_job_and_harm_alone() -> None:
    """And says how many different seeds it stands for."""

    def line(harm: str, seed: int) -> Line:
        return Line("a → b", harm, seed, 1, 1_000, 0, 0, 5, 10, 7, 1.0)

    before = table(noted([line("lane", 0), line("command", 0)]))
    rows = shown(table(shown(before) | noted([line("lane", seed) for seed in (1, 2, 2)])))
    assert [*rows] == [("a → b", "command"), ("a → b", "lane")]
    assert rows["a → b", "command"] in before
    assert rows["a → b", "lane"].startswith("| a → b | lane | 3 | 2 | 3 | 3,000 |")
