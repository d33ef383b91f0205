"""The record structs of SURFACES §3, in the order of their fields. `connectors.records` fills them; the flat columns of
tables follow from them (`connectors.table_columns`)."""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.engine.items import Refusal, Role

Json = msgspec.Raw
"""JSON text that goes into the line as it is."""


class Tokens(msgspec.Struct, frozen=True, gc=False):
    input: int
    cached: int
    cache_write: int
    output: int
    reasoning: int


class AttemptLine(msgspec.Struct, frozen=True, gc=False):
    n: int
    role: Role
    model: str
    started_at: str
    ms: float
    outcome: str
    request_id: str | None
    cost_usd: Json


class Source(msgspec.Struct, frozen=True, gc=False):
    split: str
    position: int


class Provenance(msgspec.Struct, frozen=True, gc=False):
    """The object `penstock` of a result."""

    item_id: str
    run_id: str
    generation: int
    tenant: str | None
    subject: str | None
    unit: str | None
    episode: str | None
    traceparent: str | None
    task: str
    tier: int
    status: str
    finish_reason: str
    model: str
    model_version: str
    fingerprint: str | None
    provider: str
    account: str | None
    region: str | None
    mode: str
    experiment: str | None
    arm: str | None
    propensity: float | None
    sampled: bool
    sample_probability: float
    prompt_version: str
    policy_version: str
    price_version: str
    route_reason: str
    refused: tuple[Refusal, ...]
    attempts: list[AttemptLine]
    enqueued_at: str
    finished_at: str
    queue_ms: float
    call_ms: float
    tokens: Tokens
    cost_usd: Json
    cost_basis: str
    copied_from: str | None
    maybe_paid: bool
    source: Source
    input_hash: str
    output_hash: str
    custom_id: str | None
    """The label: also of a row, whose kept columns need not hold it."""
    answer_tokens: Tokens | None
    """Of the one call that gave the answer, where `tokens` are of all of them. May be null as whatever joins a record
    that was published: only then do readers of this schema take records of before."""


class Response(msgspec.Struct, frozen=True, gc=False):
    status_code: int
    request_id: str | None
    body: Json


class BatchLine(msgspec.Struct, frozen=True, gc=False):
    """A result in the shape of OpenAI's batch output."""

    id: str
    custom_id: str | None
    response: Response
    error: None
    penstock: Provenance


class CostRecord(msgspec.Struct, frozen=True, gc=False):
    entry_id: str
    item_id: str | None
    attempt: int
    role: str
    account: str | None
    model: str
    model_version: str
    tokens: Tokens
    usd: Json
    basis: str
    price_version: str
    tenant: str | None
    task: str | None
    tier: int | None
    at: str


class QualityRecord(msgspec.Struct, frozen=True, gc=False):
    item_id: str
    task: str
    scorer: str
    scorer_version: str
    score: float
    passed: bool
    judge_model: str | None
    input: Json
    output: str | None
    expected: Json
    sample_probability: float
    arm: str | None
    propensity: float | None
    model: str
    model_version: str
    prompt_version: str
    consent: str | None
    at: str
    role: Literal["primary", "shadow", "cascade"] = "primary"
    """Of the answer: the item's own; another model's to the same request; one that its cascade did not believe."""
    signal: float | None = None
    """Of a cascade: how sure the answer was (`engine.signals`)."""
    signal_by: str | None = None
    """Of a judge that was its signal: the judge's version."""
    sensitivity: str | None = None
    """As the item said it."""
    wall: str | None = None
    """The one that the item stood behind when it was sent. Null: there was none, or the record is older than this
    field. Where the item said no sensitivity, this says so: a later policy may put what says none elsewhere."""


class ScoreLine(msgspec.Struct, frozen=True, gc=False):
    scorer: str
    scorer_version: str
    score: float
    passed: bool
    judge_model: str | None


class OtherAnswer(msgspec.Struct, frozen=True, gc=False):
    model: str
    model_version: str
    role: str
    answer: str


class ReviewRecord(msgspec.Struct, frozen=True, gc=False):
    """A result for people to look at. Where the item's wall says `sample: redact`, what was said is left out, with all
    that it could be guessed from: input, answer, others, expected, custom_id and both hashes.

    No field has a name of a label's (`label`, `score`, `note`, `by`, `at`): a tool adds these, and the record comes
    back by `penstock label import`."""

    item_id: str
    run_id: str
    generation: int
    custom_id: str | None
    task: str
    why: list[str]
    """The rules that chose it, in words."""
    input: Json
    answer: str | None
    model: str
    model_version: str
    prompt_version: str
    status: str
    scores: list[ScoreLine]
    """Of the answer."""
    signal: float | None
    """Of a cascade: how sure the answer was."""
    others: list[OtherAnswer]
    """What other models answered to the same request."""
    expected: Json
    sensitivity: str | None
    """As the item said it."""
    wall: str | None
    """As in a quality record."""
    consent: str | None
    source: Source
    input_hash: str | None
    output_hash: str | None
    finished_at: str


class DeadLetterRecord(msgspec.Struct, frozen=True, gc=False):
    """`original`: the untouched bytes as text; `original_encoding` is `base64` where they are not UTF-8. Over 1 MB it
    is the head only: `original_length` and `original_hash` then tell of the whole."""

    item_id: str
    custom_id: str | None
    reason: str
    retryable: bool
    message: str
    attempts: list[AttemptLine]
    cost_usd: Json
    source: Source
    original: str
    original_encoding: Literal["utf-8", "base64"]
    original_length: int
    original_hash: str | None
    generation: int
    run_id: str
    tenant: str | None
    subject: str | None
    task: str | None
    tier: int | None
    refused: tuple[Refusal, ...]
    maybe_paid: bool
    price_version: str
    policy_version: str
    finished_at: str
    envelope: str | None = None
    """Key and headers of a topic's record (`connectors.reading.envelope`)."""
    prompt_version: str | None = None
    """Of what its calls asked."""
