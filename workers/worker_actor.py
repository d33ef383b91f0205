"""The Ray actor around one engine (an API account's dispatcher, or a vLLM): belongs to the cluster, not to a job.

It leaves by itself when no job has used it for a while, and ends its process the hard way when its engine is dead, so
that whoever watches it learns of it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import time
from typing import Literal

import msgspec

from penstock.engine.catalog import Account, Model, Version
from penstock.engine.errors import SpecError
from penstock.engine.plan import Epoch
from penstock.workers.books.gpu_bill import Shares
from penstock.workers.checking.verifying import Verifier
from penstock.workers.clock import SYSTEM
from penstock.workers.cluster import watched
from penstock.workers.engines.base import Engine, EngineDead
from penstock.workers.engines.vllm_settings import check_path
from penstock.workers.governing import Governing, governor_lives
from penstock.workers.log import Log
from penstock.workers.metrics import ApiMetrics, EngineMetrics
from penstock.workers.orphan import end_with_raylet
from penstock.workers.ports import RemoteBoard, RemoteLane, encode
from penstock.workers.puller import Puller
from penstock.workers.stall import STALLED_S, Stall

IDLE_S = 120.0
"""A worker nobody uses ends after two minutes: long enough for the next job to find a loaded engine. A guess."""
EXPORT_EVERY_S = 5.0
LAST_WORD_S = 5.0
"""For the reply that says why an engine can't load: it is late on a busy machine, and where it never comes, a wrong
setting looks like a process that died. Who tries again waits until it is gone."""
GRACE_S = 2.0
"""What a dead engine's process waits for its last answers to be delivered."""


class WorkerSettings(msgspec.Struct, frozen=True):
    """What to build. `account` for an API, `model` and `version` for an engine of our own."""

    name: str
    """Unique in the cluster and new at every start: what a lane knows its calls by."""
    label: str
    """As the dashboard shows it."""
    pool: str
    kind: Literal["api", "vllm"]
    account: Account | None = None
    model: Model | None = None
    version: Version | None = None


