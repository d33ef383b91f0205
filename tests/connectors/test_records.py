"""Records, byte for byte. The golden files are what users' tools read: a change there is a change of SURFACES."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.connectors.writing.records import Encoder, Shape, Stamps, usd
from penstock.engine.items import Answer, Attributes, Item, Position, Refusal, Request, Route, Usage
from penstock.engine.results import Attempt, CostLine, DeadLetter, Result, Score, ShadowAnswer

GOLDEN = Path(__file__).parent.parent / "golden"
BODY = b'{"id":"chatcmpl-1","choices":[{"index":0,"message":{"role":"assistant","content":"delivery"}}]}'
USAGE = Usage(input=120, cached=20, cache_write=5, cache_write_1h=1, output=30, reasoning=4)


def item(**changes: object) -> Item:
    full = Item(
        item_id="0123456789abcdef0123456789abcdef",
        source=Position("in/a.jsonl@9f:0-1000", 2, 345),
        attributes=Attributes(
            tenant="acme", task="classification", subject="s-1", unit="u-1", episode="e-1", consent="yes",
            sensitivity="eu-only", expected_json=b'"delivery"',
        ),
        request=Request(b'{"messages":[{"role":"user","content":"where is it?"}]}', input_hash="ab" * 16),
        original=b'{"order_id":7}',
        enqueued_at=1_795_563_215.5694,
        custom_id="order-7",
        keep_json=b'{"order_id":7,"shop":"north"}',
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )  # fmt: skip
    return msgspec.structs.replace(full, **changes)


ROUTE = Route("classification", 3, (), (Refusal("opus", "wall eu-only: region us"),), "tier 3, in order of preference")
FAILED = Attempt(1, "primary", "small", 1_795_563_216.0, 1000.12345, "timeout", None, 0)
SERVED = Attempt(2, "fallback", "groq-llama", 1_795_563_217.25, 812.5, "ok", "req_9", 15_000)


def result(**changes: object) -> Result:
    full = Result(
        item=item(),
        route=ROUTE,
        answer=Answer("delivery", "stop", BODY, model="llama-3.3", fingerprint="fp_1"),
        model="groq-llama",
        model_version="v1",
        provider="groq",
        account="groq",
        region="us",
        mode="now",
        usage=USAGE,
        cost_nano=15_000,
        cost_basis="metered",
        price_version="genai-2026-11",
        policy_version="pol-1",
        prompt_version="pr-1",
        attempts=(FAILED, SERVED),
        finished_at=1_795_563_218.0625,
        queue_ms=3.14159,
        call_ms=812.5,
        output_hash="cd" * 16,
        answer_usage=USAGE,
        sampled=True,
        sample_probability=0.02,
    )
    return msgspec.structs.replace(full, **changes)


COST = CostLine(
    entry_id="0123:0:2", item_id="0123456789abcdef0123456789abcdef", attempt=2, role="fallback", account="groq",
    model="groq-llama", model_version="v1", usage=USAGE, cost_nano=15_000, basis="metered",
    price_version="genai-2026-11", tenant="acme", task="classification", tier=3, at=1_795_563_218.0625,
)  # fmt: skip
ADJUSTMENT = CostLine(
    entry_id="small@v1:load", item_id=None, attempt=0, role="adjustment", account=None, model="small",
    model_version="v1", usage=Usage(), cost_nano=-2_500_000_000, basis="amortised", price_version="declared",
    tenant=None, task=None, tier=None, at=1_795_563_300.0,
)  # fmt: skip
UNREAD = DeadLetter(
    "fedcba98", Position("in/a.jsonl@9f:0-1000", 2, 999), "malformed", "not UTF-8 at byte 3", b"{\xff",
    finished_at=1_795_563_219.0,
)  # fmt: skip
REFUSED = DeadLetter(
    item().item_id, item().source, "attempts_exhausted", "6 attempts failed; the last: timeout", item().original,
    item=item(), route=ROUTE, custom_id="order-7", attempts=(FAILED,), cost_nano=1, maybe_paid=True,
    finished_at=1_795_563_219.0, price_version="genai-2026-11", policy_version="pol-1",
)  # fmt: skip
SCORE = Score("exact", "1", 1.0, True)

OTHER = ShadowAnswer("small", "v2", "billing", (SCORE,), Usage(), 5, 3.0, 0.05)
WHY = ("disagreement", "random share")

ROWS, BATCH = Encoder("label-messages", "rows"), Encoder("label-messages", "openai-batch")
RECORDS: dict[str, list[bytes]] = {
    "results.rows.jsonl": [ROWS.result(result()), ROWS.result(result(status="invalid_output", copied_from="77"))],
    "results.openai-batch.jsonl": [BATCH.result(result()), BATCH.result(result(item=item(generation=1)))],
    "costs.jsonl": [ROWS.cost(COST), ROWS.cost(ADJUSTMENT)],
    "quality.jsonl": [
        ROWS.quality(result(), SCORE),
        ROWS.quality(result(), SCORE, redact=True),
        ROWS.quality(result(), SCORE, shadow=OTHER),
    ],
    "dead_letters.jsonl": [ROWS.dead_letter(UNREAD), ROWS.dead_letter(REFUSED)],
    "review.jsonl": [
        ROWS.review(result(scores=(SCORE,), shadows=(OTHER,)), WHY),
        ROWS.review(result(scores=(SCORE,), shadows=(OTHER,)), WHY, redact=True),
    ],
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_the_golden_ones_byte_for_byte(name: str) -> None:
    """`PENSTOCK_GOLDEN=write` writes them anew; look at the difference before you commit it."""
    lines = b"".join(line + b"\n" for line in RECORDS[name])
    if os.environ.get("PENSTOCK_GOLDEN") == "write":
        (GOLDEN / name).write_bytes(lines)
    assert lines == (GOLDEN / name).read_bytes()


FIELDS = (  # noqa: SIM905 (as SURFACES writes them)
    "item_id run_id generation tenant subject unit episode traceparent task tier status finish_reason model "
    "model_version fingerprint provider account region mode experiment arm propensity sampled sample_probability "
    "prompt_version policy_version price_version route_reason refused attempts enqueued_at finished_at queue_ms "
    "call_ms tokens cost_usd cost_basis copied_from maybe_paid source input_hash output_hash custom_id answer_tokens"
).split()


@pytest.mark.parametrize("shape", get_args(Shape))
def test_every_field_of_the_surface_is_there_even_when_nothing_is_known(shape: Shape) -> None:
    """Null where unknown, in the order of SURFACES §3."""
    bare = item(attributes=Attributes(), custom_id=None, traceparent=None, keep_json=b"{}")
    line = json.loads(Encoder("r", shape).result(result(item=bare, account=None, region=None, attempts=())))
    assert list(line["penstock"]) == FIELDS
    assert [line["penstock"][f] for f in ("tenant", "experiment", "account", "copied_from")] == [None] * 4


@pytest.mark.parametrize(("said", "wall"), [("eu", "eu"), ("odd", "public"), (None, "public"), (None, None)])
def test_a_sample_says_what_its_item_said_and_the_wall_that_it_stood_behind(said: str | None, wall: str | None) -> None:
    """Apart: who said nothing was let through by the policy of that day, and another day's may refuse it."""
    made = result(item=item(attributes=Attributes(sensitivity=said)), route=msgspec.structs.replace(ROUTE, wall=wall))
    for record in (ROWS.quality(made, SCORE), ROWS.review(made, WHY)):
        told = json.loads(record)
        assert (told["sensitivity"], told["wall"]) == (said, wall)


