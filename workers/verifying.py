"""Holds answers against the choices or the schema asked for: made canonical, or marked invalid with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import msgspec

from penstock.engine.items import Failure, Outcome
from penstock.workers.answers import check, may_take_long
from penstock.workers.apart import Apart, TooLong
from penstock.workers.engines.base import Ticket

CPU_S = 1.0
"""Of the processor's time, for one answer: thousands of times what an honest one takes."""
PATIENCE_S = 10.0
"""A busy machine, or the process that has to start. Nobody waits for it but this answer, and those behind it."""
TRIES = 3
"""For that process. A worker that can't start any is not well."""


class Verifier:
    """Answers to schemas that may take long are checked apart, one after another."""

    def __init__(self, apart: Apart | None = None) -> None:
        self._apart = apart or Apart(PATIENCE_S, CPU_S)
        self._one = asyncio.Lock()

    def __call__(self, ticket: Ticket, outcome: Outcome) -> Outcome | Awaitable[Outcome]:
        output = ticket.output
        if output is None or outcome.answer is None or outcome.failure is not None:
            return outcome
        if output.choices is None and output.json_schema is not None and may_take_long(output.json_schema):
            return self._later(outcome, outcome.answer.text, output.json_schema)
        return _held(outcome, *check(outcome.answer.text, output))

    async def _later(self, outcome: Outcome, text: str, schema: bytes) -> Outcome:
        """Raises `OSError` where no process can be had."""
        async with self._one:
            for _ in range(TRIES):
                try:
                    found = await asyncio.to_thread(self._apart.ask, "check", schema.decode(), text)
                except TooLong:
                    words = f"it takes over {CPU_S:g} s to hold the answer against the schema's patterns"
                    return _held(outcome, False, text, words)
                if found is not None:
                    return _held(outcome, *msgspec.convert(found, tuple[bool, str, str]))
        raise OSError("no process can be had that checks answers")


def _held(outcome: Outcome, ok: bool, text: str, message: str) -> Outcome:
    answer = outcome.answer
    if answer is None or (ok and text == answer.text):
        return outcome
    if ok:
        return msgspec.structs.replace(outcome, answer=msgspec.structs.replace(answer, text=text))
    return msgspec.structs.replace(outcome, failure=Failure("invalid_output", message, may_be_billed=True))
