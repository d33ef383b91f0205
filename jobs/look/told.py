"""Records as they are read back: as much of SURFACES §3 as commands tell of, leniently.

Unknown fields are left alone (a newer Penstock may have written them); a missing one has its default. Money is read
as a JSON number of dollars and kept in nano-dollars.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal, TypeVar

import msgspec

from penstock.connectors.reading.envelope import unseal
from penstock.engine.errors import Corrupt
from penstock.engine.items import NANO_PER_USD

T = TypeVar("T")


class TriedTold(msgspec.Struct, frozen=True):
    """One attempt."""

    n: int = 0
    role: str = ""
    model: str = ""
    started_at: datetime | None = None
    ms: float = 0.0
    outcome: str = ""
    request_id: str | None = None
    cost_usd: float = 0.0


class RefusedTold(msgspec.Struct, frozen=True):
    model: str = ""
    reason: str = ""


class SourceTold(msgspec.Struct, frozen=True):
    split: str = ""
    position: int = 0


class TokensTold(msgspec.Struct, frozen=True):
    input: int = 0
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0


class Told(msgspec.Struct, frozen=True):
    """The `penstock` object of a result."""

    item_id: str
    custom_id: str | None = None
    run_id: str = ""
    generation: int = 0
    tenant: str | None = None
    subject: str | None = None
    unit: str | None = None
    episode: str | None = None
    traceparent: str | None = None
    task: str | None = None
    tier: int | None = None
    sensitivity: str | None = None
    status: str = ""
    finish_reason: str | None = None
    model: str | None = None
    model_version: str | None = None
    fingerprint: str | None = None
    provider: str | None = None
    account: str | None = None
    region: str | None = None
    mode: str | None = None
    experiment: str | None = None
    arm: str | None = None
    propensity: float | None = None
    prompt_version: str | None = None
    policy_version: str | None = None
    price_version: str | None = None
    route_reason: str | None = None
    refused: tuple[RefusedTold, ...] = ()
    attempts: tuple[TriedTold, ...] = ()
    enqueued_at: datetime | None = None
    finished_at: datetime | None = None
    queue_ms: float | None = None
    call_ms: float | None = None
    tokens: TokensTold | None = None
    cost_usd: float = 0.0
    cost_basis: str | None = None
    copied_from: str | None = None
    maybe_paid: bool = False
    source: SourceTold | None = None
    sampled: bool = False
    sample_probability: float | None = None
    input_hash: str | None = None
    output_hash: str | None = None
    answer_tokens: TokensTold | None = None
    """None: of an older release."""


class ResultTold(msgspec.Struct, frozen=True):
    """A result of either shape."""

    penstock: Told
    custom_id: str | None
    answer: str


class LetterTold(msgspec.Struct, frozen=True):
    item_id: str
    reason: str
    message: str = ""
    custom_id: str | None = None
    retryable: bool = False
    attempts: tuple[TriedTold, ...] = ()
    cost_usd: float = 0.0
    source: SourceTold | None = None
    original: str = ""
    original_encoding: Literal["utf-8", "base64"] = "utf-8"
    original_length: int = 0
    original_hash: str | None = None
    envelope: str | None = None
    generation: int = 0
    task: str | None = None
    tier: int | None = None
    tenant: str | None = None
    refused: tuple[RefusedTold, ...] = ()
    maybe_paid: bool = False
    finished_at: datetime | None = None

    @property
    def bytes(self) -> bytes:
        """The record as it came in, as far as it was kept."""
        return base64.b64decode(self.original) if self.original_encoding == "base64" else self.original.encode()

    @property
    def is_whole(self) -> bool:
        """False: only the head was kept (over 1 MB), or its topic took not all of the record's key and headers."""
        return len(self.bytes) >= self.original_length and not unseal(self.envelope).cut