class WorkerActor:
    def __init__(self, settings: bytes) -> None:
        end_with_raylet()
        self._settings = msgspec.msgpack.decode(settings, type=WorkerSettings)
        self._governing: Governing | None = None
        """None: no other process sends to the account, as far as we know."""
        self._puller: Puller | None = None
        self._watching: asyncio.Task[None] | None = None
        self._exporting: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._keep_s = IDLE_S
        self._served = False
        """Some job, ever."""
        self._shares = Shares()
        self._logs: dict[str, Log] = {}
        """Of the runs that it serves."""

    def __repr__(self) -> str:
        return self._settings.label

    async def start(self, governed: bool = False) -> tuple[str, int]:
        """Load; returns (name, pid). Asked again: the same answer. Raises what the engine's start raises, and ends the
        process soon after. `governed`:
        the account has rates, or others send to it: its governor is asked from now on, if it was not before."""
        async with self._starting:
            if self._puller is None:
                engine = await self._load(governed)
                self._puller = Puller(self._settings.name, self._settings.pool, engine, Verifier())
                self._puller.start()
                self._watching = asyncio.get_running_loop().create_task(self._watch(self._puller))
                self._exporting = asyncio.get_running_loop().create_task(self._export(engine))
            elif governed:
                await self._govern(self._puller.engine)
        return self._settings.name, os.getpid()

    async def _load(self, governed: bool) -> Engine:
        """The engine, which can answer. One that can't load has broken its process, which holds its GPUs and its name:
        it ends, and the next try begins in another."""
        try:
            engine = self._build(governed)
            await engine.start()
        except Exception:
            asyncio.get_running_loop().call_later(LAST_WORD_S, os._exit, 1)
            raise
        return engine

    async def _govern(self, engine: Engine) -> None:
        """It had the account to itself."""
        from penstock.workers.engines.api import ApiEngine

        if self._settings.account is not None and isinstance(engine, ApiEngine):
            self._governing = self._governing or Governing(self._settings.account)
            await engine.govern(self._governing.lease)

    def _build(self, governed: bool) -> Engine:
        settings = self._settings
        if settings.account is not None:
            from penstock.workers.engines.api import ApiEngine

            if governed or governor_lives(settings.account):
                self._governing = Governing(settings.account)
            lease = self._governing.lease if self._governing is not None else None
            return ApiEngine(settings.account, governor=lease, worker=settings.name)
        assert settings.model is not None
        assert settings.version is not None
        if importlib.util.find_spec("vllm") is None:
            raise SpecError(
                f"model {settings.model.name} needs vLLM, which is missing here: uv sync --extra cpu (or --extra gpu)"
            )
        check_path(settings.version)
        # Ray sets one thread in actors; an engine that steps in this process wants the machine's.
        os.environ["OMP_NUM_THREADS"] = str(os.cpu_count() or 1)
        from penstock.workers.engines.vllm import vllm_engine

        return vllm_engine(settings.model, settings.version, worker=settings.name)

    async def serve(
        self, job: str, command: int, driver: object, keep_s: float = IDLE_S, logs: tuple[str, str] | None = None
    ) -> None:
        """Take work from this job's board; stay for `keep_s` after it, if it is the last. `command`: its run epoch.
        `logs`: (state, run id)."""
        if self._puller is None or not self._puller.serve(job, RemoteBoard(driver), command):
            return
        self._keep_s, self._served = keep_s, True
        self._shares.anew(job, time.monotonic())
        if logs is not None and job not in self._logs:
            slug = re.sub(r"[^A-Za-z0-9_.@-]+", "-", self._settings.label)
            self._logs[job] = Log(*logs, f"worker-{slug}")
            self._logs[job]("info", "worker serves", worker=self._settings.name, pid=os.getpid())

    async def dismiss(self) -> None:
        """It was started for a run that did not become its starter's: it ends, unless another job has used it."""
        async with self._starting:
            if not self._served:
                os._exit(0)

    async def leave(self, job: str, command: int) -> None:
        if self._puller is not None and self._puller.leave(job, command):
            self._close_log(job, "worker drained")

    def _close_log(self, job: str, event: str) -> None:
        log = self._logs.pop(job, None)
        if log is not None:
            log("info", event, worker=self._settings.name, **self._counts())
            log.close()

    async def holds(self, job: str) -> bool:
        """See `Puller.holds`. One that loads still has nothing."""
        return self._puller is not None and self._puller.holds(job)

    async def adopt(self, job: str, lane: int, epoch: Epoch, handle: object, until: float) -> bytes:
        if self._puller is None:
            return b"\x80"
        return encode(self._puller.adopt(job, lane, (epoch[0], epoch[1]), RemoteLane(handle), until))

    async def abort(self, job: str, command: int) -> None:
        """Stop all calls of this job."""
        if self._puller is not None:
            self._puller.abort(job, command)

    async def gauges(self, job: str) -> dict[str, float]:
        """The engine's; `others_s`: seconds of its time that other jobs bear, since this one's driver began; `serves`:
        0 where it has given the job up, since its driver was mute for long."""
        if self._puller is None:
            return {}
        self._shares.see(self._puller.jobs, time.monotonic())
        served = {"others_s": self._shares.others_s(job), "serves": float(job in self._puller.jobs)}
        return {**self._puller.engine.gauges(), **served}

    def _counts(self) -> dict[str, int]:
        """Calls and failures since it started, for whatever job."""
        gauges = self._puller.engine.gauges() if self._puller is not None else {}
        names = ("calls", "failures", "finished")
        return {n: int(v) for n, v in gauges.items() if n in names or n.startswith("throttled_")}

    async def _export(self, engine: Engine) -> None:
        """Metrics, every few seconds. They are never worth a worker."""
        from penstock.workers.engines.api import ApiEngine

        settings = self._settings
        api = ApiMetrics(settings.account.name) if settings.account is not None else None
        vllm = EngineMetrics(settings.model.name) if settings.model is not None else None
        while True:
            with contextlib.suppress(Exception):
                if vllm is not None:
                    vllm.see(engine.gauges())
                elif api is not None and isinstance(engine, ApiEngine):
                    governing = self._governing
                    async with asyncio.timeout(EXPORT_EVERY_S):
                        limits = engine.limits() if governing is None else await governing.state()
                    api.see(engine.gauges(), limits)
            await asyncio.sleep(EXPORT_EVERY_S)

    async def clock(self) -> float:
        """This node's time, Unix seconds."""
        return SYSTEM.now()

    async def lost(self) -> None:
        """Asked again and again: see `cluster.until_gone`."""
        await watched()

    async def _watch(self, puller: Puller) -> None:
        stall = Stall()
        while True:
            await asyncio.sleep(0.5)
            self._shares.see(puller.jobs, time.monotonic())
            for job in self._logs.keys() - set(puller.jobs):
                self._close_log(job, "worker gave up a driver that was mute")
            if puller.dead is None:
                with contextlib.suppress(Exception):  # numbers that can't be read now say nothing
                    if stall.see(puller.engine.gauges(), puller.busy, time.monotonic()):
                        puller.died(EngineDead(f"the engine had work and made no step for {STALLED_S:g} s"))
            if puller.dead is not None:
                for log in self._logs.values():
                    log("error", "engine died", worker=self._settings.name, reason=str(puller.dead)[:500])
                await asyncio.sleep(GRACE_S)
                os._exit(1)
            if not (puller.jobs or puller.busy) and time.time() - puller.idle_since > self._keep_s:
                os._exit(0)
