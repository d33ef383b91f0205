"""The pretend provider's HTTP server. One handler, no router: half a core serves a few thousand requests a second."""

from __future__ import annotations

import asyncio
import hmac
import random
import secrets as chance
import time
from collections.abc import Callable
from typing import Literal

import msgspec
from aiohttp import web

from penstock.jobs.sandbox import forms, page
from penstock.jobs.sandbox.answers import Ask, answer, cut, input_tokens, last_prompt
from penstock.jobs.sandbox.behaving import Behaviours
from penstock.jobs.sandbox.cases import Book
from penstock.jobs.sandbox.ledger import Ledger, Who, who
from penstock.jobs.sandbox.limits import ModelLimits
from penstock.jobs.sandbox.planted import is_right, planted_answer, sureness
from penstock.jobs.sandbox.settings import Behaviour, Settings

MAX_REQUEST_BYTES = 32_000_000
"""Anthropic's own limit of a request."""
HANG_LOOK_S = 0.25
"""How often a hanging request looks whether anybody still waits for it."""
MAX_MODELS = 1000
"""Names with limits of their own that are remembered."""

Form = Literal["openai", "anthropic"]

_ask = msgspec.json.Decoder(Ask)
_body = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder(order="sorted").encode

_ANSWERS: dict[Form, Callable[[forms.Said], bytes]] = {
    "openai": forms.openai_answer,
    "anthropic": forms.anthropic_answer,
}
_FAILURES: dict[Form, Callable[[str, str], forms.Reply]] = {
    "openai": forms.openai_failure,
    "anthropic": forms.anthropic_failure,
}
_PATHS: dict[str, Form] = {
    "/v1/chat/completions": "openai",
    "/chat/completions": "openai",
    "/v1/messages": "anthropic",
}


