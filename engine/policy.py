"""The policy: which task an item is, which tier it belongs to, and which rules bend that."""

from __future__ import annotations

from typing import Literal

import msgspec

Scalar = str | int | float | bool


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the answer must look like. `json_schema` is JSON text."""

    choices: tuple[str, ...] | None = None
    json_schema: bytes | None = None
    on_invalid: Literal["ask_again", "keep", "dead_letter"] = "ask_again"


class Prompt(msgspec.Struct, frozen=True, omit_defaults=True):
    """Jinja2 sources. `messages` is an expression that yields a list of messages; else `system` and `user`."""

    user: str | None = None
    system: str | None = None
    messages: str | None = None
    images: tuple[str, ...] = ()
    version: str = ""
    """Hash of the sources: `prompt_version` in the records."""


class Scorer(msgspec.Struct, frozen=True, omit_defaults=True):
    type: Literal["exact", "regex", "json_schema", "fields", "numeric", "function", "judge"]
    expected: str | None = None
    """A template (rows) for the expected answer; None: the item's `expected` attribute."""
    pattern: str | None = None
    json_schema: bytes | None = None
    tolerance: float = 0.0
    function: str | None = None
    """`module:name`, called with (answer: str, expected: object) and returning a number 0…1 or a bool."""
    model: str | None = None
    """Of a judge: the model that scores, by its name in the catalogue."""
    rubric: str | None = None
    """Of a judge: what a good answer is, in words."""
    choices: tuple[str, ...] = ()
    """Of a judge: what it may say, from the worst to the best; evenly spread over 0…1."""
    pairwise: bool = False
    """Of a judge: it says which of two answers is better, twice, with the positions swapped."""
    samples: int = 1
    """Of a judge: how often it is asked; the mean counts."""
    params_json: bytes = b"{}"
    """Of a judge: parameters of its request."""


class Shadow(msgspec.Struct, frozen=True, omit_defaults=True):
    """These answer the same request as well, for comparison; nothing of it is ever a result."""

    models: tuple[str, ...]
    """Names in the catalogue, each with `@version` where it is not the live one."""
    share: float
    """Of the items, chosen by a stable hash of their id."""
    whole: bool = False
    """An item that can't be answered by all of them now (the run stops, or its money is spent) stays undone, and is
    asked anew when the run goes on: an evaluation, in which a row without pairs is worth nothing."""


class Explore(msgspec.Struct, frozen=True, omit_defaults=True):
    """Items that go to a model whose quality is not known well enough, to learn it; only where it would be cheaper."""

    share: float
    """Of the items, chosen by a stable hash of their id."""
    usd: float
    """At most, in one run."""


NEVER = 2.0
"""A threshold above every signal."""
Signal = Literal["validity", "logprob", "margin", "agreement", "judge"]


