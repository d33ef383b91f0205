"""`Raw` → `Item`, or the `DeadLetter` that says why not. Nothing here raises for a bad record."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NoReturn, cast

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.formats.lines import HEAD_BYTES
from penstock.connectors.reading import attributes as attrs
from penstock.connectors.reading import chat
from penstock.connectors.reading.arms import Arms
from penstock.connectors.reading.envelope import OF_LETTERS, RUN, Headers
from penstock.connectors.reading.json_guard import Members, decode, members, told_once
from penstock.connectors.reading.rows import RowShape, columns
from penstock.connectors.settings import Row
from penstock.connectors.templates.template import nearest
from penstock.engine.errors import BadRecord
from penstock.engine.items import Attributes, Exposure, Item, Request
from penstock.engine.policy import Policy
from penstock.engine.results import DeadLetter, DeadLetterReason

InputShape = Literal["rows", "openai-batch", "either"]
"""`either`: each record is looked at; an object with `custom_id` and `body` is an openai-batch line."""

MAX_LABEL = 512
"""Characters of a `custom_id`; OpenAI's own limit."""
ENDPOINT = "/v1/chat/completions"

_encode = msgspec.json.Encoder().encode


class _Line(msgspec.Struct):
    body: Members


_decode_line = msgspec.json.Decoder(_Line).decode


def input_shape(format: str) -> InputShape:
    """What the records of a split's format are."""
    match format:
        case "openai-batch":
            return "openai-batch"
        case "auto":
            return "either"
        case _:
            return "rows"


def shared_format(formats: Iterable[str]) -> str:
    """What a plan's records are, by the formats of its splits. An inbox that held nothing but blank files, which count
    to rows, may get requests later: then each record is looked at."""
    found = set(formats)
    requests = {format for format in found if input_shape(format) == "openai-batch"}
    return "auto" if requests and requests != found else min(found, default="jsonl")


