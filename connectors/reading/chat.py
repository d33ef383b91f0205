"""A chat-completions body: what Penstock reads of it, and how it becomes a canonical `Request`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from penstock.connectors.reading import members as allowed
from penstock.connectors.reading.json_guard import Members, members
from penstock.engine.errors import BadRecord
from penstock.engine.items import Request
from penstock.engine.policy import Task

ROLES = frozenset({"system", "user", "assistant", "tool", "developer"})
MAX_N = 128
"""Answers a request; OpenAI's own limit."""
_NOT_OURS = ("model", "stream", "stream_options")
"""Members that aren't forwarded: the router names the model, and an answer is always whole."""

Pictures = tuple[int, int]
"""How many pictures, and the characters of those that are written into the request."""
_TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})
"""Parts that are nothing but text of the request."""
_IMAGES = frozenset({"image_url", "image"})
_ELSEWHERE = frozenset({"audio", "images", "file_ids", "attachments"})
"""Members of a message that stand for content the request does not hold."""

_encode = msgspec.json.Encoder().encode


class Defaults:
    """One task's parameters: what a request gets where it says nothing itself."""

    def __init__(self, task: Task) -> None:
        params = msgspec.json.decode(task.params_json, type=Members)
        self.params = {name: value for name, value in params.items() if name not in _NOT_OURS}
        """Also the members that a line may have though Penstock doesn't know them."""
        self.values: dict[str, object] = {name: msgspec.json.decode(value) for name, value in self.params.items()}
        self.max_tokens = task.max_tokens
        self.temperature = task.temperature
        self.tail = _encode(self.params)[1:]
        """`…}`: what follows the messages in a body built from a row."""
        self.limits = any(name in self.params for name in ("max_tokens", "max_completion_tokens"))


def request_from_body(
    body: Mapping[str, object], parts: Members, defaults: Defaults | None, pin: str | None
) -> Request:
    """`parts`: the members of `body` as written, `metadata` already rid of ours. Raises `BadRecord`."""
    pictures = check_messages(body.get("messages"))
    for name in _NOT_OURS:
        parts.pop(name, None)
    if defaults is not None and defaults.params:
        body = _fill(body, parts, defaults)
    if odd := parts.keys() - allowed.PLAIN:
        allowed.check(odd, body, () if defaults is None else defaults.params)
    return _request(_encode(parts), body, defaults, pin, pictures)


def request_from_messages(messages: Sequence[object], defaults: Defaults) -> Request:
    """Raises `BadRecord`."""
    pictures = check_messages(messages)
    try:
        written = _encode(messages)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord("bad_field", f"messages cannot be written as JSON: {error}") from error
    text = b'{"messages":' + written + (b"," if defaults.params else b"") + defaults.tail
    return _request(text, defaults.values, defaults, None, pictures)


def _fill(body: Mapping[str, object], parts: Members, defaults: Defaults) -> Mapping[str, object]:
    """A ceiling under either name in the request displaces the task's, under whichever name."""
    own_limit = defaults.limits and ("max_tokens" in parts or "max_completion_tokens" in parts)
    for name, value in defaults.params.items():
        if not (own_limit and name in {"max_tokens", "max_completion_tokens"}):
            parts.setdefault(name, value)
    return {**defaults.values, **body} if not own_limit else {**_without_limit(defaults.values), **body}


def _without_limit(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if name not in {"max_tokens", "max_completion_tokens"}}


def _request(
    text: bytes, body: Mapping[str, object], defaults: Defaults | None, pin: str | None, pictures: Pictures
) -> Request:
    ceiling = body.get("max_completion_tokens")
    if ceiling is None:
        ceiling = body.get("max_tokens")
    if ceiling is None and defaults is not None:
        ceiling = defaults.max_tokens
    temperature = body.get("temperature")
    if temperature is None and defaults is not None:
        temperature = defaults.temperature
    count = body.get("n")
    digest = hashlib.sha256(text, usedforsecurity=False)  # processors help with it: twice as fast as blake2b at 64 kB
    if pin is not None:
        digest.update(b"\0" + pin.encode())
    return Request(
        body_json=text,
        model=pin,
        max_tokens=None if ceiling is None else _whole("max_tokens", ceiling, 1, 1 << 31),
        temperature=None if temperature is None else _temperature(temperature),
        n=1 if count is None else _whole("n", count, 1, MAX_N),
        images=pictures[0],
        image_bytes=pictures[1],
        needs=_needs(body, pictures[0]),
        input_hash=digest.hexdigest()[:32],
    )


