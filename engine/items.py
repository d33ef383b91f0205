"""What flows: `Item` → `Route` → `Call` → `Outcome`. How items end is in `results`.

Every struct is frozen. JSON that belongs to the user travels as `bytes` (fields named `…_json`): it is never decoded
unless a decision needs it, and it may cross a process border inside msgpack.

Money is an integer number of **nano-dollars** (1e-9 USD, as decimal(18,9) in Parquet); prices are nano-dollars per
million tokens. So sums are exact, whatever the order. Times are Unix seconds (float); durations end in `_s` or `_ms`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

NANO_PER_USD = 1_000_000_000
"""Nano-dollars in one US dollar."""

Role = Literal["primary", "retry", "fallback", "hedge", "cascade", "judge", "shadow"]
StepKind = Literal["judge", "shadow"]
"""Roles of calls that an item owes beside its answer (`engine.flow.steps`)."""
STEP_ROLES: frozenset[str] = frozenset({"judge", "shadow"})
Latency = Literal["realtime", "batch"]


class Position(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Where an item stands in its input: the split's stable name, its ordinal in the plan, and a position in it.

    `position` grows strictly along a split and may have gaps (byte offset of a line, row number, Kafka offset).
    It is absolute in the *object*, so the identity does not depend on how objects are split.
    """

    split: str
    ordinal: int
    position: int