class Sandbox:
    """The state behind the handler."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.journal)
        self._random = random.Random(settings.seed)
        self._behaviours = Behaviours(settings)
        self._book = Book(settings.truth)
        self._limits: dict[str, ModelLimits] = {}
        # Request ids stay unique over restarts, so that journals can be compared.
        self._prefix = chance.token_hex(5)
        self._n = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        self._closing.set()
        self.ledger.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        form = _PATHS.get(request.path)
        if form is not None and request.method == "POST":
            return await self._complete(request, form)
        if request.path == "/v1/models":
            names = sorted(self.settings.models) or ["sandbox"]
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "sandbox"} for name in names]
            return _json(200, _encode({"object": "list", "data": listed}))
        if request.path.startswith("/stats"):
            return await page.respond(request, self.ledger)
        if request.path == "/behaviour":
            return await self._behave(request)
        if request.path == "/health":
            return _json(200, b"{}")
        return self._fail("openai", "not_found", self._request_id())

    async def _behave(self, request: web.BaseRequest) -> web.StreamResponse:
        """What a model does from now on: `POST /behaviour?model=NAME` with what changes, by the sandbox's key."""
        if not self._known(request):
            return self._fail("openai", "auth", self._request_id())
        model = request.query.get("model", "")
        if request.method == "POST":
            try:
                self._behaviours.change(model, await _read(request) or b"")
            except ValueError as error:
                return _json(400, _encode({"error": str(error)}))
            self._limits.pop(model, None)
        return _json(200, _encode(self._behaviours.of(model)))

    def _request_id(self) -> str:
        self._n += 1
        return f"{self._prefix}{self._n:010d}"

    async def _complete(self, request: web.BaseRequest, form: Form) -> web.StreamResponse:
        request_id = f"req_{self._request_id()}"
        if not self._known(request):
            return self._fail(form, "auth", request_id)
        try:
            body = await _read(request)
        except ConnectionError:  # the client left in the middle of its request: nothing was asked
            return web.Response(status=400)
        if body is None:
            return self._fail(form, "too_large", request_id)
        try:
            ask = _ask.decode(body)
        except (ValueError, RecursionError):
            return self._fail(form, "bad_request", request_id)
        headers = request.headers
        item = headers.get("x-penstock-item")
        payer = who(item, headers.get("x-penstock-attempt"), b"" if item else _canonical(body))
        return await self._within_limits(request, form, ask, payer, request_id)

    async def _within_limits(
        self, request: web.BaseRequest, form: Form, ask: Ask, payer: Who, request_id: str
    ) -> web.StreamResponse:
        behaviour = self._behaviours.of(ask.model)
        limits = self._limits_of(ask.model, behaviour)
        amount = input_tokens(ask)
        wait_s = limits.admit(amount, time.monotonic())
        if wait_s > 0.0:
            return self._fail(form, "rate_limit", request_id, limits, wait_s)
        fault = behaviour.faults.pick(self._random.random())
        limits.running += 1
        try:
            await self._take_time(behaviour)
            if fault is not None:
                spoiled = await self._go_wrong(request, form, fault, request_id, limits)
                if spoiled is not None:
                    return spoiled
            return self._answer(form, ask, payer, request_id, amount, fault, limits)
        finally:
            limits.running -= 1

    async def _take_time(self, behaviour: Behaviour) -> None:
        delay_s = behaviour.latency_ms / 1000.0
        if behaviour.jitter_ms:
            delay_s += self._random.uniform(-1.0, 1.0) * behaviour.jitter_ms / 1000.0
        if behaviour.tail and self._random.random() < behaviour.tail:
            delay_s = behaviour.tail_s
        if delay_s > 0.0:
            await asyncio.sleep(delay_s)

    async def _go_wrong(
        self, request: web.BaseRequest, form: Form, fault: str, request_id: str, limits: ModelLimits
    ) -> web.StreamResponse | None:
        """The uncharged faults; None for those that look like an answer and are charged."""
        match fault:
            case "hang":
                self.ledger.failed[fault] += 1
                while request.transport is not None and not self._closing.is_set():  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(HANG_LOOK_S)
            case "cut":
                self.ledger.failed[fault] += 1
            case "invalid_json" | "refuse":
                return None
            case _:
                wait_s = 1.0 if fault in ("rate_limit", "overloaded") else None
                return self._fail(form, fault, request_id, limits, wait_s)
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    def _answer(
        self, form: Form, ask: Ask, payer: Who, request_id: str, amount: int, fault: str | None, limits: ModelLimits
    ) -> web.StreamResponse:
        refused = fault == "refuse"
        whole, sure = self._text(ask) if not refused else ("", 0.0)
        text, output, was_cut = cut(whole, ask.ceiling) if not refused else ("", 1, False)
        limits.answered(output)
        told = (sure, ask.top_logprobs or 0) if ask.logprobs else (None, 0)
        behaviour = self._behaviours.of(ask.model)
        name, prints = behaviour.answers_as or ask.model, behaviour.fingerprint
        said = forms.Said(request_id[4:], name, text, amount, output, was_cut, refused, int(time.time()), *told, prints)
        body = _ANSWERS[form](said)
        if fault == "invalid_json":
            body = body[: len(body) // 2]
        # Charged before it leaves: whoever got an answer stands in the journal.
        self.ledger.charge(payer, request_id, ask.model, (amount, output), fault or "ok")
        return _json(200, body, self._headers(form, request_id, limits))

    def _text(self, ask: Ask) -> tuple[str, float]:
        """By what was planted, where that was and the truth is known; else an answer that makes sense. And how sure the
        model is of it."""
        planted = self._behaviours.of(ask.model).planted
        known = self._book.find(last_prompt(ask)) if planted is not None else None
        if planted is None or known is None:
            return answer(ask), sureness(ask, last_prompt(ask), None, self.settings.seed)
        right = is_right(ask, known, planted, self.ledger.calls(ask.model), self.settings.seed)
        self.ledger.knew(ask.model, right)
        return planted_answer(ask, known, right), sureness(ask, known.key, right, self.settings.seed)

    def _fail(
        self, form: Form, kind: str, request_id: str, limits: ModelLimits | None = None, wait_s: float | None = None
    ) -> web.StreamResponse:
        self.ledger.failed[kind] += 1
        status, body = _FAILURES[form](kind, request_id)
        headers = self._headers(form, request_id, limits)
        if wait_s is not None:
            headers["retry-after"] = str(max(1, round(wait_s + 0.499)))
            if form == "openai":
                headers["retry-after-ms"] = str(max(1, int(wait_s * 1000)))
        return _json(status, body, headers)

    def _headers(self, form: Form, request_id: str, limits: ModelLimits | None) -> dict[str, str]:
        tick = time.monotonic()
        if form == "openai":
            told = limits.openai_headers(tick) if limits is not None and limits.limited else {}
            return {"x-request-id": request_id, **told}
        told = limits.anthropic_headers(tick, time.time()) if limits is not None and limits.limited else {}
        return {"request-id": request_id, **told}

    def _limits_of(self, model: str, behaviour: Behaviour) -> ModelLimits:
        limits = self._limits.get(model)
        if limits is None:
            if len(self._limits) >= MAX_MODELS:
                self._limits.pop(next(iter(self._limits)))
            limits = self._limits[model] = ModelLimits(behaviour, time.monotonic())
        return limits

    def _known(self, request: web.BaseRequest) -> bool:
        token = self.settings.token
        if token is None:
            return True
        given = request.headers.get("x-api-key") or request.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), token.encode())


async def _read(request: web.BaseRequest) -> bytes | None:
    """The body; None where it is too large. (aiohttp's own bound is 1 MB.)"""
    length = request.content_length
    if length is not None:
        return await request.content.read() if length <= MAX_REQUEST_BYTES else None
    parts: list[bytes] = []
    size = 0
    async for part in request.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_REQUEST_BYTES:
            return None
    return b"".join(parts)


def _canonical(body: bytes) -> bytes:
    """The request without its model: the same question, whoever answers it."""
    fields = _body.decode(body)
    fields.pop("model", None)
    return _encode(fields)


def _json(status: int, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")