class Promise(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a calibration promised of the answers that its cascade accepts."""

    calibration: int
    """Its version."""
    scorer: str
    """Who says what is right: `name@version`, as cells name it."""
    min_quality: float
    stops: bool = True
    """Once it is shown not to hold, no answer but the last model's is taken."""


class Cascade(msgspec.Struct, frozen=True, omit_defaults=True):
    """The cheap answer is taken where its signal says that it is good; else the item goes on to the next model. The
    last one's answer is taken as it is."""

    models: tuple[str, ...]
    """From cheap to good."""
    signal: Signal
    threshold: float = 0.0
    """An answer whose signal is at least this is taken. (Of no use to `validity`.)"""
    samples: int = 1
    """Of `agreement`: how often each model but the last is asked at most."""
    thresholds: dict[str, float] = {}
    """`target_name` → its own threshold, as it was calibrated: another version is sure of other things."""
    judge: Scorer | None = None
    """Whose score of the answer is the signal `judge`."""
    promise: Promise | None = None
    """Of a calibration that the thresholds came from."""

    def bar(self, target: str, by: str = "") -> float:
        """`target`: `model@version`. `by`: the judge's version."""
        return self.thresholds.get(target_name(target, by), self.threshold)

    def vouches_for(self, quality: float) -> bool:
        """Is what it accepts known to be as good as asked? Of a threshold that was set by hand nothing is known; where
        no answer but the last model's is taken, nothing has to be."""
        if quality <= 0.0:
            return True
        if self.promise is None:
            return self.threshold >= NEVER
        return quality <= self.promise.min_quality


def target_name(target: str, by: str) -> str:
    """What a threshold was calibrated for: answers of this `model@version`, judged by this version of the judge."""
    return f"{target} by {by}" if by else target


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    tier: int | None = None
    min_quality: float | None = None
    models: tuple[str, ...] | None = None
    prompt: Prompt | None = None
    output: Output | None = None
    params_json: bytes = b"{}"
    """Sampling parameters as JSON (max_tokens, temperature, …): defaults under what a request line says itself."""
    max_tokens: int | None = None
    """The output ceiling from params; 1,024 where nobody sets one."""
    temperature: float | None = None
    sample: float = 0.0
    scorers: tuple[Scorer, ...] = ()
    timeout_s: float | None = None
    reuse: bool = False
    """Answer identical requests once even where the temperature is not 0."""
    shadow: Shadow | None = None
    explore: Explore | None = None
    cascade: Cascade | None = None

    @property
    def sample_share(self) -> float:
        """Share of results that become quality samples: one that is compared with a shadow's answer is one too."""
        return self.sample if self.shadow is None else max(self.sample, self.shadow.share)


class Arm(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way to do a task, in an experiment. What is None is as the task has it."""

    name: str
    weight: float = 1.0
    model: str | None = None
    """Goes first; the other candidates stay its fallbacks."""
    version: tuple[str, str] | None = None
    """(model, version): this model is asked in this version."""
    prompt: Prompt | None = None
    params_json: bytes | None = None
    """The whole of the parameters: the task's, with what the arm says itself."""
    max_tokens: int | None = None
    temperature: float | None = None


class Experiment(msgspec.Struct, frozen=True, omit_defaults=True):
    """Units of one task are divided among arms, the same for each unit in every lane and restart."""

    id: str
    """`job/name`: what a person calls and stops, and by what units are divided."""
    task: str
    arms: tuple[Arm, ...]
    """The first is what the others are compared with, and what all units get once it is stopped."""
    unit: Literal["unit", "item"] = "unit"
    guardrails: tuple[str, ...] = ()
    """Guards by name: an arm that is shown worse than the first by one of them stops the experiment."""
    version: str = ""
    """Changes with what its arms do and with their shares: what was measured of others says nothing of these."""

    @property
    def key(self) -> str:
        """What records and cells call it."""
        return f"{self.id}@{self.version}" if self.version else self.id


class Condition(msgspec.Struct, frozen=True, omit_defaults=True):
    """One comparison of an attribute, or a combination. Exactly one of: (`field` with `op`), `all`, `any`."""

    field: str | None = None
    op: Literal["eq", "in", "lt", "lte", "gt", "gte", "exists"] = "eq"
    value: Scalar | tuple[Scalar, ...] | None = None
    all: tuple[Condition, ...] = ()
    any: tuple[Condition, ...] = ()


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """First match decides; what it leaves open (None), tasks and tiers decide."""

    when: Condition
    use: tuple[str, ...] | None = None
    tier: int | None = None
    min_quality: float | None = None


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    tasks: dict[str, Task]
    default_task: str | None = None
    """The task of items that name none: the only one, or None where several exist (then: a dead letter)."""
    rules: tuple[Rule, ...] = ()
    version: str = ""
    """Hash of all of this and the catalogue's routing part: `policy_version` in the records."""
    experiments: tuple[Experiment, ...] = ()
    max_attempts: int = 6
    """Attempts of one item over all candidates, retries and fallbacks together. A guess."""
