"""A table row → label, attributes, request and kept columns, by the job's templates."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.reading import attributes as attrs
from penstock.connectors.reading import chat
from penstock.connectors.reading.arms import Arms, task_of
from penstock.connectors.reading.json_guard import decode, members, told_once
from penstock.connectors.settings import Row
from penstock.connectors.templates.template import Template, compile_template, nearest
from penstock.engine.errors import BadRecord
from penstock.engine.items import Attributes, Exposure, Request
from penstock.engine.policy import Policy, Prompt, Task

KEEP_BYTES = 64_000
"""Bytes of the columns carried to a result where the job names none."""
MAX_LABEL = 512

_encode = msgspec.json.Encoder().encode

Columns = dict[str, object]


class RowItem(msgspec.Struct, frozen=True):
    custom_id: str | None
    attributes: Attributes
    request: Request
    keep_json: bytes
    exposure: Exposure | None = None


class _TaskPrompt:
    """One task's templates, compiled."""

    def __init__(self, task: Task, defaults: chat.Defaults) -> None:
        prompt = task.prompt or Prompt()
        self.name = task.name
        self.defaults = defaults
        self.system = _maybe(prompt.system)
        self.user = _maybe(prompt.user)
        self.messages = _maybe(prompt.messages)
        self.images = [compile_template(source) for source in prompt.images]
        self.expected = next((_maybe(scorer.expected) for scorer in task.scorers if scorer.expected), None)


def _maybe(source: str | None) -> Template | None:
    return None if source is None else compile_template(source)


class RowShape:
    """Raises `SpecError` at construction where a template can't be compiled."""

    def __init__(
        self, row: Row, policy: Policy, defaults: Mapping[str, chat.Defaults], job_vars: Mapping[str, object]
    ) -> None:
        self._vars = job_vars
        self._default_task = policy.default_task
        self._label = _maybe(row.id)
        self._keep = row.keep
        self._attributes = {name: compile_template(source) for name, source in row.attributes.items()}
        self._tasks = {name: _TaskPrompt(task, defaults[name]) for name, task in policy.tasks.items()}
        self._arms = {
            (experiment.task, arm.name): _TaskPrompt(
                made := task_of(policy.tasks[experiment.task], arm), chat.Defaults(made)
            )
            for experiment in policy.experiments
            for arm in experiment.arms
        }

    def read(self, raw: Raw, item_id: str, arms: Arms) -> RowItem:
        """Raises `BadRecord`."""
        text = raw.data if raw.row_json is None else raw.row_json
        row = columns(raw)
        values = self._said(raw, row)
        prompt = self._prompt(values)
        values["task"] = prompt.name
        if "expected" not in values and prompt.expected is not None:
            expected = prompt.expected.value(row, self._vars)
            if expected is not None:
                values["expected"] = attrs.read("expected", expected)
        found = attrs.build(values)
        drawn = arms.of(prompt.name, found, item_id)
        if drawn is not None:
            prompt = self._arms[prompt.name, drawn.name]
        request = chat.request_from_messages(self._messages(prompt, row), prompt.defaults)
        exposure = None if drawn is None else drawn.exposure
        return RowItem(self.label(row), found, request, self._kept(row, text), exposure)

    def label(self, row: Columns) -> str | None:
        """The row's label; None: the job names none. Raises `BadRecord`."""
        return None if self._label is None else label_of(self._label, row, self._vars)

    def _said(self, raw: Raw, row: Columns) -> attrs.Values:
        """What the headers say, and the job's templates over it. Two sensitivities are never weighed."""
        values: attrs.Values = attrs.from_headers(raw.headers) if raw.headers else {}
        for name, template in self._attributes.items():
            found = template.value(row, self._vars)
            if found is not None and found != "":
                value = attrs.read(name, found)
                if name == "sensitivity" and values.get(name, value) != value:
                    raise BadRecord("bad_field", "header and row give two sensitivities")
                values[name] = value
        return values

    def _prompt(self, values: attrs.Values) -> _TaskPrompt:
        name = values.get("task", self._default_task)
        prompt = self._tasks.get(str(name)) if name is not None else None
        if prompt is not None:
            return prompt
        if name is None:
            raise BadRecord("unknown_task", f"the row names no task; tasks are {', '.join(sorted(self._tasks))}")
        raise BadRecord("unknown_task", f"no task is named {name!r}{nearest(str(name), self._tasks)}")

    def _messages(self, prompt: _TaskPrompt, row: Columns) -> list[object]:
        messages: list[object] = []
        if prompt.messages is not None:
            messages = _listed(prompt.messages.value(row, self._vars))
        elif prompt.user is None:
            raise BadRecord("template", f"the task {prompt.name!r} has no prompt: give it one in the job file")
        else:
            if prompt.system is not None:
                messages.append({"role": "system", "content": prompt.system.render(row, self._vars)})
            messages.append({"role": "user", "content": prompt.user.render(row, self._vars)})
        if prompt.images:
            _add_images(messages, [_image(template.value(row, self._vars)) for template in prompt.images])
        return messages

    def _kept(self, row: Columns, text: bytes) -> bytes:
        if self._keep is not None:
            return _encode({name: _column(row, name) for name in self._keep})
        if len(text) <= KEEP_BYTES:
            return text
        kept: Columns = {}
        size = 2
        for name, value in row.items():
            size_here = len(_encode({name: value}))
            if size + size_here <= KEEP_BYTES:
                kept[name] = value
                size += size_here
        return _encode(kept)


