"""A call → vLLM's own request, and vLLM's output → an outcome. Shared by both engine shapes.

Bodies go through vLLM's `ChatCompletionRequest`, so that what its server understands is understood here, the same way.
What would let a request reach beyond itself (a template of its own, a URL to fetch, transfer of KV blocks) is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from penstock.engine.items import Answer, Call, Failure, Outcome, OutputSpec, Usage
from penstock.workers.engines.base import Ticket

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
"""vLLM renders any role without a word; an unknown one is a mistake in the data."""

REFUSED_FIELDS = {
    "chat_template": "the model's own chat template is used",
    "kv_transfer_params": "it belongs to the operator",
    "ec_transfer_params": "it belongs to the operator",
    "vllm_xargs": "it belongs to the operator",
    "mm_processor_kwargs": "it belongs to the operator",
    "media_io_kwargs": "it belongs to the operator",
    "use_beam_search": "beam search isn't offered",
    "prompt_logprobs": "the answer has no place for them",
    "truncate_prompt_tokens": "a prompt that is too long is reported, not cut",
    "echo": "an answer that repeats the prompt isn't offered",
}

DROPPED_FIELDS = (
    "stream",
    "stream_options",
    "stream_interval",
    "priority",
    "request_id",
    "session_id",
    "user",
    "model",
)
"""They say how an answer travels, which is ours to decide, or who asks, which vLLM doesn't want to know."""

MAX_COMPLETIONS = 128
"""OpenAI's own bound on `n`; each one takes a place in the engine."""

BACKLOG = 1.5
"""Tickets an engine holds, in multiples of what it runs at once: enough to refill it while a lane is asked, no more, so
that workers of unequal speed finish together. A guess."""

UNWANTED = "nobody wants the answer any more"

REALTIME, BULK = -1, 0
"""vLLM serves lower numbers first."""


def unbegun(ticket: Ticket, now: float) -> Failure | None:
    """Why a call that waited in the engine is not begun any more; None: it may be."""
    if ticket.lapsed(now):
        return Failure("not_sent", "the right to send has lapsed")
    return Failure("cancelled", "the deadline passed before it was begun") if ticket.late(now) else None


class BadCall(Exception):
    """This call can't run here; `failure` says why. Harmless to the engine."""

    def __init__(self, kind: Literal["bad_request", "too_long"], message: str) -> None:
        self.failure = Failure(kind=kind, message=message, status=400)
        super().__init__(message)


class Prepared(msgspec.Struct, frozen=True):
    prompt: Any
    """vLLM's engine input: token ids and, for pictures, their tensors."""
    params: Any
    priority: int
    request: Any
    """The `ChatCompletionRequest`."""