class CostTold(msgspec.Struct, frozen=True):
    entry_id: str
    item_id: str | None = None
    attempt: int = 0
    role: str = ""
    account: str | None = None
    model: str = ""
    model_version: str | None = None
    tokens: TokensTold | None = None
    usd: float = 0.0
    basis: str = "metered"
    price_version: str | None = None
    tenant: str | None = None
    task: str | None = None
    tier: int | None = None
    at: datetime | None = None

    @property
    def nano(self) -> int:
        return nano(self.usd)


class SampleTold(msgspec.Struct, frozen=True):
    """A quality sample, without what was said."""

    item_id: str
    task: str | None = None
    scorer: str = ""
    scorer_version: str = ""
    score: float = 0.0
    passed: bool = False
    judge_model: str | None = None
    sample_probability: float = 0.0
    arm: str | None = None
    model: str | None = None
    model_version: str | None = None
    prompt_version: str | None = None
    role: str = "primary"
    """`shadow`: of another model's answer to the same request; `cascade`: of one that was not believed."""
    signal: float | None = None
    """Of a cascade: how sure the answer was."""
    signal_by: str | None = None
    """Of a judge that was its signal: the judge's version."""
    at: datetime | None = None
    """When the result that it is of was finished."""


def nano(usd: float) -> int:
    """Dollars as a record writes them (nine decimals at most) → whole nano-dollars."""
    return round(usd * NANO_PER_USD)


Line = bytes
"""One record as a line of nested JSON, whatever the file's format."""


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message = _Message()


class _Body(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()


class _Response(msgspec.Struct, frozen=True):
    body: _Body = _Body()


class _Either(msgspec.Struct, frozen=True):
    """A line of either shape. (A user's kept column named `custom_id` may hold anything.)"""

    penstock: Told
    custom_id: msgspec.Raw = msgspec.Raw(b"null")
    answer: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()


class _Block(msgspec.Struct, frozen=True):
    """A result without its answer and columns, which are passed over."""

    penstock: Told


_block = msgspec.json.Decoder(_Block)
_sample = msgspec.json.Decoder(SampleTold)
_either = msgspec.json.Decoder(_Either)
_letter = msgspec.json.Decoder(LetterTold)
_cost = msgspec.json.Decoder(CostTold)


def result(line: Line) -> ResultTold:
    """Raises `Corrupt` where the record has no `penstock` object."""
    record = _read(_either, line, "results")
    label = record.penstock.custom_id or _text_or_none(record.custom_id)
    return ResultTold(record.penstock, label, _answer(record))


def blocks(lines: Iterable[Line]) -> Iterator[Told]:
    """What results say beside the answer."""
    for line in lines:
        yield _read(_block, line, "results").penstock


def samples(lines: Iterable[Line]) -> Iterator[SampleTold]:
    for line in lines:
        yield _read(_sample, line, "quality")


def letters(lines: Iterable[Line]) -> Iterator[LetterTold]:
    for line in lines:
        yield _read(_letter, line, "dead letters")


def costs(lines: Iterable[Line]) -> Iterator[CostTold]:
    for line in lines:
        yield _read(_cost, line, "costs")


def _text_or_none(raw: msgspec.Raw) -> str | None:
    value: object = msgspec.json.decode(raw)
    return value if isinstance(value, str) else None


def _answer(record: _Either) -> str:
    """Text of the answer: the column `answer` (JSON where it is a struct), or the first choice of a completion."""
    if raw := bytes(record.answer):
        return msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode()
    try:
        choices = msgspec.json.decode(record.response or b"{}", type=_Response).body.choices
    except msgspec.ValidationError:
        return ""
    return (choices[0].message.content or "") if choices else ""


def _read(decoder: msgspec.json.Decoder[T], line: Line, where: str) -> T:
    try:
        return decoder.decode(line)
    except msgspec.DecodeError as error:
        told = f"a record in {where} is not one of ours ({error})"
        raise Corrupt(f"{told}; was the file written or changed by another tool?") from error