def test_a_redacted_review_tells_nothing_that_was_said() -> None:
    """Nor anything that it could be guessed from: who knows the choices finds the answer to a hash."""
    secret = result(scores=(SCORE,), shadows=(OTHER,), output_hash="cd" * 16)
    whole, bare = (json.loads(ROWS.review(secret, WHY, redact=redact)) for redact in (False, True))
    hidden = {name for name in whole if whole[name] != bare[name]}
    assert hidden == {"input", "answer", "others", "expected", "custom_id", "input_hash", "output_hash"}
    assert all(not bare[name] for name in hidden)


@given(st.integers(-(10**18), 10**18))
def test_money_is_exact_and_plain(nano: int) -> None:
    """A JSON number without exponent, at most nine decimals, equal to the nano-dollars to the last digit."""
    text = usd(nano).decode()
    from decimal import Decimal

    assert Decimal(text).scaleb(9) == nano
    assert set(text) <= set("-.0123456789")
    assert len(text.partition(".")[2]) <= 9
    json.loads(text)


@given(st.floats(0, 4e9))
def test_times_are_iso_in_utc_with_milliseconds(unix: float) -> None:
    """To the nearest millisecond, whatever second came before."""
    from datetime import UTC, datetime

    stamps = Stamps()
    stamps.iso(unix + 1)
    text = stamps.iso(unix)
    assert stamps.iso(unix) == text
    assert len(text) == 24
    assert text.endswith("Z")
    read = datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC).timestamp()
    assert abs(read - unix) <= 0.000502


def test_the_users_columns_are_never_overwritten() -> None:
    """Kept columns named as ours get `input_` in front, again where that is taken; in nested values they stay."""
    keep = b'{"answer":1,"penstock":{"answer":2},"input_answer":3,"\\u0061nswer_2":4}'
    line = json.loads(ROWS.result(result(item=item(keep_json=keep))))
    assert line["answer"] == "delivery"
    assert line["input_answer"] == 3
    assert line["input_input_answer"] == 1
    assert line["input_penstock"] == {"answer": 2}
    assert "run_id" in line["penstock"]


