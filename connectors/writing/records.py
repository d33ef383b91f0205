"""Results, dead letters, cost lines, quality samples and results for review as JSON lines: SURFACES §3, field by field.

Two shapes of results. `openai-batch`: `id`, `custom_id`, `response`, `error`, and all that is ours under `penstock`.
`rows`: the kept columns, `answer`, and `penstock`. A kept column that is itself named `answer` or `penstock` is carried
as `input_answer` or `input_penstock` (one more `input_` where that is taken too): ours never overwrites the user's.

Money is a JSON number in dollars with at most nine decimals and no exponent, exact; times are ISO 8601 in UTC with
milliseconds. Every field is there, null where it is unknown. This is on the hot path: no `Decimal`, no dictionaries.
"""

from __future__ import annotations

import base64
import functools
import time
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from penstock.connectors.reading.envelope import seal
from penstock.connectors.reading.json_guard import decode
from penstock.connectors.writing.record_structs import (
    AttemptLine,
    BatchLine,
    CostRecord,
    DeadLetterRecord,
    Json,
    OtherAnswer,
    Provenance,
    QualityRecord,
    Response,
    ReviewRecord,
    ScoreLine,
    Source,
    Tokens,
)
from penstock.engine.errors import BadRecord
from penstock.engine.items import NANO_PER_USD, Item, Usage
from penstock.engine.results import Attempt, CostLine, DeadLetter, Result, Score, ShadowAnswer, last_asked
from penstock.engine.review import Review, reasons_of

Shape = Literal["rows", "openai-batch"]

_encode = msgspec.json.Encoder().encode
_NULL = msgspec.Raw(b"null")


