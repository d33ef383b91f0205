"""OpenAI chat completions, and the many hosts that speak it."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Literal

import msgspec

from penstock.engine.catalog import REFUSABLE, Account
from penstock.engine.items import Answer, Call, Failure, OutputSpec, Usage
from penstock.workers.checking import answers
from penstock.workers.wire import bills, schemas, streamed
from penstock.workers.wire.base import (
    NULL,
    Bucket,
    Headers,
    LimitHeaders,
    Read,
    Wire,
    answered,
    as_utf8,
    at_host,
    believed,
    bill,
    count,
    fail,
    go_duration_s,
    part,
    positive,
    trim,
)
from penstock.workers.wire.openai_errors import HostError, failed, failed_inside

Body = dict[str, msgspec.Raw]


class Traits(msgspec.Struct, frozen=True):
    """How a host differs from the common form."""

    ceiling: str = "max_tokens"
    """The key that bounds the answer. OpenAI's reasoning models refuse `max_tokens`; most hosts know only that."""
    json_schema: bool = True
    """False: knows only `json_object`, so the schema is told in words."""
    requests_window_s: float = 60.0
    whole_up_to: int | None = None
    """Output tokens; a request that may have more of them is refused unless its answer is streamed."""


NEW = "max_completion_tokens"
COMMON = Traits()
TRAITS: dict[str, Traits] = {
    "openai": Traits(ceiling=NEW),
    "azure": Traits(ceiling=NEW),
    # Models there that are not OpenAI's: Mistral's refuse the new name. The address is the same, so it has to be said.
    "azure-partner": COMMON,
    # docs.x.ai: bounds reasoning as well; the old name is deprecated.
    "xai": Traits(ceiling=NEW),
    # console.groq.com/docs/rate-limits: requests a day, tokens a minute
    "groq": Traits(ceiling=NEW, requests_window_s=86_400.0),
    "cerebras": Traits(ceiling=NEW),
    # api-docs.deepseek.com: json_object only. It ignores the new name of the ceiling without a word.
    "deepseek": Traits(json_schema=False),
    # 400: "Requests with max_tokens > 4096 must have stream=true"
    "fireworks": Traits(whole_up_to=4096),
}
HOSTS = {
    "api.openai.com": "openai",
    "openai.azure.com": "azure",
    "services.ai.azure.com": "azure",
    "cognitiveservices.azure.com": "azure",
    "api.x.ai": "xai",
    "api.groq.com": "groq",
    "api.cerebras.ai": "cerebras",
    "api.deepseek.com": "deepseek",
    "api.fireworks.ai": "fireworks",
}
"""Host, or the end of it behind a dot → its name in `TRAITS`."""

_body = msgspec.json.Decoder(Body)
_encode = msgspec.json.Encoder().encode


@lru_cache(256)
def _traits(provider: str, base_url: str) -> Traits:
    """By the account's provider where that is known here, else by where it points."""
    if provider in TRAITS:
        return TRAITS[provider]
    name = at_host(base_url, HOSTS)
    return TRAITS[name] if name is not None else COMMON


@lru_cache(4096)
def _raw(value: str | int) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))


def build(call: Call, output: OutputSpec | None, account: Account) -> tuple[str, bytes]:
    """The body with the upstream's model, an output ceiling, and the task's output constraint.

    Values of the user's body are copied as bytes. Raises `ValueError` (msgspec's) where it is not a JSON object.
    """
    traits = _traits(account.provider, account.base_url)
    body = _body.decode(call.body_json)
    out: Body = {"model": _raw(call.upstream)}
    dropped = _DROPPED | REFUSABLE.intersection(call.lacks) if call.lacks else _DROPPED
    for key, value in body.items():
        if key not in dropped:
            out[key] = value
    _ceiling(out, call.max_tokens, traits)
    if output is not None:
        _constrain(out, output, traits, call.lacks)
    return "/chat/completions", _encode(out)


_DROPPED = frozenset({"model", "stream", "stream_options", "metadata"})
"""The router chose the model; answers are read whole, also where they have to be streamed; OpenAI takes metadata of
requests that it keeps (`store`) alone, which none is, and other hosts take none."""