class Intake:
    """Makes items of one run's records.

    shape: what the records are. model_names: the catalogue's names, which `body.model` may pin. job_vars: the job's
    `vars`, for row templates. Raises `SpecError` at construction where a template can't be compiled.
    """

    def __init__(
        self,
        run_id: str,
        shape: InputShape,
        row: Row,
        policy: Policy,
        model_names: Collection[str],
        generation: int = 0,
        job_vars: Mapping[str, str] | None = None,
        stopped: Collection[str] = (),
    ) -> None:
        """`stopped`: experiments that take no new units; it may change while records are read."""
        self._ids = Ids(run_id)
        self._run = run_id.encode()
        self._policy = policy
        self._models = frozenset(model_names)
        self._generation = generation
        self._defaults = {name: chat.Defaults(task) for name, task in policy.tasks.items()}
        self._rows = None if shape == "openai-batch" else RowShape(row, policy, self._defaults, job_vars or {})
        self._either = shape == "either"
        self._arms = Arms(policy, stopped)
        self._own_task = policy.tasks.keys() if policy.default_task is not None else None
        self._plain = Attributes(task=policy.default_task)

    def item(self, raw: Raw, now: float, item_id: str | None = None) -> Item | DeadLetter:
        """`now`: Unix seconds, for records that carry no time of their own. `item_id`: of an item that comes again."""
        item_id = item_id or self._ids.of(raw)
        label: str | None = None
        rows = self._rows
        try:
            if raw.error is not None:
                raise BadRecord(*raw.error)
            if raw.headers:
                self._refuse_own(raw.headers)
            if rows is not None and self._either and is_request(raw):
                rows = None
            if rows is not None:
                made = rows.read(raw, item_id, self._arms)
                label = made.custom_id
                keep = made.keep_json
                return self._item(item_id, raw, now, label, made.attributes, made.request, keep, made.exposure)
            value = decode(raw.data)
            if type(value) is not dict:
                raise BadRecord("malformed", "the line is not a JSON object")
            once = told_once(raw.data, _keys(value))
            line = None if once else members(raw.data)
            label = _label(value)
            found, request, exposure = self._request(raw, value, line, item_id)
            return self._item(item_id, raw, now, label, found, request, None, exposure)
        except BadRecord as error:
            if rows is not None and raw.error is None:
                label = _label_if_any(rows, raw)
            return self._dead(item_id, raw, now, label, error)

    def _refuse_own(self, headers: Headers) -> None:
        """A run that reads what it writes never ends, and pays for each round: the job file's addresses may not tell
        that two are one cluster. A dead letter of the run that somebody sends again is input."""
        if (RUN, self._run) in headers and not any(name in OF_LETTERS for name, _ in headers):
            raise BadRecord(
                "unsupported", "the record is a result of this run: its source reads a topic that it writes"
            )

    def again(self, item: Item) -> Item | DeadLetter:
        """What the job makes now of an item that was read before, by another job file perhaps. As it was where its
        record is not here: of a large one the head is kept alone, and a schema's bytes are no JSON."""
        if item.original_length:
            return self._as_it_was(item)
        raw = Raw(item.source, "", data=item.original, key=item.key, headers=item.headers, timestamp=item.enqueued_at)
        made = self.item(raw, item.enqueued_at, item.item_id)
        if isinstance(made, DeadLetter) and made.reason == "malformed":
            return self._as_it_was(item)
        return msgspec.structs.replace(made, generation=item.generation)

    def _as_it_was(self, item: Item) -> Item:
        """An arm that the job has no more leads it nowhere, for its model may be gone too; its prompt is what is asked
        all the same."""
        exposure = item.exposure
        if exposure is None or self._arms.lead_to(exposure):
            return item
        left = Exposure(prompt_version=exposure.prompt_version, params=exposure.params)
        return msgspec.structs.replace(item, exposure=left)

    def _item(
        self,
        item_id: str,
        raw: Raw,
        now: float,
        label: str | None,
        found: Attributes,
        request: Request,
        keep_json: bytes | None,
        exposure: Exposure | None,
    ) -> Item:
        """`keep_json` None: the record is an openai-batch line."""
        original, length, digest = _original(raw)
        return Item(
            item_id=item_id,
            source=raw.position,
            attributes=found,
            request=request,
            original=original,
            enqueued_at=now if raw.timestamp is None else raw.timestamp,
            custom_id=label,
            keep_json=b"{}" if keep_json is None else keep_json,
            generation=self._generation,
            traceparent=_traceparent(raw) if raw.headers else None,
            key=raw.key,
            headers=raw.headers,
            original_length=length,
            original_hash=digest,
            is_request=keep_json is None,
            exposure=exposure,
        )

    def _dead(self, item_id: str, raw: Raw, now: float, label: str | None, error: BadRecord) -> DeadLetter:
        original, length, digest = _original(raw)
        return DeadLetter(
            item_id=item_id,
            source=raw.position,
            reason=cast("DeadLetterReason", error.reason),
            message=str(error),
            original=original,
            custom_id=label,
            generation=self._generation,
            finished_at=now,
            original_length=length,
            original_hash=digest,
            policy_version=self._policy.version,
            key=raw.key,
            headers=raw.headers,
        )

    def _request(
        self, raw: Raw, value: dict[str, object], line: Members | None, item_id: str
    ) -> tuple[Attributes, Request, Exposure | None]:
        """`line`: its members as they are written; None: no key comes twice in it, at any depth."""
        if value.get("method", "POST") != "POST":
            raise BadRecord("unsupported", f"method is {str(value['method'])[:60]!r}; only POST is supported")
        if value.get("url", ENDPOINT) != ENDPOINT:
            raise BadRecord("unsupported", f"url is {str(value['url'])[:100]!r}; only {ENDPOINT} is supported")
        body = value.get("body")
        if type(body) is not dict:
            _refuse_body(body)
        parts = _decode_line(raw.data).body if line is None else members(line["body"])
        found = self._attributes(raw, body, parts)
        task = found.task
        defaults = self._defaults.get(task) if task is not None else None
        if defaults is None:
            raise unknown_task(task, self._policy)
        pin = self._pin(body.get("model"))
        drawn = self._arms.of(task, found, item_id) if task is not None and pin is None else None
        if drawn is not None and not drawn.prompts:  # a line brings its own messages: no prompt of ours is tried on it
            defaults = drawn.defaults or defaults
        exposure = None if drawn is None or drawn.prompts else drawn.exposure
        request = chat.request_from_body(body, parts, defaults, pin)
        if line is not None:
            chat.refuse_duplicates(parts)
        return found, request, exposure

    def _attributes(self, raw: Raw, body: dict[str, object], parts: Members) -> Attributes:
        metadata = body.get("metadata")
        if metadata is None and not raw.headers:
            parts.pop("metadata", None)
            return self._plain
        values = attrs.from_headers(raw.headers)
        if metadata is not None:
            if type(metadata) is not dict:
                raise BadRecord("bad_field", "metadata is not an object")
            kept = members(parts["metadata"])
            values, taken = attrs.from_metadata(metadata, self._own_task, values)
            for key in taken:
                del kept[key]
            if not kept:
                del parts["metadata"]
            elif taken:
                parts["metadata"] = msgspec.Raw(_encode(kept))
        if "task" not in values and self._policy.default_task is not None:
            values["task"] = self._policy.default_task
        return attrs.build(values)

    def _pin(self, model: object) -> str | None:
        if model is None or model == "auto":
            return None
        if type(model) is not str:
            raise BadRecord("bad_field", f"model is {str(model)[:60]!r}, not a name")
        if model not in self._models:
            there = ", ".join(sorted(self._models)[:50])
            close = nearest(model, self._models) if len(self._models) > 50 else ""
            raise BadRecord("unknown_model", f"no model is named {model[:100]!r}; there are auto, {there}{close}")
        return model