class Builder:
    """Builds requests for one loaded model. Not safe for several threads (nor is vLLM's renderer)."""

    def __init__(self, model_config: Any, renderer: Any) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        self._request_type: Any = ChatCompletionRequest
        self._model_config = model_config
        self._renderer = renderer
        self._defaults: dict[str, Any] = model_config.get_diff_sampling_param()
        self._context: int = model_config.max_model_len
        self._schemas: dict[bytes, object] = {}

    def build(self, ticket: Ticket) -> Prepared:
        """Raises `BadCall`."""
        try:
            return self._build(ticket)
        except BadCall:
            raise
        except RecursionError as error:
            raise BadCall("bad_request", "the request is nested too deeply") from error
        except Exception as error:  # vLLM, pydantic, Jinja and the tokenizer raise types of their own
            raise refusal(error) from error

    def _build(self, ticket: Ticket) -> Prepared:
        call = ticket.call
        body = read_body(call.body_json)
        if body.get("tools") and body.get("tool_choice") != "none":
            # Each family writes its calls in its own way; without a parser the answer would be a riddle.
            raise BadCall("bad_request", f"{call.model} takes no tools (say `lacks: [tools]` in the catalogue)")
        request = self._request_type.model_validate(body)
        asked = request.max_completion_tokens or request.max_tokens
        # The length is checked here, against the prompt as it came out, and the answer is cut to what is left of the
        # context: vLLM would refuse a ceiling that it can't reach.
        request.max_completion_tokens = request.max_tokens = None
        chat = request.build_chat_params(None, "auto")
        prompt = self._renderer.render_chat([request.messages], chat, request.build_tok_params(self._model_config))[1][
            0
        ]
        left = self._context - len(prompt["prompt_token_ids"])
        if left < 1:
            raise BadCall("too_long", f"the prompt fills the context of {self._context} tokens")
        params = request.to_sampling_params(min(asked or call.max_tokens or left, left), self._defaults)
        self._constrain(params, ticket.output)
        return Prepared(prompt, params, REALTIME if call.realtime else BULK, request)

    def _constrain(self, params: Any, output: OutputSpec | None) -> None:
        """The task's constraint; what the request itself asks for stands where the task asks for nothing."""
        from vllm.sampling_params import StructuredOutputsParams

        if output is None:
            return
        if output.choices is not None:
            params.structured_outputs = StructuredOutputsParams(choice=list(output.choices))
        elif output.json_schema is not None:
            params.structured_outputs = StructuredOutputsParams(json=self._schema(output.json_schema))

    def _schema(self, text: bytes) -> Any:
        if text not in self._schemas:
            if len(self._schemas) > 256:  # tasks are few; this only bounds memory
                self._schemas.clear()
            self._schemas[text] = msgspec.json.decode(text)
        return self._schemas[text]


