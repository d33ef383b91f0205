"""How the pretend provider behaves: latency, limits, faults, each for all models or for one by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from penstock.engine.errors import SpecError
from penstock.jobs.sandbox.cases import Truth
from penstock.jobs.sandbox.planted import Planted, by_name

PORT = 8899
"""Where `sandbox/model` in a job points (see `jobs.hosts`)."""


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Share of requests (0…1) that go wrong in each way; what is left is answered."""

    rate_limit: float = 0.0
    """429 with retry-after."""
    server_error: float = 0.0
    """500."""
    overloaded: float = 0.0
    """529 on Messages, 503 on chat completions."""
    spend_cap: float = 0.0
    """The 429 that no waiting mends."""
    hang: float = 0.0
    """Accepted, never answered, not charged."""
    cut: float = 0.0
    """The connection is cut; not charged."""
    invalid_json: float = 0.0
    """200 and half a body; charged."""
    refuse: float = 0.0
    """200 and a refusal; charged."""

    def pick(self, draw: float) -> str | None:
        """The fault that a number in 0…1 stands for."""
        for name in self.__struct_fields__:
            share: float = getattr(self, name)
            if draw < share:
                return name
            draw -= share
        return None


class Behaviour(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    """Latency is spread evenly over ± this."""
    tail: float = 0.0
    """Share of answers that take `tail_s` instead."""
    tail_s: float = 5.0
    rpm: int | None = None
    tpm: int | None = None
    input_tpm: int | None = None
    output_tpm: int | None = None
    concurrency: int | None = None
    faults: Faults = Faults()
    planted: Planted | None = None
    """How often answers are right, where the sandbox knows what is right; None: it tries to make sense only."""
    answers_as: str | None = None
    """What answers call their model; None: as it was asked for."""
    fingerprint: str = "fp_sandbox"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    default: Behaviour = Behaviour()
    models: dict[str, Behaviour] = {}
    """By the model's name in the request."""
    token: str | None = None
    """The only key that is taken; None: any, and none."""
    journal: str | None = None
    """A file that gains a line for every charged request, before the answer leaves."""
    seed: int = 0
    """Of faults, latencies and planted luck."""
    truth: Truth | None = None
    """Rows whose right answers are known, beside those that `penstock sandbox rows` makes."""

    def of(self, model: str) -> Behaviour:
        found = self.models.get(model)
        if found is None and (planted := by_name(model)) is not None:
            return msgspec.structs.replace(self.default, planted=planted)
        return found or self.default


def parse_faults(text: str) -> Faults:
    """`rate_limit=0.02,hang=0.001`, with 429, 500, 503 and 529 as other names. Raises `SpecError`."""
    found: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, share = part.partition("=")
        found[_ALIASES.get(name.strip(), name.strip().replace("-", "_"))] = share
    try:
        faults = msgspec.convert(found, Faults, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(Faults.__struct_fields__)
        raise SpecError(f"faults {text!r}: {error}. Known: {known}, as name=share") from error
    if not all(0.0 <= getattr(faults, name) <= 1.0 for name in faults.__struct_fields__):
        raise SpecError(f"faults {text!r}: a share lies between 0 and 1")
    return faults


_ALIASES = {"429": "rate_limit", "500": "server_error", "503": "overloaded", "529": "overloaded"}


def read_settings(path: str | Path) -> Settings:
    """Settings from a YAML or JSON file. Raises `SpecError`."""
    try:
        return msgspec.yaml.decode(Path(path).read_bytes(), type=Settings)
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise SpecError(f"sandbox settings: {error}", path=str(path)) from error
