"""The actor that holds lanes: several shells in one process, each an independent owner of its lane."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable

import msgspec

from penstock.connectors.base import Mark
from penstock.connectors.filestore.common import refuse_apart
from penstock.connectors.reading.intake import InputShape, Intake, input_shape, shared_format
from penstock.connectors.reading.replay import Intake as AnyIntake
from penstock.connectors.reading.replay import intake_for
from penstock.connectors.registry import Stores, open_mirror, open_source, open_stores
from penstock.connectors.writing.records import Encoder
from penstock.engine.budget import Budgets
from penstock.engine.catalog import Price
from penstock.engine.errors import Fenced
from penstock.engine.flow.lane import Lane
from penstock.engine.flow.lane_types import Adopted, CommitBatch, Hooks, LaneSettings
from penstock.engine.items import OutputSpec
from penstock.engine.judging import outputs
from penstock.engine.plan import Epoch, Plan
from penstock.engine.policy import Policy
from penstock.engine.registry.standing import Known
from penstock.engine.results import CostLine
from penstock.engine.router import Router
from penstock.engine.steering.document import Steering
from penstock.engine.steering.turn import Turn
from penstock.workers.checking.answers import ask_again_body
from penstock.workers.checking.scoring import Scoring
from penstock.workers.clock import SYSTEM
from penstock.workers.cluster import watched
from penstock.workers.lanes.input import Verdicts
from penstock.workers.lanes.money import LedgerPort
from penstock.workers.lanes.news import Handle
from penstock.workers.lanes.pace import BEAT_S, Pace
from penstock.workers.lanes.report import LaneReport
from penstock.workers.lanes.shell import LaneShell
from penstock.workers.log import LaneLog, Log, collect
from penstock.workers.metrics import LaneMetrics
from penstock.workers.orphan import end_with_raylet
from penstock.workers.ports import Kept, Post, decode_names, decode_outcomes, encode, job_of
from penstock.workers.replies import answered, reached
from penstock.workers.runspec import RunSpec, commit_s_of, window_of

REACHED_S = 20.0
"""A worker to which there is no way: whoever watches it ends it after fifteen seconds."""
HEARD_S, HEARD_TIMES = 25.0, 12
"""Until a worker is asked again what it has, since its reply may be lost; and how often: longer than a lane's opening
is waited for."""

_plan = msgspec.msgpack.Decoder(Plan)
_spec = msgspec.msgpack.Decoder(RunSpec)
_known = msgspec.msgpack.Decoder(Known)
_steering = msgspec.json.Decoder(Steering)
_answers = msgspec.msgpack.Decoder(list[Adopted])


class RemoteDriver:
    """A lane's driver in another process. Nothing here waits: what gets lost is told again."""

    def __init__(
        self, handle: object, owner: Callable[[int], int], metrics: LaneMetrics, logs: dict[int, LaneLog]
    ) -> None:
        self._handle = handle
        self._owner = owner
        self._metrics = metrics
        self._logs = logs

    def post(self, posts: list[Post]) -> None:
        self._handle.post.remote(encode(posts), self._owner(posts[0].lane))  # pyright: ignore[reportAttributeAccessIssue]

    def report(self, report: LaneReport) -> None:
        self._metrics.see(report)
        self._logs[report.lane].see(report)
        self._handle.report.remote(encode(report), self._owner(report.lane))  # pyright: ignore[reportAttributeAccessIssue]

    def pace(self, number: int, at_s: float, lost_s: float) -> None:
        self._handle.pace.remote(number, at_s, lost_s)  # pyright: ignore[reportAttributeAccessIssue]

    def failed(self, lane: int, fenced: bool, message: str, corrupt: bool) -> None:
        self._logs[lane].failed(fenced, corrupt)
        self._handle.lane_failed.remote(lane, self._owner(lane), fenced, message, corrupt)  # pyright: ignore[reportAttributeAccessIssue]


