"""A streamed chat completion, which has come to its end, as the body that its host would have sent in one."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.workers.wire.base import as_utf8

Node = dict[str, Any]

_decode = msgspec.json.Decoder(Node).decode
_encode = msgspec.json.Encoder().encode
_GROWING = frozenset({"content", "refusal", "reasoning", "reasoning_content", "arguments"})
"""Texts that come in pieces; others come once, or again as they were."""


def joined(stream: bytes) -> bytes:
    """Raises `ValueError` where a piece is no JSON object, or an answer has no end."""
    body: Node = {}
    choices: dict[int, Node] = {}
    for line in as_utf8(stream).splitlines():
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            piece = _decode(data)
            for part in piece.pop("choices", None) or ():
                _add(choices, part)
            body |= {key: value for key, value in piece.items() if value is not None}
    for choice in choices.values():
        choice["message"] = _whole(choice["message"])
        if "error" in body:
            choice |= {"finish_reason": "error", "error": body["error"]}
        if choice["finish_reason"] is None:
            raise ValueError("the stream broke off")
    listed = [choices[index] for index in sorted(choices)]
    return _encode({**body, "object": "chat.completion", "choices": listed})


def _add(choices: dict[int, Node], part: Node) -> None:
    index = part.get("index", 0)
    choice = choices.setdefault(index, {"index": index, "message": {}, "finish_reason": None})
    _grow(choice["message"], part.pop("delta", None) or {})
    for name, pieces in (part.pop("logprobs", None) or {}).items():
        if pieces:
            choice.setdefault("logprobs", {}).setdefault(name, []).extend(pieces)
    choice |= {key: value for key, value in part.items() if value is not None}


def _grow(message: Node, delta: Node) -> None:
    for call in delta.pop("tool_calls", None) or ():
        calls = message.setdefault("tool_calls", [])
        at = call.pop("index", 0)
        if at == len(calls):
            calls.append({"function": {}})
        if not 0 <= at < len(calls):
            raise ValueError("a tool call was left out")
        function = call.pop("function", None)
        _grow(calls[at]["function"], function or {})
        _grow(calls[at], call)
    for key, value in delta.items():
        if value is not None and key in _GROWING:
            message.setdefault(key, []).append(value)
        elif value is not None:
            message[key] = value


def _whole(node: Node) -> Node:
    """With its texts put together, all at once: a long answer comes in 100,000 pieces, and to copy what is there for
    each of them takes minutes, in which no other call goes on."""
    out: Node = {}
    for key, value in node.items():
        if key == "tool_calls":
            out[key] = [_whole(call) for call in value]
        elif key == "function":
            out[key] = _whole(value)
        else:
            out[key] = "".join(value) if key in _GROWING else value
    return out