class Encoder:
    """Turns what the engine decided into JSON lines (without newline).

    run_id: stands in every record. shape: of results; None: each in the shape of its input. schema_tasks: tasks whose
    output is a JSON schema; their `answer` is a struct in shape `rows`. review: which results are for people too.
    """

    def __init__(
        self, run_id: str, shape: Shape | None, schema_tasks: Iterable[str] = (), review: Review | None = None
    ) -> None:
        self._run_id = run_id
        self._shape = shape
        self._schema_tasks = frozenset(schema_tasks)
        self._review = review
        self._stamps = Stamps()

    def result(self, result: Result) -> bytes:
        item, answer = result.item, result.answer
        if self._shape == "rows" or (self._shape is None and not item.is_request):
            return self._row(result)
        asked = last_asked(result.attempts)
        name = f"{item.item_id}-{item.generation}" if item.generation else item.item_id
        request_id = asked.request_id if asked is not None else None
        response = Response(answer.status_code, request_id, Json(one_line(answer.body_json)))
        return _encode(BatchLine("batch_req_" + name, item.custom_id, response, None, self._provenance(result)))

    def _row(self, result: Result) -> bytes:
        kept = kept_columns(result.item.keep_json)
        text = result.answer.text
        structured = as_struct(text) if result.route.task in self._schema_tasks else None
        answer = structured if structured is not None else _encode(_whole(text))
        penstock = _encode(self._provenance(result))
        return b"".join((kept, b'"answer":', answer, b',"penstock":', penstock, b"}"))

    def _provenance(self, result: Result) -> Provenance:
        item, route, answer, stamp = result.item, result.route, result.answer, self._stamps.iso
        attributes, source = item.attributes, item.source
        return Provenance(
            item.item_id,
            self._run_id,
            item.generation,
            attributes.tenant,
            attributes.subject,
            attributes.unit,
            attributes.episode,
            item.traceparent,
            route.task,
            route.tier,
            result.status,
            answer.finish_reason,
            result.model,
            result.model_version,
            answer.fingerprint,
            result.provider,
            result.account,
            result.region,
            result.mode,
            result.experiment or None,
            result.arm or None,
            result.propensity if result.experiment else None,
            result.sampled,
            result.sample_probability,
            result.prompt_version,
            result.policy_version,
            result.price_version,
            route.reason,
            route.refused,
            self._attempts(result.attempts),
            stamp(item.enqueued_at),
            stamp(result.finished_at),
            milliseconds(result.queue_ms),
            milliseconds(result.call_ms),
            (tokens := _tokens(result.usage)),
            Json(usd(result.cost_nano)),
            result.cost_basis,
            result.copied_from,
            result.maybe_paid,
            Source(source.split, source.position),
            item.request.input_hash,
            result.output_hash,
            item.custom_id,
            tokens if result.answer_usage == result.usage else _tokens(result.answer_usage),
        )

    def _attempts(self, attempts: tuple[Attempt, ...]) -> list[AttemptLine]:
        stamp = self._stamps.iso
        return [
            AttemptLine(
                a.n,
                a.role,
                a.model,
                stamp(a.started_at),
                milliseconds(a.ms),
                a.outcome,
                a.request_id,
                Json(usd(a.cost_nano)),
            )
            for a in attempts
        ]

    def cost(self, line: CostLine) -> bytes:
        return _encode(
            CostRecord(
                line.entry_id,
                line.item_id,
                line.attempt,
                line.role,
                line.account,
                line.model,
                line.model_version,
                _tokens(line.usage),
                Json(usd(line.cost_nano)),
                line.basis,
                line.price_version,
                line.tenant,
                line.task,
                line.tier,
                self._stamps.iso(line.at),
            )
        )

    def quality(
        self, result: Result, score: Score, *, shadow: ShadowAnswer | None = None, redact: bool = False
    ) -> bytes:
        """shadow: whose answer the score is of, where it isn't the result's. redact: the item's wall says
        `sample: redact`; the score stays, what was said goes."""
        item = result.item
        said = result.answer.text if shadow is None else shadow.text
        expected = item.attributes.expected_json
        return _encode(
            QualityRecord(
                item_id=item.item_id,
                task=result.route.task,
                scorer=score.scorer,
                scorer_version=score.scorer_version,
                score=score.score,
                passed=score.passed,
                judge_model=score.judge_model,
                input=_NULL if redact else Json(one_line(item.request.body_json)),
                output=None if redact else _whole(said),
                expected=_NULL if redact or expected is None else Json(one_line(expected)),
                sample_probability=result.sample_probability if shadow is None else shadow.share,
                arm=(shadow.arm if shadow is not None and shadow.experiment else result.arm) or None,
                propensity=result.propensity if result.experiment else None,
                model=(shadow or result).model,
                model_version=(shadow or result).model_version,
                prompt_version=result.prompt_version,
                consent=item.attributes.consent,
                at=self._stamps.iso(result.finished_at),
                role="primary" if shadow is None else shadow.role,
                signal=result.signal if shadow is None else shadow.signal,
                signal_by=(result if shadow is None else shadow).signal_by or None,
                sensitivity=item.attributes.sensitivity,
                wall=result.route.wall,
            )
        )

    def reasons(self, result: Result) -> tuple[str, ...]:
        """Why people shall look at it; empty: they need not."""
        return reasons_of(self._review, result) if self._review is not None else ()

    def review(self, result: Result, why: tuple[str, ...], *, redact: bool = False) -> bytes:
        """redact: as of a quality sample."""
        item, others = result.item, () if redact else (*result.shadows, *result.doubted)
        expected = item.attributes.expected_json
        return _encode(
            ReviewRecord(
                item_id=item.item_id,
                run_id=self._run_id,
                generation=item.generation,
                custom_id=None if redact else item.custom_id,
                task=result.route.task,
                why=list(why),
                input=_NULL if redact else Json(one_line(item.request.body_json)),
                answer=None if redact else _whole(result.answer.text),
                model=result.model,
                model_version=result.model_version,
                prompt_version=result.prompt_version,
                status=result.status,
                scores=[ScoreLine(s.scorer, s.scorer_version, s.score, s.passed, s.judge_model) for s in result.scores],
                signal=result.signal,
                others=[OtherAnswer(o.model, o.model_version, o.role, _whole(o.text)) for o in others],
                expected=_NULL if redact or expected is None else Json(one_line(expected)),
                sensitivity=item.attributes.sensitivity,
                wall=result.route.wall,
                consent=item.attributes.consent,
                source=Source(item.source.split, item.source.position),
                input_hash=None if redact else item.request.input_hash,
                output_hash=None if redact else result.output_hash,
                finished_at=self._stamps.iso(result.finished_at),
            )
        )

    def dead_letter(self, letter: DeadLetter) -> bytes:
        item, route = letter.item, letter.route
        text, encoding = readable(letter.original)
        came = item or letter
        return _encode(
            DeadLetterRecord(
                item_id=letter.item_id,
                custom_id=letter.custom_id or (item.custom_id if item else None),
                reason=letter.reason,
                retryable=letter.retryable,
                message=letter.message,
                attempts=self._attempts(letter.attempts),
                cost_usd=Json(usd(letter.cost_nano)),
                source=Source(letter.source.split, letter.source.position),
                original=text,
                original_encoding=encoding,
                original_length=letter.original_length or (item.original_length if item else 0) or len(letter.original),
                original_hash=letter.original_hash or (item.original_hash if item else "") or None,
                generation=letter.generation,
                run_id=self._run_id,
                tenant=item.attributes.tenant if item else None,
                subject=item.attributes.subject if item else None,
                task=route.task if route else _task(item),
                tier=route.tier if route else None,
                refused=route.refused if route else (),
                maybe_paid=letter.maybe_paid,
                price_version=letter.price_version,
                policy_version=letter.policy_version,
                finished_at=self._stamps.iso(letter.finished_at),
                envelope=seal(came.key, came.headers, letter.cut),
                prompt_version=letter.prompt_version or None,
            )
        )


