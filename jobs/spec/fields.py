"""What the job file and the catalogue may say, field by field. `penstock schema` prints these as JSON Schema.

These structs are the file's; `jobs.spec.compiler` turns them into what the cluster knows (`workers.runspec.RunSpec`).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from penstock.connectors.settings import Connection, SinkSettings, SourceSettings
from penstock.engine.catalog import EngineValue, Limits, Protocol
from penstock.engine.items import Latency
from penstock.engine.review import Review
from penstock.workers.runspec import DEFAULT_STATE, Execution

Number = int | float
Text = str | int | float | bool
"""A value that may be written without quotes; it is used as text."""


class PriceFile(msgspec.Struct, frozen=True):
    """US dollars per million tokens. Unset cached prices are charged as plain input."""

    input_per_million: Number
    output_per_million: Number
    cached_per_million: Number | None = None
    cache_write_per_million: Number | None = None
    cache_write_1h_per_million: Number | None = None
    per_request: Number = 0
    """US dollars of one call, whatever its tokens."""
    version: str = "declared"


class AccountFile(msgspec.Struct, frozen=True):
    """One account at one provider. A known host's name as the account's name fills `protocol` and `base_url`."""

    protocol: Protocol | None = None
    base_url: str | None = None
    api_key: str | None = None
    """`env:NAME` or `file:/path`; never the key itself."""
    regions: list[str] = []
    no_train: bool = False
    limits: Limits | None = None
    timeout_s: Number | None = None
    provider: str | None = None


class Replicas(msgspec.Struct, frozen=True):
    min: int = 1
    max: int | None = None


OnOtherModel = Literal["tell", "refuse"]


class VersionFile(msgspec.Struct, frozen=True):
    id: str
    model: str
    revision: str | None = None
    price: PriceFile | Literal["free"] | None = None
    """Unless said, the model's; where that says none either, the table's for `model`."""
    on_other_model: OnOtherModel | None = None
    """Unless said, the model's."""
    fingerprint: str | None = None
    """What the provider has to answer with as `system_fingerprint`; another one is another model."""


class ModelFile(msgspec.Struct, frozen=True):
    """One model: at an account (named, or carried along in the account's fields), or on workers of our own."""

    name: str
    model: str | None = None
    revision: str | None = None
    versions: list[VersionFile] = []
    live: str | None = None
    on_other_model: OnOtherModel = "tell"
    """An answer that names another model than was asked for: told, or a failure."""
    fingerprint: str | None = None
    """Of its one version."""
    account: str | None = None
    worker: Literal["vllm"] | None = None
    hour_usd: Number | None = None
    """What one hour of one replica's machine costs, in US dollars."""
    replicas: Replicas | int | None = None
    engine: dict[str, EngineValue] = {}
    price: PriceFile | Literal["free"] | None = None
    regions: list[str] = []
    origin: str | None = None
    licence: str | None = None
    latency: Latency = "batch"
    no_train: bool = False
    quality: dict[str, Number] = {}
    context: int | None = None
    """Tokens of prompt and answer together."""
    lacks: list[Literal["tools", "images", "json_schema", "logprobs", "temperature", "top_p"]] = []
    default_max_tokens: int | None = None
    tokens_per_s: Number | None = None
    """Output tokens a second of one own replica, for the plan."""
    protocol: Protocol | None = None
    base_url: str | None = None
    api_key: str | None = None
    limits: Limits | None = None
    timeout_s: Number | None = None
    provider: str | None = None


class WallFile(msgspec.Struct, frozen=True):
    """What items of this sensitivity ask of a target; an empty wall asks nothing."""

    regions: list[str] = []
    origin: list[str] = []
    self_hosted: bool = False
    no_train: bool = False
    sample: Literal["keep", "redact", "never"] = "keep"
    licence: list[str] = []


class CatalogFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the company has; shared by all jobs. Everything here may also stand in a job file."""

    accounts: dict[str, AccountFile] = {}
    models: list[str | ModelFile] = []
    tiers: dict[str, list[str]] = {}
    walls: dict[str, WallFile | None] = {}
    unknown_wall: Literal["refuse", "public"] | None = None
    connections: dict[str, Connection] = {}
    """Name → a Kafka cluster, for sources and sinks that say `connection: name`."""


class PromptFile(msgspec.Struct, frozen=True):
    """Jinja2 templates. `messages`: a template whose value is a list of messages."""

    user: str | None = None
    system: str | None = None
    messages: str | None = None
    images: list[str] = []


class OutputFile(msgspec.Struct, frozen=True):
    """Exactly one of `choices` and `json_schema`."""

    choices: list[str | int | bool] | None = None
    json_schema: dict[str, Any] | None = None
    on_invalid: Literal["ask_again", "keep", "dead_letter"] = "ask_again"


ScorerType = Literal["exact", "regex", "json_schema", "fields", "numeric", "function", "judge"]


class ScorerFile(msgspec.Struct, frozen=True):
    type: ScorerType | None = None
    """May be left out where `function` says it."""
    expected: str | None = None
    pattern: str | None = None
    json_schema: dict[str, Any] | None = None
    tolerance: Number = 0
    function: str | None = None
    model: str | None = None
    """Of a judge: who scores."""
    rubric: str | None = None
    scale: list[int] | None = None
    """Of a judge: the worst and the best grade; 1 to 5 unless said."""
    choices: list[str | int] | None = None
    """Of a judge, instead of `scale`: its words, from the worst to the best."""
    pairwise: bool = False
    samples: int = 1
    params: dict[str, Any] = {}


class ShadowFile(msgspec.Struct, frozen=True):
    """Other models answer the same requests, for comparison."""

    models: list[str]
    """Names, or `model@version`."""
    share: Number


class ExploreFile(msgspec.Struct, frozen=True):
    """A share of the items tries models that are cheaper and not known well enough."""

    share: Number
    usd: Number
    """At most, in one run."""


class CascadeFile(msgspec.Struct, frozen=True):
    """The cheap answer is taken where its signal passes; else the next model is asked."""

    models: list[str]
    """From cheap to good. A list alone in place of all of this: signal and thresholds are as they were calibrated."""
    signal: Literal["validity", "logprob", "margin", "agreement", "judge"]
    threshold: Number | Literal["calibrated"] | None = None
    """`calibrated`: as `penstock cascade calibrate` found it, model by model."""
    samples: int = 3
    """Of `agreement`: answers of each model but the last."""
    judge: ScorerFile | None = None
    """Of `judge`: who scores an answer before it is taken; fields as of a scorer of this type."""
    on_drift: Literal["stop", "tell"] | None = None
    """Of a calibrated one: what follows where accepted answers are shown to be worse than promised; `stop` unless
    said."""


class TaskFile(msgspec.Struct, frozen=True, kw_only=True):
    tier: int | None = None
    min_quality: Number | None = None
    models: list[str] | None = None
    prompt: str | PromptFile | None = None
    output: OutputFile | None = None
    params: dict[str, Any] = {}
    sample: Number = 0
    scorers: list[ScorerType | ScorerFile] = []
    timeout_s: Number | None = None
    reuse: bool = False
    shadow: ShadowFile | None = None
    explore: ExploreFile | None = None
    cascade: list[str] | CascadeFile | None = None


class RowFile(msgspec.Struct, frozen=True):
    """How a plain row becomes an item; values are Jinja2 templates."""

    id: str | None = None
    keep: list[str] | None = None
    attributes: dict[str, Text] = {}


class ArmFile(msgspec.Struct, frozen=True):
    """What it does not say is as the task has it."""

    name: str
    weight: Number = 1
    model: str | None = None
    """Goes first; the others stay its fallbacks."""
    version: str | None = None
    """`model@version`: this model is asked in this version."""
    prompt: str | PromptFile | None = None
    params: dict[str, Any] = {}
    """Over the task's."""


class ExperimentFile(msgspec.Struct, frozen=True, kw_only=True):
    """Units of a task are divided among arms. The first arm is what the others are compared with."""

    name: str
    arms: list[ArmFile]
    task: str | None = None
    """May be left out where the job has one task."""
    unit: Literal["unit", "item"] = "unit"
    guardrails: list[Literal["quality", "error_rate", "cost", "latency", "refusals"]] = []
    """An arm that is shown worse than the first by one of these stops the experiment."""


class RuleFile(msgspec.Struct, frozen=True):
    when: dict[str, Any]
    use: list[str] | None = None
    tier: int | None = None
    min_quality: Number | None = None


class BudgetFile(msgspec.Struct, frozen=True):
    usd: Number
    per: Literal["run", "day", "month"] = "run"
    tenant: str | None = None
    role: Literal["judge", "shadow"] | None = msgspec.field(default=None, name="for")
    """Only for these calls."""


class SinksFile(msgspec.Struct, frozen=True):
    results: str | SinkSettings
    costs: str | SinkSettings | None = None
    quality: str | SinkSettings | None = None
    dead_letters: str | SinkSettings | None = None
    review: str | SinkSettings | None = None
    """The results that `review:` chooses for people."""


class JobFile(CatalogFile, frozen=True, kw_only=True):
    """One job."""

    source: str | SourceSettings
    sinks: str | SinksFile
    name: str | None = None
    catalog: str | None = None
    vars: dict[str, Text] = {}
    """Name → default, or `required`."""
    shape: Literal["rows", "openai-batch"] | None = None
    row: RowFile | None = None
    tasks: dict[str, TaskFile | None] = {}
    rules: list[RuleFile] = []
    experiments: list[ExperimentFile] = []
    budgets: list[BudgetFile] | BudgetFile | None = None
    max_dead_letters: Number | None = None
    """Integer: a count. Fraction: a share of the finished items."""
    max_attempts: int | None = None
    """Attempts of one item over all candidates."""
    state: str = DEFAULT_STATE
    on_duplicate: Literal["allow", "dead_letter"] | None = None
    execution: Execution | None = None
    feedback: str | SourceSettings | None = None
    """Where outcomes come from that are learned later."""
    review: Review | None = None
    """Which results people shall look at (`penstock label`)."""
    # Shorthand for a job with one task:
    tier: int | None = None
    min_quality: Number | None = None
    prompt: str | PromptFile | None = None
    output: OutputFile | None = None
    params: dict[str, Any] = {}
    sample: Number = 0
    scorers: list[ScorerType | ScorerFile] = []
    reuse: bool = False
    shadow: ShadowFile | None = None
    explore: ExploreFile | None = None
    cascade: list[str] | CascadeFile | None = None


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the job file; `$defs` holds the catalogue's as `CatalogFile`."""
    (job, _catalog), components = msgspec.json.schema_components([JobFile, CatalogFile], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Penstock job file",
        **job,
        "$defs": _closed(components),
    }


def _closed(components: dict[str, Any]) -> dict[str, Any]:
    """The loader refuses unknown fields everywhere, so the schema does too."""
    for component in components.values():
        if component.get("type") == "object" and "properties" in component:
            component["additionalProperties"] = False
    return components
