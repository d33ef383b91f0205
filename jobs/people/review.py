"""What people shall look at: what the run's review sink holds, else what the job's `review:` rules choose now.

Without a sink, results and quality records are read: the same records give the same list, whenever it is made. The
input is shown from the quality sample (its wall may have redacted it), else from the columns that the result kept, and
that only where no wall of the job forbids samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from penstock.connectors.writing.record_structs import ReviewRecord
from penstock.engine.policy import Policy
from penstock.engine.review import Review, Seen, reasons
from penstock.jobs.look import told
from penstock.jobs.look.reading import Outputs
from penstock.workers.runspec import RunSpec

MOST = 10_000
"""Items of one list; people look at some hundred a day."""
EVERYTHING = Review(share=1.0)
"""Where the job has no `review:` rules."""


class Other(msgspec.Struct, frozen=True):
    """What another model (a shadow) answered."""

    model: str
    answer: str


class Asked(msgspec.Struct, frozen=True):
    """One item for a person (SURFACES: review). `why`: the rules that chose it."""

    item_id: str
    task: str
    why: tuple[str, ...]
    input: str
    answer: str
    model: str = ""
    model_version: str = ""
    expected: str | None = None
    choices: tuple[str, ...] = ()
    others: tuple[Other, ...] = ()
    request: str = ""
    """Hash of what was asked; empty: not known."""
    output_hash: str = ""
    """Of the answer; empty: not known."""


class Listed(msgspec.Struct, frozen=True):
    """`unshown`: chosen, but no record may show or holds their input. `more`: beyond the most that one list holds."""

    items: tuple[Asked, ...]
    unshown: int = 0
    more: int = 0

    @property
    def answers(self) -> dict[str, str]:
        """Item → hash of its answer."""
        return {item.item_id: item.output_hash for item in self.items}


class _Sample(msgspec.Struct, frozen=True):
    """A quality record without its input."""

    item_id: str
    score: float = 0.0
    passed: bool = False
    scorer: str = ""
    judge_model: str | None = None
    model: str | None = None
    model_version: str | None = None
    output: str | None = None
    signal: float | None = None


class _Shown(msgspec.Struct, frozen=True):
    item_id: str
    input: msgspec.Raw = msgspec.Raw(b"null")
    expected: msgspec.Raw = msgspec.Raw(b"null")


class _Chosen(msgspec.Struct, frozen=True):
    result: told.ResultTold
    why: tuple[str, ...]
    kept: str
    """The columns that the result kept, as text; empty: none, or they may not be shown."""


_sample = msgspec.json.Decoder(_Sample)
_shown = msgspec.json.Decoder(_Shown)
_record = msgspec.json.Decoder(ReviewRecord)

Samples = dict[str, list[_Sample]]


def listed(outputs: Outputs, rules: Review | None) -> Listed:
    """The items for people, in the order of the results. `rules`: where the run has no review sink."""
    if "review" in outputs.spec.sinks:
        return _of_sink(outputs)
    return _of_records(outputs, rules)


def _of_sink(outputs: Outputs) -> Listed:
    items: list[Asked] = []
    unshown = more = 0
    for line in outputs.records("review"):
        if len(items) >= MOST:
            more += 1
            continue
        record = _record.decode(line)
        if bytes(record.input) == b"null":
            unshown += 1
        else:
            items.append(_of_record(outputs.spec.policy, record))
    return Listed(tuple(items), unshown, more)


def _of_record(policy: Policy, record: ReviewRecord) -> Asked:
    expected = msgspec.json.decode(record.expected)
    return Asked(
        item_id=record.item_id,
        task=record.task,
        why=tuple(record.why),
        input=_messages(bytes(record.input)),
        answer=record.answer or "",
        model=record.model,
        model_version=record.model_version,
        expected=None if expected is None else as_text(expected),
        choices=choices_of(policy, record.task),
        others=tuple(Other(f"{other.model}@{other.model_version}", other.answer) for other in record.others),
        request=record.input_hash or "",
        output_hash=record.output_hash or "",
    )


def _of_records(outputs: Outputs, rules: Review | None) -> Listed:
    """What the rules choose. Memory: all quality records, without inputs."""
    samples: Samples = {}
    for line in outputs.records("quality"):
        sample = _sample.decode(line)
        samples.setdefault(sample.item_id, []).append(sample)
    chosen, more = _choose(outputs, rules or EVERYTHING, samples)
    wanted = {each.result.penstock.item_id for each in chosen}
    sampled_inputs = {
        shown.item_id: shown
        for shown in map(_shown.decode, outputs.records("quality") if wanted else ())
        if shown.item_id in wanted and bytes(shown.input) != b"null"
    }
    items: list[Asked] = []
    for each in chosen:
        item_id = each.result.penstock.item_id
        asked = _asked(outputs.spec, each, samples.get(item_id, []), sampled_inputs.get(item_id))
        if asked is not None:
            items.append(asked)
    return Listed(tuple(items), len(chosen) - len(items), more)


def _choose(outputs: Outputs, rules: Review, samples: Samples) -> tuple[list[_Chosen], int]:
    open_walls = all(wall.sample == "keep" for wall in outputs.spec.catalog.walls.values())
    chosen: list[_Chosen] = []
    more = 0
    for line in outputs.records("results"):
        result = told.result(line)
        why = _why(rules, result, samples.get(result.penstock.item_id, []))
        if why and len(chosen) >= MOST:
            more += 1
        elif why:
            chosen.append(_Chosen(result, why, _kept(line) if open_walls else ""))
    return chosen, more


def _why(rules: Review, result: told.ResultTold, about: list[_Sample]) -> tuple[str, ...]:
    block = result.penstock
    own = [sample for sample in about if _is_of(sample, block)]
    seen = Seen(
        block.item_id,
        result.answer,
        block.status == "invalid_output",
        tuple(sample.score for sample in own),
        frozenset(sample.passed for sample in own),
        tuple(sample.signal for sample in own if sample.signal is not None),
        tuple(sample.output for sample in about if sample not in own and sample.output is not None),
    )
    return reasons(rules, seen)


def _is_of(sample: _Sample, block: told.Told) -> bool:
    return (sample.model, sample.model_version) == (block.model, block.model_version)


def _kept(line: bytes) -> str:
    row = msgspec.json.decode(line, type=dict[str, Any])
    ours = ("answer", "penstock", "response", "custom_id", "id", "error")
    return "\n".join(f"{name}: {as_text(value)}" for name, value in row.items() if name not in ours)


def _messages(body: bytes) -> str:
    from penstock.jobs.preview import read_messages

    return "\n\n".join(text if role == "user" else f"[{role}] {text}" for role, text in read_messages(body))


def _asked(spec: RunSpec, chosen: _Chosen, about: list[_Sample], shown: _Shown | None) -> Asked | None:
    """None: no record holds the input."""
    block = chosen.result.penstock
    seen = _messages(bytes(shown.input)) if shown is not None else chosen.kept
    if not seen:
        return None
    expected: object = None if shown is None else msgspec.json.decode(shown.expected)
    return Asked(
        item_id=block.item_id,
        task=block.task or "",
        why=chosen.why,
        input=seen,
        answer=chosen.result.answer,
        model=block.model or "",
        model_version=block.model_version or "",
        expected=None if expected is None else as_text(expected),
        choices=choices_of(spec.policy, block.task),
        others=tuple(_others(block, about)),
        request=block.input_hash or "",
        output_hash=block.output_hash or "",
    )


def choices_of(policy: Policy, task: str | None) -> tuple[str, ...]:
    found = policy.tasks.get(task or "")
    return (found.output.choices or ()) if found is not None and found.output is not None else ()


def _others(block: told.Told, about: list[_Sample]) -> Iterator[Other]:
    seen: set[str] = set()
    for sample in about:
        name = f"{sample.model}@{sample.model_version}"
        if not _is_of(sample, block) and sample.output is not None and name not in seen:
            seen.add(name)
            yield Other(name, sample.output)


def as_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