def _ceiling(out: Body, max_tokens: int, traits: Traits) -> None:
    """One ceiling, never above what the budget was reserved for, under the one name that this host obeys."""
    said = [out.pop(name) for name in ("max_tokens", NEW) if name in out]
    ceiling = min([max_tokens, *(int(bytes(raw)) for raw in said if _digits(raw))])
    out[traits.ceiling] = _raw(ceiling)
    if traits.whole_up_to is not None and ceiling > traits.whole_up_to:
        out["stream"] = msgspec.Raw(b"true")
        out["stream_options"] = msgspec.Raw(b'{"include_usage":true}')


def _digits(raw: msgspec.Raw) -> bool:
    return bytes(raw).isdigit()


def _constrain(out: Body, output: OutputSpec, traits: Traits, lacks: tuple[str, ...]) -> None:
    """Choices are asked for in words (few hosts take them otherwise); a schema by `response_format`.

    What the request itself asks for by `response_format` stands.
    """
    if output.choices is not None:
        out["messages"] = answers.with_instruction(out["messages"], answers.choices_instruction(output.choices))
    elif output.json_schema is not None and "response_format" not in out:
        if traits.json_schema and "json_schema" not in lacks:
            out["response_format"] = _response_format(output.json_schema)
            return
        out["messages"] = answers.with_instruction(out["messages"], answers.schema_instruction(output.json_schema))
        if not traits.json_schema:
            out["response_format"] = msgspec.Raw(b'{"type":"json_object"}')


@lru_cache(64)
def _response_format(schema: bytes) -> msgspec.Raw:
    strict = schemas.is_strict(msgspec.json.decode(schema))
    wrapped = {"name": "answer", "strict": strict, "schema": msgspec.Raw(schema)}
    return msgspec.Raw(_encode({"type": "json_schema", "json_schema": wrapped}))


class _Part(msgspec.Struct):
    type: str = "text"
    text: str = ""


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = NULL


class _Choice(msgspec.Struct):
    message: _Message | None = None
    """Gemini leaves it out of what it withholds."""
    finish_reason: str | None = None
    error: HostError | str | None = None


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(bills.Told):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: msgspec.Raw = NULL
    completion_tokens_details: msgspec.Raw = NULL
    prompt_cache_hit_tokens: int | None = None
    """DeepSeek's name of the cached ones."""
    cached_tokens: int | None = None
    """Moonshot's, which gives no details."""


