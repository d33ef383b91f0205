"""What the company has: accounts, models, pinned versions, prices, walls. Frozen settings; looked up by name.

The structs are what the catalogue file says after `jobs.spec` has resolved names, files and price tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from penstock.engine.items import Latency

Protocol = Literal["openai", "anthropic"]
REFUSABLE = frozenset({"temperature", "top_p"})
"""Parameters that some models answer with 400. A model that `lacks` one is asked without it."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of one account, whoever uses it. None: not limited by us (the provider's headers still are obeyed)."""

    rpm: int | None = None
    """Requests a minute."""
    input_tpm: int | None = None
    output_tpm: int | None = None
    tpm: int | None = None
    """Input and output tokens together, a minute."""
    concurrency: int = 256
    """Calls in flight. 256 keeps a 200 ms provider at 1,280 requests/s and is under every provider's socket limit."""

    @property
    def rated(self) -> bool:
        """There is a limit a minute."""
        return any((self.rpm, self.tpm, self.input_tpm, self.output_tpm))


class Account(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    protocol: Protocol
    base_url: str
    api_key: str | None = None
    """A reference, never a key: `env:NAME` or `file:/path`. Resolved by the worker that sends."""
    regions: tuple[str, ...] = ()
    no_train: bool = False
    limits: Limits = Limits()
    timeout_s: float = 600.0
    """A guess: long reasoning answers take minutes; DeepSeek holds a connection for 30."""
    provider: str = ""


class PriceAbove(msgspec.Struct, frozen=True, omit_defaults=True):
    """The price of a whole call (all its tokens) whose input is longer than `start` tokens."""

    start: int
    input: int
    output: int
    cached: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None


class Price(msgspec.Struct, frozen=True, omit_defaults=True):
    """Nano-dollars per million tokens. None: charged as plain input (cached, cache_write)."""

    input: int = 0
    output: int = 0
    cached: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    version: str = "declared"
    above: tuple[PriceAbove, ...] = ()
    """Dearer prices of long prompts, by rising `start`; the last one whose `start` the input passes holds."""
    per_request: int = 0
    """Nano-dollars of a call, whatever its tokens."""


class Version(msgspec.Struct, frozen=True, omit_defaults=True):
    """One pinned version of a model: what the provider or engine calls it, and the revision."""

    id: str
    model: str
    revision: str | None = None
    price: Price | None = None
    """None: the model's. Read by `pricing.price_of` alone."""
    on_other_model: Literal["tell", "refuse"] = "tell"
    """What becomes of an answer that names another model than `model` (`naming.named`), or has another fingerprint."""
    fingerprint: str | None = None
    """What the provider's answers say of its configuration, where that is pinned too."""


EngineValue = str | int | float | bool


class Model(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    versions: tuple[Version, ...]
    live: str
    """The id of the version in use."""
    account: str | None = None
    worker: Literal["vllm"] | None = None
    price: Price | None = None
    """Of versions that have none of their own. Read by `pricing.price_of` alone."""
    hour_usd: float | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    engine: dict[str, EngineValue] = {}
    regions: tuple[str, ...] = ()
    origin: str | None = None
    licence: str | None = None
    latency: Latency = "batch"
    """`realtime`: fast enough for items with latency: realtime."""
    no_train: bool = False
    quality: dict[str, float] = {}
    """Declared quality per task (0…1), until measured."""
    context: int | None = None
    """Tokens of prompt and answer together; None: unknown."""
    lacks: tuple[str, ...] = ()
    """Capabilities this model does not have: `tools`, `images`, `json_schema`, `logprobs`; and parameters that it
    refuses (`REFUSABLE`)."""
    default_max_tokens: int | None = None
    tokens_per_s: float | None = None
    """Output tokens a second of one own replica, declared for `plan`; measured runs replace it."""

    @property
    def self_hosted(self) -> bool:
        return self.worker is not None

    @property
    def live_version(self) -> Version:
        return self.version(self.live)

    def version(self, id: str) -> Version:
        """Raises `KeyError`."""
        for version in self.versions:
            if version.id == id:
                return version
        raise KeyError(f"{self.name}@{id}")

    @property
    def pool(self) -> str:
        return self.pool_of(self.live)

    def pool_of(self, version: str) -> str:
        """Whose workers serve it. An account's models share its workers; a version of our own has its own engine."""
        return f"vllm:{self.name}@{version}" if self.worker else f"api:{self.account}"


def is_own(pool: str) -> bool:
    """Whether an engine of our own serves it: nobody bills its calls one by one."""
    return pool.startswith("vllm:")


class Wall(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an item of this sensitivity asks of a target. Empty tuples ask nothing."""

    name: str
    regions: tuple[str, ...] = ()
    origin: tuple[str, ...] = ()
    self_hosted: bool = False
    no_train: bool = False
    sample: Literal["keep", "redact", "never"] = "keep"
    licence: tuple[str, ...] = ()


def splits(target: str) -> Iterator[tuple[str, str]]:
    """At each `@`, the last first."""
    for at in range(len(target) - 1, -1, -1):
        if target[at] == "@":
            yield target[:at], target[at + 1 :]


class Catalog(msgspec.Struct, frozen=True, omit_defaults=True):
    accounts: dict[str, Account]
    models: dict[str, Model]
    tiers: dict[int, tuple[str, ...]]
    walls: dict[str, Wall] = {}
    unknown_wall: Literal["refuse", "public"] = "refuse"
    """What happens where walls are declared and an item's sensitivity is missing, null or unnamed."""

    def parted(self, target: str) -> tuple[str, str]:
        """Who is meant by `model@version`, or by a model alone (version empty). Names of either may hold an `@`, which
        parts them only where both are there. What names nobody comes back whole."""
        for name, version in splits(target):
            if name in self.models and any(each.id == version for each in self.models[name].versions):
                return name, version
        return target, ""

    def redacts(self, wall: str | None) -> bool | None:
        """How a quality sample of this wall is written: False whole, True redacted, None not at all."""
        rule = self.walls[wall].sample if wall is not None and wall in self.walls else "keep"
        return {"keep": False, "redact": True, "never": None}[rule]