def _task(item: Item | None) -> str | None:
    return item.attributes.task if item else None


def _tokens(usage: Usage) -> Tokens:
    return Tokens(usage.input, usage.cached, usage.cache_write + usage.cache_write_1h, usage.output, usage.reasoning)


@functools.lru_cache(4096)  # a record tells the same sum up to three times
def usd(nano: int) -> bytes:
    """Nano-dollars as a JSON number in dollars: exact, at most nine decimals, no exponent.

    Example:
        >>> usd(15_000), usd(2_000_000_000), usd(-1), usd(0)
        (b'0.000015', b'2', b'-0.000000001', b'0')
    """
    if nano < 0:
        return b"-" + usd(-nano)
    whole, rest = divmod(nano, NANO_PER_USD)
    return b"%d" % whole if not rest else (b"%d.%09d" % (whole, rest)).rstrip(b"0")


def milliseconds(value: float) -> float:
    """To a thousandth: more would be noise, and costs bytes in every record."""
    return round(value, 3)


_LAST_SECOND = 253_402_300_799
"""Of the year 9999."""


class Stamps:
    """ISO 8601 in UTC with milliseconds. A moment is written once, not once a record: neighbours share many."""

    def __init__(self) -> None:
        self._seconds: dict[int, str] = {}
        self._moments: dict[int, str] = {}
        """By milliseconds."""

    def iso(self, unix: float) -> str:
        """A time outside of the years 1970 to 9999 comes as the nearest in them: ISO 8601 has no others."""
        if not 0.0 <= unix <= _LAST_SECOND:
            unix = min(max(0.0, unix), _LAST_SECOND)
        ms = int(unix * 1000 + 0.5)
        return self._moments.get(ms) or self._moment(ms)

    def _moment(self, ms: int) -> str:
        second = ms // 1000
        text = self._seconds.get(second)
        if text is None:
            if len(self._seconds) > 4096:  # an hour of seconds: bounded, whatever the clock does
                self._seconds.clear()
            text = self._seconds[second] = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        if len(self._moments) > 4096:
            self._moments.clear()
        text = self._moments[ms] = f"{text}{ms - second * 1000:03d}Z"
        return text


def one_line(json: bytes) -> bytes:
    """JSON text without line breaks: providers send pretty-printed bodies, and a record is one line. Never raises."""
    if b"\n" in json or b"\r" in json:
        try:
            return msgspec.json.format(json, indent=-1)
        except (msgspec.MsgspecError, RecursionError):
            return json.translate(_ONE_LINE)  # a line break may only stand between values
    return json


_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


def _whole(text: str) -> str:
    """The text with half a surrogate pair, which no file can hold, as a question mark."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def as_struct(text: str) -> bytes | None:
    """The text as one line of JSON; None where it is none (an answer kept although it is invalid), or where readers
    would give up on it: it nests too deeply, or holds a number that is too large. Never raises."""
    try:
        json = text.encode()
        decode(json)
        return msgspec.json.format(json, indent=-1)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError, BadRecord):
        return None


def kept_columns(keep_json: bytes) -> bytes:
    """The kept columns as the beginning of an object: `{"a":1,`. Renames what would clash with our names.

    A row stands here as its line wrote it: white space around and within it, and an object of none, are ordinary."""
    keep_json = keep_json.strip()
    if b'"' not in keep_json:
        return b"{"
    if b'"answer"' in keep_json or b'"penstock"' in keep_json or b"\\u00" in keep_json:
        keep_json = _renamed(keep_json)
    keep_json = one_line(keep_json)
    return keep_json[:-1] + b","


def _renamed(keep_json: bytes) -> bytes:
    columns = msgspec.json.decode(keep_json, type=dict[str, msgspec.Raw])
    for ours in ("answer", "penstock"):
        if ours in columns:
            name = "input_" + ours
            while name in columns:
                name = "input_" + name
            columns = {name if k == ours else k: v for k, v in columns.items()}
    return _encode(columns)


def readable(original: bytes) -> tuple[str, Literal["utf-8", "base64"]]:
    try:
        return original.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(original).decode(), "base64"


def iter_records(paths: Iterable[str]) -> Iterator[bytes]:
    """The records of finished outputs as nested JSON lines, whatever the files' format. Flat memory."""
    from penstock.connectors.writing import tables

    for path in paths:
        yield from tables.read_records(path)