def test_a_record_is_one_line_whatever_the_provider_sent() -> None:
    """Pretty-printed bodies, kept columns and answers with line breaks do not break the line."""
    answer = Answer("two\nlines", "stop", b'\n{\n "id": "x",\r\n "choices": []\n}\n')
    for encoder in (ROWS, BATCH):
        line = encoder.result(result(answer=answer, item=item(keep_json=b'{\n"a": 1\n}')))
        assert b"\n" not in line
        json.loads(line)


def test_an_answer_under_a_schema_is_a_struct() -> None:
    """In shape rows, for tasks with a schema; a kept invalid answer stays text."""
    encoder = Encoder("r", "rows", {"classification"})
    answers = {'{"topic": "a"}': {"topic": "a"}, "not json": "not json", '{"a": NaN}': '{"a": NaN}'}
    for text, wanted in answers.items():
        line = encoder.result(result(answer=Answer(text, "stop", BODY)))
        assert json.loads(line)["answer"] == wanted
    assert json.loads(ROWS.result(result(answer=Answer('{"topic": 1}', "stop", BODY))))["answer"] == '{"topic": 1}'


@pytest.mark.parametrize("text", ["[" * 1000, '{"a":' * 1000, "[" * 900 + "]" * 900, "[" * 100_000, "\ud800"])
def test_an_answer_that_nests_too_deeply_is_text(text: str) -> None:
    """It would end each commit of its lane, or each reader of the file: kept as text, it is one odd answer. One that is
    cut off in half a surrogate pair can be no text of a record either, and is marked there."""
    encoder = Encoder("r", "rows", {"classification"})
    line = encoder.result(result(answer=Answer(text, "stop", BODY), status="invalid_output"))
    assert json.loads(line)["answer"] == text.replace("\ud800", "?")
    sample = encoder.quality(result(answer=Answer(text, "stop", BODY)), SCORE)
    assert json.loads(sample)["output"] == text.replace("\ud800", "?")


@pytest.mark.parametrize("number", ["1e999", "1" * 5000])
def test_an_answer_with_a_number_that_readers_cannot_hold_is_text(number: str) -> None:
    """A model that went on and on must not make the whole file unreadable."""
    text = f'{{"x":{number}}}'
    line = Encoder("r", "rows", {"classification"}).result(result(answer=Answer(text, "stop", BODY)))
    assert msgspec.json.decode(line)["answer"] == text


def test_an_answer_of_many_values_is_a_struct_still() -> None:
    """Brackets in number are not brackets in depth."""
    encoder = Encoder("r", "rows", {"classification"})
    line = encoder.result(result(answer=Answer('{"a":[' + "[1]," * 500 + "[2]]}", "stop", BODY)))
    assert len(json.loads(line)["answer"]["a"]) == 501


def test_a_body_that_nests_too_deeply_to_be_written_anew_still_is_one_line() -> None:
    """Its line breaks become spaces."""
    body = b'{"choices":[],\r\n"x":' + b"[" * 2000 + b"]" * 2000 + b"}"
    line = BATCH.result(result(answer=Answer("yes", "stop", body)))
    assert body.replace(b"\r\n", b"  ") in line


@pytest.mark.parametrize(
    "keep", [b'{"a":1} ', b'{"a":1}\t\r', b' {"a":\r1}', b"{ }", b"{}", b'{ "answer":1 } ', b"{\n}"]
)
def test_a_rows_white_space_breaks_no_record(keep: bytes) -> None:
    """Rows are kept as their lines wrote them."""
    line = ROWS.result(result(item=item(keep_json=keep)))
    kept = {k: v for k, v in json.loads(line).items() if k not in ("answer", "penstock")}
    assert kept == {name.replace("answer", "input_answer"): value for name, value in json.loads(keep).items()}
    assert b"\r" not in line


@pytest.mark.parametrize(("unix", "text"), [(5.6e10, "3744"), (1.7e15, "9999"), (float("inf"), "9999"), (-5.0, "1970")])
def test_a_time_that_iso_does_not_know_is_the_nearest_it_knows(unix: float, text: str) -> None:
    """Whatever a producer's clock says, the record is written."""
    assert Stamps().iso(unix).startswith(text)


@given(st.binary(max_size=200))
def test_a_dead_letter_gives_the_original_bytes_back(original: bytes) -> None:
    """Text where it is UTF-8, else base64: a replay sends the very same bytes."""
    import base64

    line = json.loads(ROWS.dead_letter(msgspec.structs.replace(UNREAD, original=original)))
    text = line["original"]
    assert (base64.b64decode(text) if line["original_encoding"] == "base64" else text.encode()) == original


def test_a_results_request_id_is_that_of_the_call_that_answered() -> None:
    """Where a judge was asked after it, the id of the judge's call stood there: nobody finds the answer by that."""
    judged = Attempt(3, "judge", "judge", 1_795_563_218.0, 100.0, "ok", "req_judge", 1_000)
    made = msgspec.structs.replace(result(), attempts=(FAILED, SERVED, judged))
    line = msgspec.json.decode(Encoder("r", "openai-batch").result(made))
    assert line["response"]["request_id"] == "req_9"