class LaneActor:
    """Ray actor. Names its lanes in the dashboard. `owner`: the driver's number of each lane's present owner."""

    def __init__(self, spec: bytes, plan: bytes, driver: object, label: str, marks: tuple[Mark, ...]) -> None:
        end_with_raylet()
        self._marks = marks
        self._spec = _spec.decode(spec)
        self._plan = _plan.decode(plan)
        self._turn = Turn(self._spec.catalog.models)
        self._stopped: set[str] = set()
        """Experiments."""
        self._known = Known()
        self._label = label
        self._shells: dict[int, LaneShell] = {}
        self._unsaved: dict[int, list[Adopted]] = {}
        """Answers of owners whose last commit nobody knows the end of, for the lane's next owner here."""
        self._asked: dict[int, Epoch] = {}
        """The last epoch under which each lane was to be opened."""
        self._owners: dict[int, int] = {}
        self._stores = open_stores(self._spec.sinks, self._spec.run_id)
        self._mirror = open_mirror(self._spec.source, self._spec.run_id)
        self._logs: dict[int, LaneLog] = {}
        collect(Log(self._spec.state, self._spec.run_id, f"lanes-{os.getpid()}"))
        self._metrics = LaneMetrics(self._spec)
        self._driver = RemoteDriver(driver, self._owners.__getitem__, self._metrics, self._logs)
        self._beating: asyncio.Task[None] | None = None
        tasks = self._spec.policy.tasks.values()
        self._scoring = Scoring(self._spec.scorer_path, [scorer for task in tasks for scorer in task.scorers])

    def __repr__(self) -> str:
        return self._label

    async def open(self, lane: int, owner: int, epoch: Epoch, force: bool, complete: bool) -> None:
        """Take the lane. Raises what `LaneShell.open` raises, and `Refused` where this node does not see the run's
        folders. `complete`: there are no labels to wait for."""
        self._asked[lane] = max(epoch, self._asked.get(lane, epoch))
        await asyncio.to_thread(refuse_apart, self._marks)
        self._refuse_late(lane, epoch)
        self._unsaved[lane] = self._left(lane)  # before it is closed, which may take long
        await self._let_go(lane)
        await self._scoring.turn()  # what workers still hold of the last owner is scored as soon as it is read
        self._refuse_late(lane, epoch)
        self._owners[lane] = owner
        shell = self._shell(lane, epoch, self._stores, complete)
        self._shells[lane] = shell
        log = self._logs[lane] = LaneLog(Log(self._spec.state, self._spec.run_id, f"lane-{lane}"), lane)
        shell.watch(lambda batch: (self._metrics.committed(batch), log.committed(batch), self._show(lane, batch)))
        await shell.open(self._plan, force=force)
        self._refuse_late(lane, epoch)
        shell.machine.adopt(self._unsaved.pop(lane, ()))
        self._metrics.taken(lane, shell.machine.tally)
        log.taken(epoch, shell.machine.tally)

    def _refuse_late(self, lane: int, epoch: Epoch) -> None:
        """An opening that its driver has given up must not take the place, or the answers, of the one that followed."""
        if epoch < self._asked[lane]:
            raise Fenced(f"lane {lane}: epoch {self._asked[lane]} was asked for; this opening was of {epoch}")

    def _left(self, lane: int) -> list[Adopted]:
        """Taken out: the answers that no commit of its owners here, the present one among them, holds for sure."""
        shell = self._shells.get(lane)
        return [*self._unsaved.pop(lane, ()), *(shell.machine.unsaved if shell is not None else ())]

    def _show(self, lane: int, batch: CommitBatch) -> None:
        if self._mirror is not None and lane in self._shells:
            self._mirror.told(lane, self._shells[lane].machine.progress.splits, batch.saved)

    async def _let_go(self, lane: int) -> None:
        shell = self._shells.pop(lane, None)
        if shell is not None:
            await shell.close()
            self._metrics.dropped(lane)
            self._logs[lane].closed()
        if self._mirror is not None:
            self._mirror.leaves(lane)
            if not self._shells:
                await self._mirror.close()

    @property
    def _job(self) -> str:
        return job_of(self._spec.run_id, self._plan.created_at)

    def _shell(self, lane: int, epoch: Epoch, stores: Stores, complete: bool) -> LaneShell:
        spec = self._spec
        now = time.time
        read_as = input_shape(shared_format(split.format for split in self._plan.splits))
        schema_tasks = [t.name for t in spec.policy.tasks.values() if t.output is not None and t.output.json_schema]
        machine = Lane(
            LaneSettings(
                lane,
                self._job,
                window_of(spec.execution, self._plan.lanes),
                spec.execution.window_bytes,
                by_key=spec.by_key,
                endless=spec.endless,
            ),
            Router(spec.catalog, spec.policy),
            spec.catalog,
            spec.policy,
            Hooks(random.Random(f"{spec.run_id}/{lane}/{epoch}").random, self._scoring, ask_again_body),
            Budgets(spec.budgets, spec.run_id),
        )
        machine.router.steer(self._turn)
        machine.learn(self._known, now())
        return LaneShell(
            lane,
            epoch,
            machine,
            stores,
            open_source(spec.source),
            self._intake(read_as),
            Encoder(
                spec.run_id,
                spec.shape or (None if read_as == "either" else read_as),
                schema_tasks,
                spec.review if "review" in spec.sinks else None,
            ),
            self._driver,
            _ledger(spec),
            now,
            commit_s=commit_s_of(spec),
            limit=spec.limit,
            outage_s=None if spec.endless else spec.execution.outage_s,
            verdicts=Verdicts(complete),
            outputs=_outputs(spec.policy),
            turn=self._scoring.turn,
        )

    def _intake(self, read_as: InputShape) -> AnyIntake:
        spec = self._spec
        names, born = frozenset(spec.catalog.models), self._plan.generation
        intake = Intake(spec.run_id, read_as, spec.row, spec.policy, names, born, spec.vars, self._stopped)
        return intake_for(spec.source, intake)

    async def adopt(self, lane: int, me: object, workers: list[tuple[str, object]]) -> None:
        """Ask workers for what they still hold of this lane's last owner. A worker that is gone holds nothing."""
        shell = self._shells[lane]

        def asking(worker: object) -> Callable[[], Awaitable[bytes]]:
            return lambda: worker.adopt.remote(self._job, lane, shell.epoch, me, shell.own_until)  # pyright: ignore

        await asyncio.gather(*(self._hear(lane, shell, name, asking(worker)) for name, worker in workers))

    async def _hear(self, lane: int, shell: LaneShell, name: str, ask: Callable[[], Awaitable[bytes]]) -> None:
        """One worker's word, taken up at once: it has let go of its answers, and another may be silent for long."""
        try:
            told = await answered(lambda: reached(ask, REACHED_S), HEARD_S, HEARD_TIMES)
        except Exception:  # noqa: BLE001 - it is gone, and holds nothing
            return
        kept = msgspec.msgpack.decode(told, type=Kept)
        heir = self._shells.get(lane, shell)
        heir.adopt(kept if heir is shell else msgspec.structs.replace(kept, flying=[]), name)

    async def extend(self, plan: bytes) -> None:
        """A longer plan: new input joins the lanes."""
        self._plan = _plan.decode(plan)
        for shell in self._shells.values():
            shell.extend(self._plan)

    async def go(self, lanes: list[int]) -> None:
        for lane in lanes:
            if lane in self._shells:
                self._shells[lane].go()

    async def take(self, lane: int, pool: str, n: int, max_tokens: int, worker: str, number: int) -> tuple[bytes, int]:
        shell = self._shells.get(lane)
        if shell is None:
            return b"", 0
        chunk, left = await shell.take(pool, n, max_tokens, worker, number)
        return (encode(chunk) if chunk is not None else b""), left

    async def missed(self, lane: int, worker: str, upto: int, held: bytes) -> None:
        if lane in self._shells:
            self._shells[lane].missed(worker, upto, decode_names(held))

    async def done(self, lane: int, epoch: Epoch, outcomes: bytes) -> None:
        shell = self._shells.get(lane)
        if shell is None:
            raise Fenced(f"lane {lane} is not here")
        await shell.done((epoch[0], epoch[1]), decode_outcomes(outcomes))

    async def right(self, lane: int, epoch: Epoch, worker: str) -> float:
        shell = self._shells.get(lane)
        return await shell.right((epoch[0], epoch[1]), worker) if shell is not None else 0.0

    async def verdict(self, complete: bool, upto: tuple[int, int], duplicates: list[tuple[int, int, str]]) -> None:
        """News of the label pass."""
        for shell in self._shells.values():
            own = {split.ordinal for split in shell.machine.progress.splits} if duplicates else set[int]()
            for ordinal, position, first in duplicates:
                if ordinal in own:
                    shell.verdicts.duplicates[ordinal, position] = first
            shell.verdicts.upto = upto
            shell.verdicts.complete = complete
            shell.wake()

    async def worker_lost(self, worker: str) -> None:
        for shell in self._shells.values():
            shell.machine.worker_lost(worker, time.time())
            shell.wake()

    async def pool_down(self, pool: str, why: str) -> None:
        for shell in self._shells.values():
            shell.machine.pool_down(pool, why, time.time())
            shell.wake()

    async def pool_up(self, pool: str) -> None:
        for shell in self._shells.values():
            shell.machine.pool_up(pool, time.time())
            shell.wake()

    async def pause(self, tiers: list[int]) -> None:
        """From now on items of these tiers wait, and no others."""
        for shell in self._shells.values():
            shell.machine.pause(frozenset(tiers), time.time())
            shell.wake()

    async def steer(self, steering: bytes) -> None:
        """From now on models have these versions."""
        decoded = _steering.decode(steering)
        self._turn = Turn(self._spec.catalog.models, decoded)
        self._stopped.update(decoded.experiments)
        for shell in self._shells.values():
            shell.machine.steer(self._turn, time.time())
            shell.wake()

    async def learn(self, known: bytes) -> None:
        """How good the models are, as measured, and which cascades accept nothing any more."""
        self._known = _known.decode(known)
        for shell in self._shells.values():
            shell.machine.learn(self._known, time.time())
            shell.wake()

    async def reprice(self, model: str, price: bytes) -> None:
        """An own engine's running rate."""
        for shell in self._shells.values():
            shell.machine.reprice(model, msgspec.msgpack.decode(price, type=Price))

    async def add_costs(self, lane: int, lines: bytes) -> None:
        self._shells[lane].add_costs(msgspec.msgpack.decode(lines, type=list[CostLine]))

    async def drain(self) -> None:
        for shell in self._shells.values():
            shell.drain()

    async def part(self, lane: int, seconds: float) -> bytes:
        """Hand the lane over, to whoever opens it next: see `LaneShell.part`. Returns the answers that no commit holds
        for sure, for `inherit`. Told again, or of a lane that was never here: nothing. One that is just being opened
        anew here may have no owner, and answers all the same."""
        shell = self._shells.get(lane)
        if shell is not None:
            await shell.part(seconds)
            if self._shells.get(lane) is not shell:
                return b""
        answers = self._left(lane)
        await self._let_go(lane)
        self._metrics.moved()
        return encode(answers) if answers else b""

    async def inherit(self, lane: int, answers: bytes) -> None:
        """What its last owner, in another process, had: for whoever opens the lane here."""
        self._unsaved.setdefault(lane, []).extend(_answers.decode(answers))

    async def close(self, lanes: list[int]) -> None:
        for lane in lanes:
            await self._let_go(lane)

    async def beat(self, number: int) -> None:
        """Tell the driver from now on how much of its time this process does not run. `number`: of this actor."""
        if self._beating is None:
            self._beating = asyncio.get_running_loop().create_task(self._beat(number))

    async def _beat(self, number: int) -> None:
        pace = Pace(time.monotonic())
        while True:
            await asyncio.sleep(BEAT_S)
            if pace.beat(tick := time.monotonic()):
                self._driver.pace(number, *pace.seen(tick))

    async def lost(self) -> None:
        """Asked again and again: see `cluster.until_gone`."""
        await watched()

    async def clock(self) -> float:
        """This node's time, Unix seconds."""
        return SYSTEM.now()

    async def pid(self) -> int:
        return os.getpid()


def started(spec: bytes, plan: bytes, driver: object, label: str, marks: tuple[Mark, ...]) -> Handle:
    """A new one, in a process of its own."""
    import ray

    options = ray.remote(LaneActor).options(
        max_concurrency=1000,
        max_restarts=0,
        max_task_retries=0,
        enable_task_events=False,
        num_cpus=0,
        scheduling_strategy="SPREAD",
    )
    return options.remote(spec, plan, driver, label, marks)  # pyright: ignore[reportCallIssue, reportReturnType]


def _outputs(policy: Policy) -> dict[str, OutputSpec]:
    """Task, or judge → what its answers must look like."""
    asked = {task.name: task.output for task in policy.tasks.values() if task.output is not None}
    return {name: OutputSpec(o.choices, o.json_schema) for name, o in (asked | outputs(policy)).items()}


def _ledger(spec: RunSpec) -> LedgerPort | None:
    """None: no call ever needs money of a budget. A rollout brings its shadow stage's to every job that obeys it."""
    if spec.pinned and not spec.budgets:
        return None
    from penstock.connectors.ledger import LedgerClient
    from penstock.connectors.state import open_state

    return LedgerClient(open_state(spec.state), spec.run_id)
