"""One item's whole story, from its committed records: where it came from, why it went where it went, each attempt, what
it cost, how it was scored, where it was written or why it ended in dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from penstock.connectors.base import SinkName
from penstock.engine.errors import SpecError
from penstock.jobs.look import told
from penstock.jobs.look.told import CostTold, LetterTold, RefusedTold, ResultTold, SampleTold, TokensTold, TriedTold
from penstock.jobs.wording import clock, dollars, duration, instant

Ending = ResultTold | LetterTold
SHORTEST_PREFIX = 6
"""Hex digits of an item id that may stand for it: fewer are rather a label."""
AT_MOST = 20
"""Endings that are collected: an item has one per generation; more means that a label is not unique."""
ANSWER_SHOWN = 600
"""Characters of an answer or original."""


class Line(msgspec.Struct, frozen=True):
    """One labelled line of a story; the label of a repeated kind stands only once."""

    label: str
    text: str


def find(wanted: str, results: Iterable[told.Line], dead_letters: Iterable[told.Line]) -> list[Ending]:
    """Every ending of the item: one for each generation, the first first.

    `wanted`: an item id, the start of one (six digits or more), a custom_id, or else the value of a kept column.
    Raises `SpecError` where nothing fits, or several items do.
    """
    found, by_column = _among_results(wanted, results)
    letters = told.letters(line for line in dead_letters if _as_written(wanted) in line)
    found += [letter for letter in letters if _fits(wanted, letter.item_id, letter.custom_id)]
    found = found or by_column
    _refuse_crowd(wanted, found)
    return sorted(found, key=_generation)


def _among_results(wanted: str, results: Iterable[told.Line]) -> tuple[list[Ending], list[Ending]]:
    """Those that fit by id or label, and those that only hold the value in a kept column: a label often is one."""
    found, by_column, needle = list[Ending](), list[Ending](), _as_written(wanted)
    for line in results:
        if needle not in line:
            continue
        ending = told.result(line)
        if _fits(wanted, ending.penstock.item_id, ending.custom_id):
            found.append(ending)
        elif len(by_column) < AT_MOST and _in_a_column(wanted, line):
            by_column.append(ending)
        if len(found) >= AT_MOST:
            break
    return found, by_column


def _as_written(wanted: str) -> bytes:
    """As a record writes it, quotes escaped: most lines are passed over without being decoded."""
    return msgspec.json.encode(wanted)[1:-1]


def _in_a_column(wanted: str, line: told.Line) -> bool:
    columns = msgspec.json.decode(line, type=dict[str, object])
    kept = (value for name, value in columns.items() if name not in ("answer", "penstock", "response"))
    return any(str(value) == wanted for value in kept if isinstance(value, str | int | float))


def _fits(wanted: str, item_id: str, custom_id: str | None) -> bool:
    return custom_id == wanted or item_id == wanted or (len(wanted) >= SHORTEST_PREFIX and item_id.startswith(wanted))


def _refuse_crowd(wanted: str, found: Sequence[Ending]) -> None:
    ids = list(dict.fromkeys(item_id(ending) for ending in found))
    if not ids:
        raise SpecError(
            f"no committed record of {wanted!r}: give an item_id (or {SHORTEST_PREFIX} digits of it) or a custom_id; "
            "in a run that still goes it may not be committed yet"
        )
    if len(ids) > 1:
        raise SpecError(f"{wanted!r} fits {len(ids)} items or more: {', '.join(ids[:4])}; give an item_id")


def item_id(ending: Ending) -> str:
    return ending.penstock.item_id if isinstance(ending, ResultTold) else ending.item_id


def sink_of(ending: Ending) -> SinkName:
    return "results" if isinstance(ending, ResultTold) else "dead_letters"


def _generation(ending: Ending) -> int:
    return ending.penstock.generation if isinstance(ending, ResultTold) else ending.generation


def bills(endings: Sequence[Ending], costs: Iterable[told.Line]) -> list[list[CostTold]]:
    """What was paid for each ending of an item: calls of judges and shadows are among it."""
    item = item_id(endings[0])
    found = list(told.costs(line for line in costs if item.encode() in line))
    mine = [f"{item}:{_generation(ending)}:" for ending in endings]
    return [[cost for cost in found if cost.entry_id.startswith(each)] for each in mine]


def scores(endings: Sequence[Ending], quality: Iterable[told.Line]) -> list[list[SampleTold]]:
    """The samples of each ending of an item: they don't say of which generation, but when its result was finished."""
    item = item_id(endings[0])
    found = [each for each in told.samples(line for line in quality if item.encode() in line) if each.item_id == item]
    at = [ending.penstock.finished_at if isinstance(ending, ResultTold) else None for ending in endings]
    return [[sample for sample in found if each is not None and sample.at == each] for each in at]