class _Response(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = NULL
    model: str | None = None
    system_fingerprint: str | None = None
    error: HostError | str | None = None


_response = msgspec.json.Decoder(_Response)


def read(status: int, headers: Headers, body: bytes, now: float, account: Account) -> Read:
    """Answer or typed failure of one response. Never raises."""
    request_id = headers.get("x-request-id")
    traits = _traits(account.provider, account.base_url)
    limits = _limits(headers, traits)
    if status != 200:
        return Read(failure=failed(status, headers, body, now, limits), request_id=request_id, limits=limits)
    body = trim(body)
    try:
        body = streamed.joined(body) if body.startswith(b"data:") else body
        response = _response.decode(body)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        failure = fail("invalid_response", f"the answer is not a chat completion: {error}", status)
        return _billed(bill(body, _Usage), account)(failure=failure, request_id=request_id, limits=limits)
    billed = partial(_billed(part(response.usage, _Usage), account), request_id=request_id, limits=limits)
    if not response.choices:
        return billed(failure=failed_inside(response.error, headers, now))
    first = response.choices[0]
    text = _text(first.message)
    reason = first.finish_reason or "stop"
    if (stump := next((one for one in response.choices if one.finish_reason in _BROKEN_OFF), None)) is not None:
        failure = failed_inside(stump.error or f"the host broke the answer off ({stump.finish_reason})", headers, now)
        failure = msgspec.structs.replace(failure, may_be_billed=True)
        return billed(failure=failure)
    if (failure := _no_answer(first, text, reason)) is not None:
        return billed(failure=failure)
    answer = Answer(text, reason, as_utf8(body), response.model or "", response.system_fingerprint)
    return answered(billed, answer)


def _billed(usage: _Usage | None, account: Account) -> partial[Read]:
    return partial(Read, usage=_translate(usage), cost_nano=bills.charged_nano(usage, account.base_url))


def _text(message: _Message | None) -> str:
    content = message.content if message is not None else None
    if isinstance(content, list):
        return "".join(part.text for part in content if part.type == "text")
    return content or ""


def _no_answer(choice: _Choice, text: str, reason: str) -> Failure | None:
    """Why there is nothing in this choice. Text that came before a filter struck is the user's to judge."""
    message = choice.message or _Message()
    called = bytes(message.tool_calls) not in (b"null", b"[]")
    if message.refusal:
        return fail("refused", message.refusal, 200)
    if text or (called and "content_filter" not in reason):
        return None
    if reason in _ENDINGS:
        return None if choice.message is not None else fail("invalid_response", "the answer holds no message", 200)
    if "MALFORMED" in reason:
        return fail("invalid_output", f"the model's call of a tool can't be read ({reason})", 200)
    return fail("refused", f"the provider withheld the answer ({reason})", 200)


_ENDINGS = frozenset(
    {
        *("stop", "length", "tool_calls", "function_call", "STOP", "MAX_TOKENS"),
        *("model_length", "eos", "eos_token", "stop_sequence", "end_turn"),
    }
)
"""How an answer may end that is empty all the same. After any other reason (Gemini's `SAFETY`, `RECITATION`,
`content_filter: PROHIBITED_CONTENT`), nothing is no answer."""
_BROKEN_OFF = frozenset({"error", "insufficient_system_resource", "abort"})
"""Finish reasons of OpenRouter (whose choice may tell its upstream's error), DeepSeek and SGLang: what was written by
then is no answer."""


def _translate(usage: _Usage | None) -> Usage | None:
    """`prompt_tokens` holds the cached ones, as `Usage` wants it. Half a bill, without input or output, is none."""
    if usage is None or usage.prompt_tokens is None:
        return None
    if usage.completion_tokens is None and usage.total_tokens is None:
        return None
    inner = part(usage.prompt_tokens_details, _InputDetails)
    outer = part(usage.completion_tokens_details, _OutputDetails)
    cached = (inner.cached_tokens if inner else None) or usage.prompt_cache_hit_tokens or usage.cached_tokens or 0
    reasoning = (outer.reasoning_tokens if outer else None) or 0
    return believed(
        Usage(
            input=usage.prompt_tokens,
            cached=cached,
            cache_write=(inner.cache_write_tokens if inner else None) or 0,
            output=_output(usage.prompt_tokens, usage.completion_tokens or 0, usage.total_tokens, reasoning),
            reasoning=reasoning,
        )
    )


def _output(prompt: int, completion: int, total: int | None, reasoning: int) -> int:
    """All that was produced, reasoning included: inside `completion_tokens` at OpenAI and most others, beside it at xAI
    and Gemini, whose total tells. Without a total, reasoning that is more than the completion can't be inside it."""
    if total is not None:
        return max(completion, total - prompt)
    return completion + reasoning if reasoning > completion else completion


def _limits(headers: Headers, traits: Traits) -> LimitHeaders | None:
    if "x-ratelimit-remaining-requests" not in headers and "x-ratelimit-remaining-tokens" not in headers:
        return None
    return LimitHeaders(
        requests=_bucket(headers, "requests", traits.requests_window_s), tokens=_bucket(headers, "tokens", 60.0)
    )


def _bucket(headers: Headers, what: Literal["requests", "tokens"], window_s: float) -> Bucket | None:
    limit = positive(headers.get(f"x-ratelimit-limit-{what}"))
    if limit is None:
        return None  # -1 and 0 mean unknown (Azure), and then so does `remaining`
    reset = headers.get(f"x-ratelimit-reset-{what}")
    remaining = count(headers.get(f"x-ratelimit-remaining-{what}"))
    return Bucket(limit, remaining, go_duration_s(reset) if reset else None, window_s)


def auth(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


WIRE = Wire(build, read, auth)