class Attributes(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What the submitter says of one item. All optional; see SURFACES §1."""

    tier: int | None = None
    task: str | None = None
    sensitivity: str | None = None
    latency: Latency | None = None
    min_quality: float | None = None
    max_cost_usd: float | None = None
    deadline: float | None = None
    """Unix seconds."""
    priority: int | None = None
    tenant: str | None = None
    subject: str | None = None
    unit: str | None = None
    episode: str | None = None
    expected_json: bytes | None = None
    consent: str | None = None
    purpose: str | None = None


class Request(msgspec.Struct, frozen=True, gc=False):
    """One canonical request: an OpenAI chat-completions body without `model` and without our metadata keys."""

    body_json: bytes
    model: str | None = None
    """A pin: a catalogue name; None is `auto`."""
    max_tokens: int | None = None
    """The output ceiling the request asks for, if any."""
    temperature: float | None = None
    n: int = 1
    images: int = 0
    needs: tuple[str, ...] = ()
    """Capabilities a target must have: `tools`, `images`, `json_schema`, `logprobs`."""
    input_hash: str = ""
    """SHA-256, its first 128 bits (hex), of `body_json` and the pin: equal requests have equal hashes."""
    image_bytes: int = 0
    """Bytes of `body_json`, at least, that are pictures written into its messages: they are no text."""


class Exposure(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The arm of an experiment that an item came into when it was read, as far as it concerns its route and records."""

    experiment: str = ""
    """Empty: the experiment was stopped; the item is done as its first arm is, and counted nowhere."""
    arm: str = ""
    propensity: float = 1.0
    model: str | None = None
    version: tuple[str, str] | None = None
    prompt_version: str = ""
    """Empty: the task's own."""
    params: str = ""
    """Hash of the arm's own parameters; empty: it has none."""

    def asked(self, prompt: str) -> str:
        """The prompt version of its items; `prompt`: the task's. With other parameters it is another thing to measure:
        what is cut off after five tokens says nothing of the model."""
        own = self.prompt_version or prompt
        return f"{own}+{self.params}" if self.params else own


class Item(msgspec.Struct, frozen=True, gc=False):
    """One unit of work as it was read."""

    item_id: str
    """hash(run, object and content version, absolute position), 32 hex digits."""
    source: Position
    attributes: Attributes
    request: Request
    original: bytes
    """The record as it was read, for dead letters and the shelf (at most 1 MB is kept)."""
    enqueued_at: float
    custom_id: str | None = None
    keep_json: bytes = b"{}"
    """JSON object of the kept columns (shape `rows`)."""
    generation: int = 0
    traceparent: str | None = None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    original_length: int = 0
    """Full length in bytes where `original` holds only the head; 0: it is whole."""
    original_hash: str = ""
    """blake2b-128 (hex) of the whole record where `original` holds only the head."""
    is_request: bool = False
    """The record is an openai-batch line; else it is a row."""
    exposure: Exposure | None = None


class Refusal(msgspec.Struct, frozen=True, gc=False):
    model: str
    reason: str


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One permitted target, in the order in which it would be tried."""

    model: str
    version: str
    pool: str
    """Whose workers serve it: `api:<account>` or `vllm:<model>@<version>`."""
    reason: str = ""
    experiment: str = ""
    """The rollout or experiment that chose this version; empty: nobody did."""
    arm: str = ""
    propensity: float = 1.0
    """The chance with which the item came into this arm."""

    @property
    def target(self) -> str:
        """Whose health counts. While two versions are compared each has its own: a broken one stops only itself."""
        return f"{self.model}@{self.version}" if self.experiment else self.model


class Route(msgspec.Struct, frozen=True, gc=False):
    """Where an item may go, in order, and why; what was refused, and why."""

    task: str
    tier: int
    candidates: tuple[Candidate, ...]
    refused: tuple[Refusal, ...]
    reason: str
    wall: str | None = None
    walled: int = 0
    """How many of the refused the wall forbids; they stand first."""
    cascade: bool = False
    """Its task's cascade: the candidates stand from cheap to good, and a doubtful answer goes on to the next."""


class Call(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One attempt, handed from a lane to a worker."""

    item_id: str
    generation: int
    attempt: int
    role: Role
    model: str
    version: str
    upstream: str
    """The provider's (or engine's) own name of the model."""
    body_json: bytes
    task: str
    """Names the output constraint in `CallChunk.outputs`."""
    max_tokens: int
    timeout_s: float
    est_input_tokens: int
    max_input_tokens: int
    deadline: float | None = None
    realtime: bool = False
    traceparent: str | None = None
    lacks: tuple[str, ...] = ()
    """What the model does not take (`catalog.Model.lacks`)."""
    made_by: tuple[str, str] = ("", "")
    """(policy, prompt): the versions that its record names, whoever has the lane when the answer comes."""

    @property
    def call_id(self) -> str:
        return f"{self.item_id}:{self.generation}:{self.attempt}"


class OutputSpec(msgspec.Struct, frozen=True, gc=False):
    """What an answer must look like: one of `choices`, or valid against `json_schema` (JSON text)."""

    choices: tuple[str, ...] | None = None
    json_schema: bytes | None = None


class CallChunk(msgspec.Struct, frozen=True, gc=False):
    """What `lane.take` returns. After `send_until` (Unix seconds) the worker must ask the lane again before a send."""

    run: str
    lane: int
    epoch: tuple[int, int]
    send_until: float
    calls: list[Call]
    outputs: dict[str, OutputSpec] = {}
    tariffs: dict[str, bytes] = {}
    """`model@version` → what these calls cost (`engine.flow.settle.Priced`): the job may be edited before they land."""


class Usage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Tokens of one call. `input` is all of the input, cached and cache-written tokens included; `output` includes
    reasoning. (Providers differ: `workers.wire` translates.)"""

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0


FailureKind = Literal[
    "connection",  # never reached the provider: not billed
    "timeout",  # sent, no answer in time: may be billed
    "rate_limited",  # requests or tokens a minute: wait
    "daily_limit",  # long window: try another target
    "overloaded",  # 529, 503: slow down
    "server_error",  # 5xx
    "spend_cap",  # the account's own money is gone: held until somebody pays it in
    "auth",  # 401, 403: the account is unusable
    "not_found",  # unknown model at the provider
    "bad_request",  # 400, 422: this request can't work there
    "too_long",  # longer than the context
    "refused",  # the provider's policy refused this content
    "invalid_response",  # 200 with a body that can't be read: billed
    "invalid_output",  # an answer that misses choices or schema, or that its host could not read: billed
    "other_model",  # an answer of another model than was asked for, where its version refuses such: billed
    "engine_died",
    "worker_lost",
    "not_sent",  # the right to send lapsed, or it was given back (`retry_after_s`: its account pauses): not billed
    "cancelled",
]


class Failure(msgspec.Struct, frozen=True, gc=False):
    kind: FailureKind
    message: str
    status: int | None = None
    retry_after_s: float | None = None
    may_be_billed: bool = False


class Answer(msgspec.Struct, frozen=True, gc=False):
    text: str
    finish_reason: str
    body_json: bytes
    """The response as a chat-completions body (what the record's `response.body` shows)."""
    model: str = ""
    """As the provider names it in the answer."""
    fingerprint: str | None = None
    status_code: int = 200


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one `Call`. Exactly one of `answer` and `failure` is set, except for `other_model` and
    `invalid_output`, which have both (unless the host kept back what it could not read). A failed call may still carry
    usage (it was billed)."""

    item_id: str
    generation: int
    attempt: int
    started_at: float
    ms: float
    answer: Answer | None = None
    failure: Failure | None = None
    usage: Usage | None = None
    request_id: str | None = None
    worker: str = ""
    cost_nano: int | None = None
    """Where it is known better than by the price: a provider that tells its charge. Else `pricing` decides."""
    estimated: bool = False
    """Usage and cost are what the call may have used at most: the provider said nothing."""
    surcharge_percent: int = 0
    """On the price, where that decides."""
    engine_ms: float = 0.0
    """Of an engine of our own: this call's part of its time (`workers.engine_time`). 0: not known."""