def story(ending: Ending, written: str, paid: Sequence[CostTold] = (), scored: Sequence[SampleTold] = ()) -> list[Line]:
    """`written`: where the record stands, as a person would write it."""
    beside = [Line("paid", _paid(cost)) for cost in paid] + [Line("quality", _scored(sample)) for sample in scored]
    match ending:
        case ResultTold():
            return [*_result(ending), *beside, Line("written", written)]
        case LetterTold():
            return [*_letter(ending), *beside, Line("written", written), _again(ending)]


def _result(ending: ResultTold) -> list[Line]:
    block = ending.penstock
    lines = [Line("item", _identity(block.item_id, ending.custom_id, block.generation))]
    lines += _source(block.source)
    lines += _some("attributes", _pairs(block, ("task", "sensitivity", "tenant", "subject", "unit", "episode")))
    why = block.route_reason if block.route_reason != f"tier {block.tier}" else None
    lines.append(Line("route", f"tier {block.tier}: {why or 'the order of preference'}"))
    lines += [*_some("drawn", _drawn(block)), *_refused(block.refused), *_attempts(block.attempts)]
    if block.copied_from:
        lines.append(Line("copied", f"the same request was answered for {block.copied_from}; nothing was paid here"))
    lines += [Line("answer", cut(ending.answer)), Line("status", _status(ending)), *_tokens(ending)]
    basis = f" ({block.cost_basis})" if block.cost_basis else ""
    lines.append(Line("cost", dollars(told.nano(block.cost_usd)) + basis + _maybe(block.maybe_paid)))
    served = ("model", "model_version", "provider", "account", "region", "mode", "fingerprint")
    lines += _some("served by", _pairs(block, served))
    lines += _some("versions", _pairs(block, ("prompt_version", "policy_version", "price_version")))
    lines += _times(ending)
    return lines


def _letter(letter: LetterTold) -> list[Line]:
    lines = [Line("item", _identity(letter.item_id, letter.custom_id, letter.generation))]
    lines += _source(letter.source)
    lines += _some("attributes", _pairs(letter, ("task", "tenant")))
    lines += _some("route", f"tier {letter.tier}" if letter.tier else "")
    lines += _refused(letter.refused)
    lines.append(Line("dead letter", f"{letter.reason}: {letter.message}"))
    lines += _attempts(letter.attempts)
    lines.append(Line("cost", dollars(told.nano(letter.cost_usd)) + _maybe(letter.maybe_paid)))
    return [*lines, Line("original", cut(letter.original))]


def _drawn(block: told.Told) -> str:
    """Why it got this version, prompt or model: chance put it into an arm of a rollout or an experiment."""
    if not block.experiment or not block.arm:
        return ""
    chance = f", with a chance of {100 * block.propensity:.3g} %" if block.propensity is not None else ""
    return f"arm {block.arm} of {block.experiment}{chance}"


def _again(letter: LetterTold) -> Line:
    if letter.retryable:
        return Line("next", "sending it again may help: penstock dead-letters replay")
    return Line("next", "mend the record or the job; sent again as it is, it would end here again")


def _identity(item: str, custom_id: str | None, generation: int) -> str:
    label = f" ({custom_id})" if custom_id else ""
    return f"{item}{label}" + (f", generation {generation}" if generation else "")