class Ids:
    """item_id = blake2b-128 of run, object and position; the state after run and object is kept."""

    def __init__(self, run_id: str) -> None:
        self._run = hashlib.blake2b(run_id.encode() + b"\0", digest_size=16)
        self._object = ""
        self._state = self._run

    def of(self, raw: Raw) -> str:
        if raw.object_id != self._object:
            self._object = raw.object_id
            self._state = self._run.copy()
            self._state.update(raw.object_id.encode() + b"\0")
        state = self._state.copy()
        state.update(b"%d" % raw.position.position)
        return state.hexdigest()


def _label_if_any(rows: RowShape, raw: Raw) -> str | None:
    """Of a row that makes no item: people know it by its label. None: that can't be read either."""
    with contextlib.suppress(BadRecord):
        return rows.label(columns(raw))
    return None


def is_request(raw: Raw) -> bool:
    """An openai-batch line among rows."""
    data = raw.data
    if raw.row_json is not None or b'"custom_id"' not in data or b'"body"' not in data:
        return False
    try:
        value = decode(data)
    except BadRecord:
        return False
    return type(value) is dict and "custom_id" in value and "body" in value


def unknown_task(task: str | None, policy: Policy) -> BadRecord:
    if task is None:
        there = ", ".join(sorted(policy.tasks))
        return BadRecord("unknown_task", f"the item names no task; tasks are {there}")
    return BadRecord("unknown_task", f"no task is named {task!r}{nearest(task, policy.tasks)}")


def _keys(line: Mapping[str, object]) -> int:
    """Keys of the objects that are read here: line, body, metadata, messages."""
    count = len(line)
    body = line.get("body")
    if type(body) is dict:
        count += len(body)
        metadata = body.get("metadata")
        if type(metadata) is dict:
            count += len(metadata)
        messages = body.get("messages")
        if type(messages) is list:
            for message in messages:
                if type(message) is dict:
                    count += len(message)
    return count


def _label(value: Mapping[str, object]) -> str:
    label = value.get("custom_id")
    if label is None or label == "":
        raise BadRecord("missing_field", "the line has no custom_id")
    if type(label) is not str:
        raise BadRecord("bad_field", f"custom_id is {str(label)[:60]!r}, not text")
    if len(label) > MAX_LABEL:
        raise BadRecord("bad_field", f"custom_id has {len(label):,} characters; the most allowed is {MAX_LABEL}")
    return label


def _refuse_body(body: object) -> NoReturn:
    if body is None:
        raise BadRecord("missing_field", "the line has no body")
    raise BadRecord("bad_field", "body is not an object")


def _original(raw: Raw) -> tuple[bytes, int, str]:
    """What a dead letter keeps of a record: all of it up to 1 MB, else head, full length and hash."""
    data = raw.data or raw.row_json or b""
    if raw.length > len(data):
        return data[:HEAD_BYTES], raw.length, raw.digest
    if len(data) > HEAD_BYTES:
        return data[:HEAD_BYTES], len(data), hashlib.blake2b(data, digest_size=16).hexdigest()
    return data, 0, ""


def _traceparent(raw: Raw) -> str | None:
    found = next((value for name, value in raw.headers if name == "traceparent"), None)
    return found.decode("ascii", "ignore")[:64] if found else None
