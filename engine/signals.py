"""How sure a model is of its answer, in 0…1: what a cascade goes by. Uncalibrated: a threshold has to be found for it
on labelled rows (`measure.cascade`).

`logprob`    the geometric mean of the probabilities of the answer's tokens
`margin`     the smallest lead of a token over the next likely one
`agreement`  the share of several answers that say the same
`validity`   the answer keeps to the choices or the schema
`judge`      what a judge scores the answer (`judging`; it is asked by `flow.steps`)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from penstock.engine.items import Request
from penstock.engine.policy import Signal
from penstock.engine.texts import normal

OF_TOKENS = frozenset({"logprob", "margin"})
"""Signals for which the request asks for the tokens' probabilities."""
GRADED = OF_TOKENS | {"judge"}
"""Signals whose threshold can be found on labelled rows."""


class _Top(msgspec.Struct, frozen=True):
    logprob: float


class _Token(msgspec.Struct, frozen=True):
    logprob: float
    top_logprobs: tuple[_Top, ...] = ()


class _Logprobs(msgspec.Struct, frozen=True):
    content: tuple[_Token, ...] | None = None


class _Choice(msgspec.Struct, frozen=True):
    logprobs: _Logprobs | None = None


class _Body(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()


_body = msgspec.json.Decoder(_Body)
_Object = dict[str, msgspec.Raw]


def of_tokens(signal: Signal, body_json: bytes) -> float | None:
    """`logprob` or `margin` of a chat completion; None where the provider told no probabilities."""
    try:
        body = _body.decode(body_json)
    except msgspec.MsgspecError:
        return None
    told = body.choices[0].logprobs if body.choices else None
    tokens = told.content if told is not None else None
    if not tokens or not all(math.isfinite(token.logprob) for token in tokens):
        return None
    if signal == "logprob":
        return math.exp(min(0.0, sum(token.logprob for token in tokens) / len(tokens)))
    leads = [_lead(token) for token in tokens]
    known = [lead for lead in leads if lead is not None]
    return min(known) if len(known) == len(leads) else None


def _lead(token: _Token) -> float | None:
    """Of the chosen token over the likeliest other one; negative where it was not the likeliest itself."""
    chosen = math.exp(min(0.0, token.logprob))
    others = sorted((math.exp(min(0.0, top.logprob)) for top in token.top_logprobs), reverse=True)
    if not others:
        return None
    if abs(others[0] - chosen) < 1e-9:
        return chosen - others[1] if len(others) > 1 else chosen
    return chosen - others[0]


def agreement(answers: Sequence[str | None]) -> tuple[int, int]:
    """(how many say the same, which of them is the first of these). None is an answer that is of no use."""
    said = [None if answer is None else normal(answer) for answer in answers]
    counts = Counter(answer for answer in said if answer is not None)
    if not counts:
        return 0, 0
    best, n = counts.most_common(1)[0]
    return n, said.index(best)


SEEDS = ("seed", "random_seed")
"""Parameters with which a request is answered alike each time; the latter is Mistral's."""


def varies(request: Request) -> bool:
    """Is it answered otherwise, when it is asked once more? Else answers always agree, which says nothing of them."""
    if request.temperature == 0:
        return False
    if not any(f'"{name}"'.encode() in request.body_json for name in SEEDS):
        return True
    body = msgspec.json.decode(request.body_json, type=_Object)
    return all(bytes(body.get(name, b"null")) == b"null" for name in SEEDS)


# ---- requests that ask for probabilities


def asked(request: Request, signal: Signal) -> Request:
    """The request with the question for probabilities; the same where it asks for them itself."""
    if signal not in OF_TOKENS or "logprobs" in request.needs:
        return request
    body = msgspec.json.decode(request.body_json, type=_Object)
    body["logprobs"] = msgspec.Raw(b"true")
    if signal == "margin":
        body["top_logprobs"] = msgspec.Raw(b"2")
    return msgspec.structs.replace(request, body_json=msgspec.json.encode(body))


def untold(body_json: bytes) -> bytes:
    """A chat completion without the probabilities that nobody but the cascade asked for."""
    try:
        body = msgspec.json.decode(body_json, type=_Object)
        choices = msgspec.json.decode(body["choices"], type=list[_Object]) if "choices" in body else []
    except msgspec.MsgspecError:
        return body_json
    for choice in choices:
        choice.pop("logprobs", None)
    body["choices"] = msgspec.Raw(msgspec.json.encode(choices))
    return msgspec.json.encode(body)