def _needs(body: Mapping[str, object], images: int) -> tuple[str, ...]:
    needs: list[str] = []
    if body.get("tools") or body.get("functions"):
        needs.append("tools")
    if images:
        needs.append("images")
    shape = body.get("response_format")
    if isinstance(shape, dict) and shape.get("type") == "json_schema":
        needs.append("json_schema")
    if body.get("logprobs"):
        needs.append("logprobs")
    return tuple(needs)


def _whole(name: str, value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise BadRecord("bad_field", f"{name} is {str(value)[:60]!r}, not a whole number of at least {low}")
    return value


def _temperature(value: object) -> float:
    if (type(value) is not float and type(value) is not int) or not 0 <= value <= 2:
        raise BadRecord("bad_field", f"temperature is {str(value)[:60]!r}, not a number from 0 to 2")
    return float(value)


def check_messages(messages: object) -> Pictures:
    """The pictures in them. Raises `BadRecord`, also for content whose cost the request doesn't bound."""
    if messages is None:
        raise BadRecord("missing_field", "the request has no messages")
    if not isinstance(messages, (list, tuple)) or not messages:
        raise BadRecord("bad_field", "messages is not a list with at least one message")
    count = size = 0
    for at, message in enumerate(messages):
        if type(message) is not dict:
            raise BadRecord("bad_field", f"messages[{at}] is not an object")
        role = message.get("role")
        if type(role) is not str or role not in ROLES:
            known = ", ".join(sorted(ROLES))
            raise BadRecord("bad_field", f"messages[{at}].role is {str(role)[:60]!r}; roles are {known}")
        if not _ELSEWHERE.isdisjoint(message):
            _refuse_elsewhere(at, message)
        content = message.get("content")
        if type(content) is not str:
            more, bytes_more = _parts(at, role, content)
            count += more
            size += bytes_more
    return count, size


def _refuse_elsewhere(at: int, message: Mapping[str, object]) -> None:
    for name in sorted(_ELSEWHERE):
        if message.get(name) is not None:
            raise BadRecord("unsupported", f"messages[{at}].{name} is not sent: nobody can bound what it costs")


def _parts(at: int, role: str, content: object) -> Pictures:
    if content is None and role == "assistant":
        return 0, 0  # its tool calls are its content
    if type(content) is not list or not content:
        raise BadRecord("bad_field", f"messages[{at}].content is neither text nor a list of parts")
    count = size = 0
    for part in content:
        if type(part) is not dict or type(part.get("type")) is not str:
            raise BadRecord("bad_field", f"messages[{at}].content holds a part without a type")
        kind = part["type"]
        if kind in _IMAGES:
            count += 1
            size += _image_bytes(at, part)
        elif kind not in _TEXTS and not _is_text_document(part):
            raise BadRecord(
                "unsupported",
                f"messages[{at}].content holds a part of type {kind[:60]!r}; only text and images are sent: what "
                "others cost can't be bounded",
            )
    return count, size


def _is_text_document(part: Mapping[str, object]) -> bool:
    """Anthropic's form for a text with a title. A PDF's pages, or a document at an address, can't be counted here."""
    source = part.get("source")
    return part["type"] == "document" and isinstance(source, dict) and source.get("type") == "text"


def _image_bytes(at: int, part: Mapping[str, object]) -> int:
    """Characters of a picture that is written into the request; none of one at an address. Raises `BadRecord`."""
    if part["type"] == "image":
        return _source_bytes(at, part.get("source"))
    found = part.get("image_url")
    url = found.get("url") if isinstance(found, dict) else found
    if type(url) is not str:
        raise BadRecord("bad_field", f"messages[{at}].content holds an image without a url")
    scheme = url[:11].lower()
    if scheme == "data:image/":
        return len(url)
    if scheme.startswith(("http://", "https://")):
        return 0
    raise BadRecord("unsupported", f"an image in messages[{at}] is {url[:40]!r}; wants http(s): or data:image/")


def _source_bytes(at: int, source: object) -> int:
    """Of Anthropic's own form."""
    match source:
        case {"type": "base64", "media_type": str(media), "data": str(data)} if media.startswith("image/"):
            return len(data)
        case {"type": "url", "url": str()} | {"type": "file", "file_id": str()}:
            return 0
        case _:
            raise BadRecord("bad_field", f"messages[{at}].content holds an image without a source that can be read")


def refuse_duplicates(parts: Members) -> None:
    """Raises `BadRecord` where a message names a member twice."""
    for message in msgspec.json.decode(parts["messages"], type=list[msgspec.Raw]):
        members(message)