def columns(raw: Raw) -> Columns:
    """The row as a dictionary. Raises `BadRecord`."""
    if raw.row_json is not None:
        return msgspec.json.decode(raw.row_json, type=dict[str, object])
    row = decode(raw.data)
    if type(row) is not dict:
        raise BadRecord("malformed", "the line is not a JSON object")
    if not told_once(raw.data, len(row)):
        members(raw.data)
    return row


def label_of(template: Template, row: Columns, job_vars: Mapping[str, object]) -> str:
    """Raises `BadRecord`."""
    found = template.value(row, job_vars)
    if found is None or found == "":
        raise BadRecord("missing_field", "row.id is empty in this row")
    if isinstance(found, bool) or not isinstance(found, (str, int, float)):
        raise BadRecord("bad_field", f"row.id is {str(found)[:60]!r} in this row, neither text nor a number")
    label = str(found)
    if len(label) > MAX_LABEL:
        raise BadRecord("bad_field", f"row.id has {len(label):,} characters; the most allowed is {MAX_LABEL}")
    return label


def _column(row: Columns, name: str) -> object:
    if name not in row:
        raise BadRecord("missing_field", f"row.keep names the column {name!r}, which the row lacks{nearest(name, row)}")
    return row[name]


def _listed(value: object) -> list[object]:
    """A list of messages; text is taken as JSON (CSV has no other way to hold a list)."""
    if isinstance(value, str):
        try:
            value = decode(value.encode())
        except BadRecord as error:
            raise BadRecord("bad_field", f"messages is text that is not a JSON list: {error}") from error
    if not isinstance(value, list):
        raise BadRecord("bad_field", f"messages is {type(value).__name__}, not a list of messages")
    return list(value)


def _image(value: object) -> object:
    if isinstance(value, str) and value.startswith(("http://", "https://", "data:image/")):
        return {"type": "image_url", "image_url": {"url": value}}
    raise BadRecord("bad_field", f"an image is {str(value)[:60]!r}, neither an http(s) nor a data: URL")


def _add_images(messages: list[object], images: list[object]) -> None:
    """Behind the text of the last user message."""
    chat.check_messages(messages)
    for at in range(len(messages) - 1, -1, -1):
        message = messages[at]
        if isinstance(message, dict) and message["role"] == "user":
            content = message["content"]
            text = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
            messages[at] = {**message, "content": [*text, *images]}
            return
    raise BadRecord("bad_field", "there is no user message to put the images into")
