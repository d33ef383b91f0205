"""vLLM in processes of its own, behind `AsyncLLM`: where a GPU computes while Python renders and counts.

Never `LLMEngine` with processes: when its core is killed, `step` hangs for ever. `AsyncLLM` says so within 0.12 s.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from penstock.engine.catalog import Model, Version
from penstock.engine.errors import PenstockError
from penstock.engine.items import Failure, Outcome
from penstock.workers.engines.base import EngineDead, Ticket
from penstock.workers.engines.outbox import Done, Outbox
from penstock.workers.engines.vllm_gauges import Counters
from penstock.workers.engines.vllm_requests import (
    BACKLOG,
    UNWANTED,
    BadCall,
    Builder,
    failed,
    outcome_of,
    refusal,
    unbegun,
)
from penstock.workers.engines.vllm_settings import (
    batch_use,
    commit_of,
    engine_args,
    has_gpu,
    prepare_environment,
    settings,
)


class Load:
    """The scheduler's last word, as vLLM's stat logger hands it over."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.kv_cache_usage = 0.0


class VllmProcsEngine:
    """`Engine` over one `AsyncLLM`. See `base.Engine` for what is promised. All of it runs in the event loop."""

    def __init__(
        self,
        model: Model,
        version: Version,
        *,
        resolve: Callable[[str], str] = str,
        clock: Callable[[], float] = time.time,
        worker: str = "",
    ) -> None:
        """As `VllmInprocEngine`. Raises `SpecError` where the model's engine settings can't be read."""
        self._name = model.name
        self._settings = settings(model, version, gpu=has_gpu(), resolve=resolve)
        self._clock = clock
        self._worker = worker
        self._tasks: dict[Ticket, asyncio.Task[None]] = {}
        self._held: set[Ticket] = set()
        self._ids = itertools.count(1)
        self._count = Counters()
        self._load = Load()
        self._busy_since: float | None = None
        self._seats = 1
        self._engine: Any = None
        self._commit: str | None = None
        self._builder: Builder | None = None
        self._outbox: Outbox | None = None

    async def start(self) -> None:
        """Load the model; returns when it can answer. Raises `SpecError` for settings that vLLM refuses, `EngineDead`
        where it can't load."""
        self._outbox = Outbox()
        began = time.perf_counter()
        try:
            # In a thread: it takes 20 to 40 s, in which the loop has leases to renew.
            self._engine = await asyncio.get_running_loop().run_in_executor(None, self._build)
        except PenstockError:
            raise
        except Exception as error:
            raise EngineDead(f"engine {self._name} can't load its model: {error}"[:1000]) from error
        self._builder = Builder(self._engine.model_config, self._engine.renderer)
        self._commit = commit_of(self._engine.model_config)
        self._seats = int(self._engine.vllm_config.scheduler_config.max_num_seqs)
        self._count.loaded(began)

    def _build(self) -> Any:
        prepare_environment(self._settings, in_process=False)
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_args(self._settings, self._name, asynchronous=True)
        loggers = [_stat_logger(self._load, self._count)]
        return AsyncLLM.from_engine_args(arguments, usage_context=batch_use(), stat_loggers=loggers)

    def room(self) -> int:
        if self._builder is None or self._box.dead is not None:
            return 0
        return max(0, int(self._seats * BACKLOG) + 1 - len(self._held))

    def submit(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self._held.add(ticket)
            if self._busy_since is None:
                self._busy_since = time.perf_counter()
            task = asyncio.create_task(self._serve(ticket))
            self._tasks[ticket] = task
            task.add_done_callback(lambda task, ticket=ticket: self._end(ticket, task))

    async def outcomes(self) -> list[Done]:
        done = await self._box.take()
        self._held.difference_update(ticket for ticket, _ in done)
        return done

    def abort(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            ticket.aborted = True
            if task := self._tasks.get(ticket):
                task.cancel()

    def held(self) -> list[Ticket]:
        """Tickets without a delivered outcome: what to report when the engine is dead."""
        return list(self._held)

    def gauges(self) -> dict[str, float]:
        load = self._load
        self._note_busy()
        return self._count.gauges(
            running=load.running, waiting=load.waiting, kv_cache_usage=load.kv_cache_usage, seats=self._seats
        )

    async def close(self) -> None:
        """Ends the processes; tickets still held get no outcome."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await asyncio.get_running_loop().run_in_executor(None, engine.shutdown)
        if self._outbox is not None:
            self._outbox.die("closed")

    @property
    def _box(self) -> Outbox:
        if self._outbox is None:
            raise EngineDead(f"engine {self._name} was never started")
        return self._outbox

    def _end(self, ticket: Ticket, task: asyncio.Task[None]) -> None:
        """Also for tickets whose task was cancelled before it began, or broke in a way nobody thought of."""
        del self._tasks[ticket]
        self._note_busy()
        if task.cancelled():
            failure = Failure("cancelled", UNWANTED) if ticket.aborted else None
        elif error := task.exception():
            failure = Failure("server_error", f"{type(error).__name__}: {error}"[:500], status=500)
        else:
            return
        if failure is not None:
            self._deliver(ticket, self._failed(ticket, failure, self._clock(), time.perf_counter()))

    def _deliver(self, ticket: Ticket, outcome: Outcome) -> None:
        self._count.add(outcome.usage)
        self._box.put([(ticket, outcome)])

    def _note_busy(self) -> None:
        """Busy is the time with at least one ticket inside."""
        now = time.perf_counter()
        if self._busy_since is not None:
            self._count.busy_s += now - self._busy_since
        self._busy_since = now if self._tasks else None

    async def _serve(self, ticket: Ticket) -> None:
        """One ticket, one outcome; or none, where the engine died under it."""
        try:
            self._deliver(ticket, await self._outcome(ticket, self._clock(), time.perf_counter()))
        except EngineDead as dead:
            self._box.die(str(dead))

    async def _outcome(self, ticket: Ticket, now: float, began: float) -> Outcome:
        if (failure := unbegun(ticket, now)) is not None:
            return self._failed(ticket, failure, now, began)
        if self._builder is None:
            raise EngineDead(f"engine {self._name} was never started")
        try:
            prepared = self._builder.build(ticket)
            async with asyncio.timeout(ticket.call.timeout_s):
                output = await self._generate(ticket, prepared.prompt, prepared.params, prepared.priority)
        except BadCall as bad:
            return self._failed(ticket, bad.failure, now, began)
        except TimeoutError:
            failure = Failure("timeout", f"no answer within {ticket.call.timeout_s:g} s")
            return self._failed(ticket, failure, now, began)
        ms = (time.perf_counter() - began) * 1000
        return outcome_of(prepared, output, ticket.call, now, ms, self._worker, self._commit)

    async def _generate(self, ticket: Ticket, prompt: Any, params: Any, priority: int) -> Any:
        """The finished output. Raises `BadCall`, `EngineDead`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        request_id = f"{ticket.call.call_id}:{next(self._ids)}"
        last: Any = None
        try:
            async for output in self._engine.generate(prompt, params, request_id, priority=priority):
                last = output
        except EngineDeadError as error:
            raise EngineDead(f"engine {self._name} died: {error}"[:500]) from error
        except request_errors() as error:
            raise refusal(error) from error
        if last is None:
            raise EngineDead(f"engine {self._name} ended a request without an output")
        return last

    def _failed(self, ticket: Ticket, failure: Failure, now: float, began: float) -> Outcome:
        return failed(ticket.call, failure, now, (time.perf_counter() - began) * 1000, self._worker)


@cache
def request_errors() -> tuple[type[Exception], ...]:
    """What vLLM raises about a request and not about itself: plain `ValueError`s in release 0.26, a class of their own
    in 0.32."""
    import vllm.exceptions as raised

    own: type[Exception] = getattr(raised, "VLLMClientError", ValueError)
    return own, ValueError, TypeError


def _stat_logger(load: Load, count: Counters) -> Any:
    """vLLM's own way to hand out numbers; steps and their tokens are the progress that a hang lacks."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Logger(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            count.progress += 1
            if scheduler_stats is not None:
                load.running = scheduler_stats.num_running_reqs
                load.waiting = scheduler_stats.num_waiting_reqs
                load.kv_cache_usage = scheduler_stats.kv_cache_usage
            if iteration_stats is not None:
                count.progress += iteration_stats.num_generation_tokens

        def log_engine_initialized(self) -> None: ...

    return Logger
