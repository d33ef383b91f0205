"""vLLM stepped in a thread of this process: the fastest shape on a CPU, where no second device overlaps with Python.

One thread builds the engine and steps it (built in one and stepped in another, OpenMP falls to one core: half the
speed, measured). Tickets come to it by a queue, outcomes leave by an `Outbox`. Set `OMP_NUM_THREADS` for the process
before it starts: Ray sets it to 1 in actors.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import queue
import threading
import time
from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import msgspec

from penstock.engine.catalog import Model, Version
from penstock.engine.errors import PenstockError
from penstock.engine.items import Failure
from penstock.workers.engines.base import EngineDead, Ticket
from penstock.workers.engines.outbox import Done, Outbox
from penstock.workers.engines.vllm_gauges import Counters
from penstock.workers.engines.vllm_requests import (
    BACKLOG,
    UNWANTED,
    BadCall,
    Builder,
    Prepared,
    failed,
    outcome_of,
    refusal,
    unbegun,
)
from penstock.workers.engines.vllm_settings import (
    Settings,
    batch_use,
    commit_of,
    engine_args,
    has_gpu,
    prepare_environment,
    settings,
)


class Flying(msgspec.Struct):
    """A ticket inside vLLM."""

    ticket: Ticket
    prepared: Prepared
    started_at: float
    began: float


class Close:
    """Ends the thread."""


Order = Sequence[Ticket] | Close


class VllmInprocEngine:
    """`Engine` over one in-process vLLM. See `base.Engine` for what is promised."""

    def __init__(
        self,
        model: Model,
        version: Version,
        *,
        resolve: Callable[[str], str] = str,
        clock: Callable[[], float] = time.time,
        worker: str = "",
    ) -> None:
        """`resolve` turns the version's `model` into a folder or a Hugging Face name; `clock` gives Unix seconds.

        Raises `SpecError` where the model's engine settings can't be read.
        """
        self._name = model.name
        self._settings: Settings = settings(model, version, gpu=has_gpu(), resolve=resolve)
        self._clock = clock
        self._worker = worker
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._waiting: deque[Ticket] = deque()
        self._flying: dict[str, Flying] = {}
        self._ids = itertools.count(1)
        self._done: list[Done] = []
        self._held: set[Ticket] = set()
        self._count = Counters()
        self._seats = 1
        self._engine: Any = None
        self._commit: str | None = None
        self._thread: threading.Thread | None = None
        self._outbox: Outbox | None = None

    # What the event loop calls.

    async def start(self) -> None:
        """Load the model; returns when it can answer. Raises `SpecError` for settings that vLLM refuses, `EngineDead`
        where it can't load."""
        self._outbox = Outbox()
        loop = get_running_loop()
        loaded: Future[None] = loop.create_future()

        def tell(error: BaseException | None) -> None:
            def settle() -> None:
                if not loaded.done():
                    loaded.set_exception(error) if error else loaded.set_result(None)

            loop.call_soon_threadsafe(settle)

        self._thread = threading.Thread(target=self._run, args=(tell,), name=f"vllm {self._name}", daemon=True)
        self._thread.start()
        await loaded

    def room(self) -> int:
        if self._engine is None or self._box.dead is not None:
            return 0
        return max(0, int(self._seats * BACKLOG) + 1 - len(self._held))

    def submit(self, tickets: Sequence[Ticket]) -> None:
        self._held.update(tickets)
        self._orders.put(list(tickets))

    async def outcomes(self) -> list[Done]:
        done = await self._box.take()
        self._held.difference_update(ticket for ticket, _ in done)
        return done

    def abort(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            ticket.aborted = True
        self._orders.put([])  # wakes the thread, which looks for the mark

    def held(self) -> list[Ticket]:
        """Tickets without a delivered outcome: what to report when the engine is dead."""
        return list(self._held)

    def gauges(self) -> dict[str, float]:
        running, waiting, kv = self._load()
        behind = len(self._held) - len(self._flying)
        return self._count.gauges(running=running, waiting=waiting + behind, kv_cache_usage=kv, seats=self._seats)

    async def close(self) -> None:
        """Ends the thread after its current step; tickets still held get no outcome."""
        if self._thread is None:
            return
        self._orders.put(Close())
        loop = get_running_loop()
        await loop.run_in_executor(None, self._thread.join, 30.0)
        self._box.die("closed")

    @property
    def _box(self) -> Outbox:
        if self._outbox is None:
            raise EngineDead(f"engine {self._name} was never started")
        return self._outbox

    def _load(self) -> tuple[int, int, float]:
        """(running, waiting, KV use) read from the scheduler itself: vLLM's stat loggers would cost every step."""
        engine = self._engine
        if engine is None:
            return 0, 0, 0.0
        scheduler = engine.engine_core.engine_core.scheduler
        running, waiting = scheduler.get_request_counts()
        return running, waiting, float(scheduler.kv_cache_manager.usage)

    # What the engine's thread runs.

    def _run(self, tell: Callable[[BaseException | None], None]) -> None:
        try:
            self._build()
        except Exception as error:  # noqa: BLE001 - whatever keeps a model from loading is told to whoever waits
            tell(error if isinstance(error, EngineDead) else _load_error(self._name, error))
            return
        tell(None)
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - an exception out of a step leaves vLLM mute for ever
            self._flush()
            self._box.die(f"engine {self._name} died in a step: {type(error).__name__}: {error}"[:500])

    def _build(self) -> None:
        began = time.perf_counter()
        prepare_environment(self._settings, in_process=True)
        with no_collection():
            from vllm.v1.engine.llm_engine import LLMEngine

            chosen = engine_args(self._settings, self._name)
        engine: Any = LLMEngine.from_engine_args(chosen, usage_context=batch_use())
        self._builder = Builder(engine.model_config, engine.renderer)
        self._commit = commit_of(engine.model_config)
        self._seats = int(engine.vllm_config.scheduler_config.max_num_seqs)
        self._count_tokens(engine)
        self._engine = engine
        self._count.loaded(began)

    def _count_tokens(self, engine: Any) -> None:
        """Count tokens as the core makes them: answers are handed out only when finished."""
        core, count = engine.engine_core, self._count
        get_output = core.get_output

        def counted() -> Any:
            outputs = get_output()
            count.progress += sum(len(one.new_token_ids) for one in outputs.outputs)
            return outputs

        core.get_output = counted

    def _serve(self) -> None:
        while self._take_orders():
            self._drop_unwanted()
            self._admit()
            if self._flying:
                self._step()
            self._flush()

    def _take_orders(self) -> bool:
        """Wait for orders only where there is nothing to do. False: close."""
        idle = not self._flying and not self._waiting
        while idle or not self._orders.empty():
            order = self._orders.get()
            if isinstance(order, Close):
                return False
            self._enqueue(order)
            idle = False
        return True

    def _enqueue(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket.call.realtime:
                self._waiting.appendleft(ticket)
            else:
                self._waiting.append(ticket)

    def _admit(self) -> None:
        """Hand vLLM what fills the next step and a little more (grammars compile while they wait)."""
        limit = self._seats + max(1, self._seats // 4)
        while self._waiting and (len(self._flying) < limit or self._waiting[0].call.realtime):
            self._begin(self._waiting.popleft())

    def _begin(self, ticket: Ticket) -> None:
        now, began = self._clock(), time.perf_counter()
        if ticket.aborted:
            return self._fail(ticket, Failure("cancelled", UNWANTED), now, began)
        if (failure := unbegun(ticket, now)) is not None:
            return self._fail(ticket, failure, now, began)
        try:
            prepared = self._builder.build(ticket)
        except BadCall as bad:
            return self._fail(ticket, bad.failure, now, began)
        # The serial makes it unique: vLLM accepts an id twice in silence, and a call may come again after a lost lane.
        request_id = f"{ticket.call.call_id}:{next(self._ids)}"
        try:
            self._engine.add_request(request_id, prepared.prompt, prepared.params, priority=prepared.priority)
        except Exception as error:  # noqa: BLE001 - vLLM's checks raise types of their own, and leave the engine well
            return self._fail(ticket, refusal(error).failure, now, began)
        self._flying[request_id] = Flying(ticket, prepared, now, began)
        return None

    def _step(self) -> None:
        began = time.perf_counter()
        outputs = self._engine.step()
        self._count.progress += 1
        for output in outputs:
            if output.finished and (flying := self._flying.pop(output.request_id, None)) is not None:
                self._finish(flying, output)
        self._count.busy_s += time.perf_counter() - began

    def _finish(self, flying: Flying, output: Any) -> None:
        call = flying.ticket.call
        ms = (time.perf_counter() - flying.began) * 1000
        outcome = outcome_of(flying.prepared, output, call, flying.started_at, ms, self._worker, self._commit)
        self._count.add(outcome.usage)
        self._done.append((flying.ticket, outcome))

    def _drop_unwanted(self) -> None:
        """Abort what nobody wants and what has run for too long."""
        now = time.perf_counter()
        for ticket in [ticket for ticket in self._waiting if ticket.aborted]:
            self._waiting.remove(ticket)
            self._fail(ticket, Failure("cancelled", UNWANTED), self._clock(), now)
        for request_id in [one for one, flying in self._flying.items() if _unwanted(flying, now)]:
            flying = self._flying.pop(request_id)
            self._engine.abort_request([request_id])
            self._fail(flying.ticket, _reason(flying), flying.started_at, flying.began)

    def _fail(self, ticket: Ticket, failure: Failure, started_at: float, began: float) -> None:
        self._count.progress += 1
        ms = (time.perf_counter() - began) * 1000
        self._done.append((ticket, failed(ticket.call, failure, started_at, ms, self._worker)))

    def _flush(self) -> None:
        """One wake-up of the loop for all that a step finished."""
        done, self._done = self._done, []
        self._box.put(done)


@contextlib.contextmanager
def no_collection() -> Generator[None]:
    """Around the import of vLLM: its million objects live for ever, so they are neither looked through while they come
    nor ever after. A start of the small model takes 6.5 s instead of 10.5 (measured)."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was:
            gc.enable()


def _unwanted(flying: Flying, now: float) -> bool:
    return flying.ticket.aborted or now - flying.began > flying.ticket.call.timeout_s


def _reason(flying: Flying) -> Failure:
    if flying.ticket.aborted:
        return Failure("cancelled", UNWANTED)
    return Failure("timeout", f"no answer within {flying.ticket.call.timeout_s:g} s")


def _load_error(name: str, error: Exception) -> Exception:
    if isinstance(error, PenstockError):
        return error
    dead = EngineDead(f"engine {name} can't load its model: {type(error).__name__}: {error}"[:1000])
    dead.__cause__ = error
    return dead