def read_body(body_json: bytes) -> dict[str, Any]:
    """The body with what we decide taken out. Raises `BadCall`."""
    try:
        body: dict[str, Any] = msgspec.json.decode(body_json, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadCall("bad_request", f"the request is not a JSON object: {error}") from error
    for name in DROPPED_FIELDS:
        body.pop(name, None)
    for name, why in REFUSED_FIELDS.items():
        if body.get(name):
            raise BadCall("bad_request", f"{name} is not taken: {why}")
    if isinstance(n := body.get("n"), int) and n > MAX_COMPLETIONS:
        raise BadCall("bad_request", f"n is {n}; at most {MAX_COMPLETIONS} completions of one prompt are made")
    _check_messages(body.get("messages"))
    return body


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadCall("bad_request", "messages must be a list of at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadCall("bad_request", f"message {number} is not an object")
        if message.get("role") not in ROLES:
            raise BadCall(
                "bad_request", f"message {number} has the role {message.get('role')!r:.60}; known: {_known()}"
            )
        _check_parts(number, message.get("content"))


def _check_parts(number: int, content: object) -> None:
    """A worker fetches nothing: a URL in the data would make it call wherever the data says."""
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        for kind in ("image_url", "audio_url", "video_url"):
            media: object = part.get(kind)
            url = media.get("url") if isinstance(media, dict) else media
            if url is not None and not str(url)[:5].lower() == "data:":
                raise BadCall("bad_request", f"message {number}: {kind} must be a data: URL, workers fetch nothing")


def _known() -> str:
    return ", ".join(sorted(ROLES))


def refusal(error: Exception) -> BadCall:
    """vLLM's word on a request → ours. Never the request's own text: pydantic likes to quote it."""
    if getattr(error, "parameter", None) in ("input_text", "input_tokens"):
        return BadCall("too_long", str(error)[:500])
    return BadCall("bad_request", _without_input(error)[:500])


def _without_input(error: Exception) -> str:
    details = getattr(error, "errors", None)
    if not callable(details):
        return f"{type(error).__name__}: {error}"
    listed: Any = details(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(str(at) for at in one['loc'])}: {one['msg']}" for one in listed[:3])


class TopToken(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopToken]


class Logprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str


class Choice(msgspec.Struct, frozen=True):
    index: int
    message: Message
    finish_reason: str
    logprobs: Logprobs | None = None


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class Tokens(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatBody(msgspec.Struct, frozen=True):
    """An OpenAI chat completion, as it stands in the record's `response.body`."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Tokens


_encode = msgspec.json.Encoder().encode


def used(output: Any) -> Usage:
    """Tokens of a finished `RequestOutput`."""
    return Usage(
        input=len(output.prompt_token_ids or ()),
        cached=output.num_cached_tokens or 0,
        output=sum(len(one.token_ids) for one in output.outputs),
    )


def answer(prepared: Prepared, output: Any, call: Call, created: float, commit: str | None) -> tuple[Answer, Usage]:
    """A finished `RequestOutput` → the answer and what it used. `commit`: of the weights."""
    usage = used(output)
    choices = [_choice(prepared, one) for one in output.outputs]
    body = ChatBody(
        id=f"chatcmpl-{output.request_id}",
        object="chat.completion",
        created=int(created),
        model=call.model,
        choices=choices,
        usage=Tokens(usage.input, usage.output, usage.input + usage.output, PromptDetails(usage.cached)),
    )
    first = choices[0]
    return Answer(first.message.content, first.finish_reason, _encode(body), call.upstream, commit), usage


def _choice(prepared: Prepared, one: Any) -> Choice:
    return Choice(
        index=one.index,
        message=Message("assistant", one.text),
        finish_reason=one.finish_reason or "stop",
        logprobs=_logprobs(one, prepared.request.top_logprobs) if one.logprobs is not None else None,
    )


def _logprobs(one: Any, top: int) -> Logprobs:
    content: list[TokenLogprob] = []
    for token_id, found in zip(one.token_ids, one.logprobs, strict=False):
        chosen = _top(found[token_id])
        ranked = sorted(found.values(), key=lambda entry: entry.rank or 0)[:top]
        content.append(TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, [_top(entry) for entry in ranked]))
    return Logprobs(content)


def _top(entry: Any) -> TopToken:
    token: str = entry.decoded_token or ""
    # OpenAI's floor; JSON has no -Infinity.
    return TopToken(token, max(float(entry.logprob), -9999.0), list(token.encode("utf-8", "replace")))


def broken(prepared: Prepared, output: Any) -> Failure | None:
    """What vLLM gave up on by itself (a grammar beyond its limits, an abort from inside), or None."""
    reasons: Sequence[str | None] = [one.finish_reason for one in output.outputs]
    error = getattr(output, "error", None)
    if error is not None:
        kind = "server_error" if error.retryable else "bad_request"
        return Failure(kind=kind, message=f"{error.code}: {error.message}"[:500])
    if "error" in reasons and prepared.params.structured_outputs is not None:
        # vLLM: "grammar rejected tokens". It would be so again.
        return Failure(kind="bad_request", message="the answer's schema or grammar is too large for this engine")
    if "error" in reasons:
        return Failure(kind="server_error", message="the engine failed on this request", status=500)
    return Failure(kind="cancelled", message="the engine stopped this request") if "abort" in reasons else None


def outcome_of(
    prepared: Prepared, output: Any, call: Call, started_at: float, ms: float, worker: str, commit: str | None
) -> Outcome:
    """What a finished `RequestOutput` means for its call. `commit`: of the weights that answered."""
    if (failure := broken(prepared, output)) is not None:
        return failed(call, failure, started_at, ms, worker, used(output))
    said, usage = answer(prepared, output, call, started_at, commit)
    return Outcome(
        call.item_id,
        call.generation,
        call.attempt,
        started_at,
        ms,
        answer=said,
        usage=usage,
        request_id=output.request_id,
        worker=worker,
    )


def failed(
    call: Call, failure: Failure, started_at: float, ms: float, worker: str, usage: Usage | None = None
) -> Outcome:
    return Outcome(
        call.item_id, call.generation, call.attempt, started_at, ms, failure=failure, usage=usage, worker=worker
    )
