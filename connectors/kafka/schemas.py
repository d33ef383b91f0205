"""Schemas by id, from a registry that speaks Confluent's REST API, fetched once and kept.

A record is never waited for: `get` says None while its schema is on the way.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import quote

from penstock.connectors.kafka.registry import RETRY_S, Registry, Schema
from penstock.connectors.settings import Connection
from penstock.engine.errors import BadRecord, PenstockError

KEPT = 1_000
"""Schemas in memory. A topic has a few; a number keeps a flood of wrong ids from filling it."""
UNKNOWN_S = 60.0
"""So long an id that the registry does not know stays unknown: a registry's replicas may lag behind. A guess."""
MOST_REFERENCES = 200

Codec = Callable[[bytes], bytes]
"""What follows a record's schema id → the row as JSON. Raises `BadRecord`."""


Compile = Callable[[int, Schema, dict[str, Schema]], Codec]
"""Id, schema, and what it refers to by name, dependencies first. Raises anything where the schema can't be used."""


class Schemas:
    """`serialized`: ask for descriptors rather than text. Raises `SpecError` where no registry is named."""

    def __init__(
        self,
        connection: Connection,
        compile: Compile,
        *,
        serialized: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trouble: PenstockError | None = None
        """The registry can't be asked now, or refuses us."""
        self._registry = Registry(connection)
        self._compile = compile
        self._suffix = "?format=serialized" if serialized else ""
        self._now = now
        self._known: OrderedDict[int, tuple[Codec | BadRecord, float]] = OrderedDict()
        """Id → what it stands for, and until when."""
        self._task: asyncio.Task[None] | None = None
        self._not_before: dict[int, float] = {}
        """Of ids that the registry could not tell, when it is asked again: one that it chokes on holds up no other."""

    def get(self, schema_id: int) -> Codec | BadRecord | None:
        """None: ask again; `trouble` says where that may take long."""
        now = self._now()
        known = self._known.get(schema_id)
        if known is not None and now < known[1]:
            self._known.move_to_end(schema_id)
            return known[0]
        if self._task is None and now >= self._not_before.get(schema_id, 0.0):
            self._task = asyncio.get_running_loop().create_task(self._learn(schema_id))
        return None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._registry.close()

    async def _learn(self, schema_id: int) -> None:
        try:
            found, keep_s = await self._fetched(schema_id)
            self.trouble = None
            self._not_before.pop(schema_id, None)
            self._known[schema_id] = found, self._now() + keep_s
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        except PenstockError as error:
            self.trouble = error
            while len(self._not_before) >= KEPT:
                del self._not_before[next(iter(self._not_before))]
            self._not_before[schema_id] = self._now() + RETRY_S
        finally:
            self._task = None

    async def _fetched(self, schema_id: int) -> tuple[Codec | BadRecord, float]:
        forever = float("inf")
        schema = await self._registry.ask(f"/schemas/ids/{schema_id}{self._suffix}")
        if schema is None:
            return BadRecord("malformed", f"the schema registry knows no schema {schema_id}"), UNKNOWN_S
        named: dict[str, Schema] = {}
        try:
            await self._refer(schema, named)
            return self._compile(schema_id, schema, named), forever
        except PenstockError as error:
            if not isinstance(error, BadRecord):
                raise
            return error, UNKNOWN_S
        except Exception as error:  # noqa: BLE001 - a schema that can't be used makes its records dead letters
            why = f"the schema {schema_id} can't be used: {type(error).__name__}: {error}"
            return BadRecord("malformed", why[:500]), forever

    async def _refer(self, schema: Schema, named: dict[str, Schema]) -> None:
        """Dependencies first; a schema that refers to itself in a circle is refused by the registry."""
        for one in schema.references:
            if one.name in named:
                continue
            if len(named) >= MOST_REFERENCES:
                raise BadRecord("malformed", f"the schema refers to more than {MOST_REFERENCES} others")
            found = await self._registry.ask(
                f"/subjects/{quote(one.subject, safe='')}/versions/{one.version}{self._suffix}"
            )
            if found is None:
                raise BadRecord("malformed", f"the schema refers to {one.subject} {one.version}, which is not there")
            await self._refer(found, named)
            named[one.name] = found
