"""The two protocols of the pretend provider: how an answer and each failure look."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from penstock.jobs.sandbox.answers import pieces

_encode = msgspec.json.Encoder().encode

Reply = tuple[int, bytes]


class Said(msgspec.Struct, frozen=True, gc=False):
    """An answer before it has a form."""

    id: str
    model: str
    text: str
    input: int
    output: int
    cut: bool
    refused: bool
    created: int
    sure: float | None = None
    """Probability of each of its tokens, where the request asks for it."""
    others: int = 0
    """How many of the likeliest tokens are told of each place."""
    fingerprint: str = ""


def openai_answer(said: Said) -> bytes:
    reason = "content_filter" if said.refused else ("length" if said.cut else "stop")
    message: dict[str, Any] = {"role": "assistant", "content": None if said.refused else said.text}
    message["refusal"] = "I can't help with that." if said.refused else None
    told = None if said.sure is None or said.refused else {"content": _tokens(said.text, said.sure, said.others)}
    return _encode(
        {
            "id": f"chatcmpl-{said.id}",
            "object": "chat.completion",
            "created": said.created,
            "model": said.model,
            "choices": [{"index": 0, "message": message, "logprobs": told, "finish_reason": reason}],
            "usage": {
                "prompt_tokens": said.input,
                "completion_tokens": said.output,
                "total_tokens": said.input + said.output,
                "prompt_tokens_details": {"cached_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
            "system_fingerprint": said.fingerprint,
        }
    )


def _tokens(text: str, sure: float, others: int) -> list[dict[str, Any]]:
    """Each as sure as all; what is left goes to one other token."""
    found: list[dict[str, Any]] = []
    for token in pieces(text):
        likely = sorted(((sure, token), (1.0 - sure, "…")), reverse=True)[:others]
        top = [{"token": name, "logprob": _log(share), "bytes": None} for share, name in likely]
        found.append({"token": token, "logprob": _log(sure), "bytes": None, "top_logprobs": top})
    return found


def _log(share: float) -> float:
    return math.log(max(share, 1e-9))


def anthropic_answer(said: Said) -> bytes:
    reason = "refusal" if said.refused else ("max_tokens" if said.cut else "end_turn")
    return _encode(
        {
            "id": f"msg_{said.id}",
            "type": "message",
            "role": "assistant",
            "model": said.model,
            "content": [] if said.refused else [{"type": "text", "text": said.text}],
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": {
                "input_tokens": said.input,
                "output_tokens": said.output,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "service_tier": "standard",
            },
        }
    )


_OPENAI: dict[str, tuple[int, str, str | None, str]] = {
    "rate_limit": (429, "requests", "rate_limit_exceeded", "Rate limit reached. Please try again later."),
    "spend_cap": (429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota."),
    "server_error": (500, "server_error", None, "The server had an error while processing your request."),
    "overloaded": (503, "server_error", None, "The engine is currently overloaded."),
    "bad_request": (400, "invalid_request_error", None, "The request is not a chat completion."),
    "too_large": (413, "invalid_request_error", "request_too_large", "The request is too large."),
    "auth": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    "not_found": (404, "invalid_request_error", None, "Unknown request URL."),
}
_ANTHROPIC: dict[str, tuple[int, str, str]] = {
    "rate_limit": (429, "rate_limit_error", "This request would exceed your rate limit."),
    "spend_cap": (429, "rate_limit_error", "Your organization has reached its spend limit."),
    "server_error": (500, "api_error", "Internal server error."),
    "overloaded": (529, "overloaded_error", "Overloaded."),
    "bad_request": (400, "invalid_request_error", "messages: field required"),
    "too_large": (413, "request_too_large", "Request exceeds the maximum size."),
    "auth": (401, "authentication_error", "invalid x-api-key"),
    "not_found": (404, "not_found_error", "Not found."),
}


def openai_failure(kind: str, request_id: str) -> Reply:
    status, name, code, message = _OPENAI[kind]
    return status, _encode({"error": {"message": message, "type": name, "param": None, "code": code}})


def anthropic_failure(kind: str, request_id: str) -> Reply:
    status, name, message = _ANTHROPIC[kind]
    error: dict[str, Any] = {"type": name, "message": message}
    if kind == "spend_cap":
        error["details"] = {"error_code": "enforced_spend_limit_reached"}
    return status, _encode({"type": "error", "error": error, "request_id": request_id})