def _source(source: told.SourceTold | None) -> list[Line]:
    return [Line("from", f"{source.split}, position {source.position:,}")] if source else []


def _some(label: str, text: str) -> list[Line]:
    return [Line(label, text)] if text else []


def _refused(refused: Sequence[RefusedTold]) -> list[Line]:
    return [Line("refused", f"{refusal.model}: {refusal.reason}") for refusal in refused]


def _pairs(block: told.Told | LetterTold, names: Sequence[str]) -> str:
    pairs = [(name, getattr(block, name)) for name in names]
    return " · ".join(f"{name} {value}" for name, value in pairs if value not in (None, ""))


def _attempts(attempts: Sequence[TriedTold]) -> list[Line]:
    if not attempts:
        return [Line("attempts", "none: nothing was sent")]
    return [Line("attempts", attempt_line(tried)) for tried in attempts]


def attempt_line(tried: TriedTold) -> str:
    """`2  retry  opus  13:05:07.120  0.8 s  ok  $0.0012  req_abc`."""
    parts = [str(tried.n), tried.role, tried.model]
    if tried.started_at is not None:
        parts.append(clock(tried.started_at))
    parts += [duration(tried.ms / 1000), tried.outcome, dollars(told.nano(tried.cost_usd))]
    return "  ".join([*parts, tried.request_id] if tried.request_id else parts)


def _status(ending: ResultTold) -> str:
    block = ending.penstock
    sampled = f", sampled for quality (p = {block.sample_probability or 0:g})" if block.sampled else ""
    return f"{block.status}, finish_reason {block.finish_reason}{sampled}"


def _tokens(ending: ResultTold) -> list[Line]:
    tokens = ending.penstock.tokens
    return [Line("tokens", _counted(tokens))] if tokens is not None else []


def _counted(tokens: TokensTold) -> str:
    cached = f" ({tokens.cached:,} cached)" if tokens.cached else ""
    reasoning = f" ({tokens.reasoning:,} reasoning)" if tokens.reasoning else ""
    return f"{tokens.input:,} in{cached}, {tokens.output:,} out{reasoning}"


def _paid(cost: CostTold) -> str:
    """`2  judge  opus  41 in, 2 out  $0.0012 (metered)`."""
    tokens = [_counted(cost.tokens)] if cost.tokens is not None else []
    parts = [str(cost.attempt), cost.role, _named(cost.model, cost.model_version), *tokens]
    return "  ".join([*parts, f"{dollars(cost.nano)} ({cost.basis})"])


def _scored(sample: SampleTold) -> str:
    """`exact@1  score 0  failed  small@v1`, and who judged, or whose answer it was where it is not the item's."""
    verdict = "passed" if sample.passed else "failed"
    parts = [f"{sample.scorer}@{sample.scorer_version}", f"score {sample.score:g}", verdict]
    parts.append(_named(sample.model or "", sample.model_version))
    parts += [f"judged by {sample.judge_model}"] if sample.judge_model else []
    return "  ".join([*parts, sample.role] if sample.role != "primary" else parts)


def _named(model: str, version: str | None) -> str:
    return f"{model}@{version}" if version else model


def _maybe(maybe_paid: bool) -> str:
    lost = "; maybe_paid: an earlier answer was lost (a crash, a timeout) and may have been paid for too"
    return lost if maybe_paid else ""


def _times(ending: ResultTold) -> list[Line]:
    block = ending.penstock
    parts: list[str] = []
    if block.enqueued_at is not None:
        parts.append(f"read {instant(block.enqueued_at)}")
    if block.queue_ms is not None:
        parts.append(f"waited {duration(block.queue_ms / 1000)}")
    if block.call_ms is not None:
        parts.append(f"called {duration(block.call_ms / 1000)}")
    if block.finished_at is not None:
        parts.append(f"finished {clock(block.finished_at)}")
    return _some("times", ", ".join(parts))


def cut(text: str) -> str:
    """At most a few lines of a text, saying how much is left out."""
    return text if len(text) <= ANSWER_SHOWN else f"{text[:ANSWER_SHOWN]}… ({len(text) - ANSWER_SHOWN:,} more)"
