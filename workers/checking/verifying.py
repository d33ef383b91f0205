"""Holds answers against the choices or the schema asked for: made canonical, or marked invalid with the reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import msgspec

from penstock.engine.items import Failure, Outcome
from penstock.workers.checking.answers import check, may_take_long
from penstock.workers.checking.apart import Apart, TooLong
from penstock.workers.engines.base import Ticket

CPU_S = 1.0
"""Of the processor's time, for one answer: thousands of times what an honest one takes."""
PATIENCE_S = 10.0
"""On a busy machine. Nobody waits for it but this answer, and those behind it."""
START_S = 300.0
"""For the process to be there; the answers wait. A worker that can't start any for so long is not well."""
PAUSE_S = 0.5
LONGS, LONG_SHARE = 3, 0.05
"""So many answers to one schema that took too long, and such a share of its answers: those behind them wait in vain,
whatever their schemas, and its later ones are invalid unlooked at."""


class Verifier:
    """Answers to schemas that may take long are checked apart, one after another."""

    def __init__(self, apart: Apart | None = None) -> None:
        self._apart = apart or Apart(PATIENCE_S, CPU_S)
        self._one = asyncio.Lock()
        self._seen: dict[bytes, list[int]] = {}
        """Schema → its answers so far, and those that took too long."""

    def __call__(self, ticket: Ticket, outcome: Outcome) -> Outcome | Awaitable[Outcome]:
        output = ticket.output
        if output is None or outcome.answer is None or outcome.failure is not None:
            return outcome
        if output.choices is None and output.json_schema is not None and may_take_long(output.json_schema):
            return self._later(outcome, outcome.answer.text, output.json_schema)
        return _held(outcome, *check(outcome.answer.text, output))

    async def _later(self, outcome: Outcome, text: str, schema: bytes) -> Outcome:
        """Raises `OSError` where no process can be had."""
        words = f"it takes over {CPU_S:g} s to hold the answer against the schema's patterns"
        async with self._one:
            seen = self._seen.setdefault(schema, [0, 0])
            if seen[1] >= LONGS and seen[1] >= LONG_SHARE * seen[0]:
                return _held(outcome, False, text, words)
            found = None
            while found is None:
                await self._up()
                try:
                    found = await asyncio.to_thread(self._apart.ask, "check", schema.decode(), text)
                except TooLong:
                    seen[0] += 1
                    seen[1] += 1
                    return _held(outcome, False, text, words)
            seen[0] += 1
            return _held(outcome, *msgspec.convert(found, tuple[bool, str, str]))

    async def _up(self) -> None:
        until = time.monotonic() + START_S
        while not await asyncio.to_thread(self._apart.up, PATIENCE_S):
            if time.monotonic() > until:
                raise OSError("no process can be had that checks answers")
            await asyncio.sleep(PAUSE_S)


def _held(outcome: Outcome, ok: bool, text: str, message: str) -> Outcome:
    answer = outcome.answer
    if answer is None or (ok and text == answer.text):
        return outcome
    if ok:
        return msgspec.structs.replace(outcome, answer=msgspec.structs.replace(answer, text=text))
    return msgspec.structs.replace(outcome, failure=Failure("invalid_output", message, may_be_billed=True))
