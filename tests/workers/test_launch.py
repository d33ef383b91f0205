"""A command whose driver is lost starts another, and waits for what that one needs."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import time
from types import SimpleNamespace

import msgspec
import pytest
import ray

from penstock.connectors.settings import KafkaSource, MemorySink, MemorySource, Row
from penstock.engine.catalog import Catalog
from penstock.engine.errors import Away, PenstockError, Refused, Taken
from penstock.engine.policy import Policy
from penstock.jobs.health import alive
from penstock.workers import launch
from penstock.workers.launch import AWAY_PAUSE_S, MAX_DRIVERS, WITHIN_S, Losses, RunHandle, _Start
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunStatus


def test_drivers_are_counted_by_the_hour() -> None:
    """A service of weeks ended at its tenth lost driver, however far apart they were."""
    one = Losses(600.0)
    for n in range(100):
        assert one.may_start(n * WITHIN_S / 9)
        one.starts(n * WITHIN_S / 9)
    two = Losses(600.0)
    for n in range(MAX_DRIVERS):
        two.starts(float(n))
    assert not two.may_start(100.0)
    assert two.may_start(WITHIN_S + 1.0)


@pytest.mark.parametrize("outage_s", [60.0, None])
def test_a_driver_that_finds_a_server_away_is_tried_again_and_does_not_count(outage_s: float | None) -> None:
    """As long as the job waits for a store; a run without an end as long as it takes."""
    one, now, tries = Losses(outage_s), 1_000.0, 0
    going = True
    while going and tries < 1_000:
        assert one.may_start(now)
        one.starts(now)
        going, tries = one.away(now), tries + 1
        assert one.waits
        assert not one.due(now)
        now += AWAY_PAUSE_S
        assert one.due(now)
    assert going == (outage_s is None)
    assert outage_s is None or tries == outage_s / AWAY_PAUSE_S + 1
    one.runs()
    assert not one.waits


class Scripted(RunHandle):
    """Its drivers fail to start as the script says (None: nothing is heard yet); what is left of it starts well."""

    def __init__(self, *script: PenstockError | None, endless: bool) -> None:
        source = KafkaSource(("t",), bootstrap="localhost:9092") if endless else MemorySource("launch")
        sinks = {"results": MemorySink("launch")}
        spec = RunSpec("r", "n", {}, source, None, Row(), Catalog({}, {}, {}), Policy({}), sinks)
        super().__init__(spec, RunOptions(), 1, lambda: 0, lambda: None)
        self._script = list(script)

    def _start(self, urgent: int) -> _Start:
        self._losses.starts(0.0)
        return _Start(None, urgent, 0.0)

    def _heard(self, start: _Start) -> bool:
        said = self._script.pop(0) if self._script else True
        if isinstance(said, PenstockError):
            raise said
        return said is not None


@pytest.mark.parametrize("kind", [Away, Refused])
def test_a_driver_that_is_lost_while_the_store_is_away_is_followed_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, kind: type[PenstockError]
) -> None:
    """The command gave up at once: nobody started the service again."""
    monkeypatch.setattr(launch, "AWAY_PAUSE_S", 0.0)
    handle = Scripted(kind("the bucket is away"), kind("the bucket is away"), endless=True)
    handle._last.state = "running"
    handle._replace("its node is gone")
    assert (handle._last.state, "the bucket is away" in handle._last.message) == ("starting", True)
    assert handle.status().state == "starting"
    assert time.time() - handle._last.updated_at < 60, "the command lives"
    assert handle._losses.waits
    assert handle._last.notes == ["the driver was lost; another starts when this is over: the bucket is away"]
    handle.status()
    assert not handle._losses.waits
    assert handle._notes == ["the driver was lost; another goes on where it was"]


@pytest.mark.parametrize(("problem", "endless"), [(Refused("the key is refused"), False), (Taken("of r2"), True)])
def test_what_no_waiting_mends_ends_the_command(problem: PenstockError, endless: bool) -> None:
    """A run with an end waits for no store that refuses it, and none for an output that is another run's now."""
    handle = Scripted(problem, endless=endless)
    handle._replace("its node is gone")
    assert handle._last.state == "failed"


def test_a_command_lives_while_the_driver_that_it_started_reaches_for_the_store() -> None:
    """It was silent for minutes then: its probe failed, and other commands took it for gone."""
    handle = Scripted(None, None, None, endless=True)
    handle._last = RunStatus("r", "n", "running", epoch=3)
    handle._replace("its node is gone")
    for _ in range(2):
        handle._last.updated_at = 0.0
        told = handle.status()
        assert (told.state, alive(told, time.time()).ok) == ("starting", True)
    handle.status()
    assert handle._following is None
    assert handle._notes == ["the driver was lost; another goes on where it was"]


def test_a_command_that_waits_for_a_driver_ends_when_it_is_asked_to_stop() -> None:
    handle = Scripted(Away("the bucket is away"), Away("the bucket is away"), endless=True)
    handle._replace("its node is gone")
    handle.drain()
    assert handle.status().state == "interrupted"


@pytest.mark.parametrize("asked", ["drain", "cancel"])
def test_what_a_lost_driver_was_asked_is_asked_of_the_one_that_follows(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died before it heard: calls that a person had cancelled went on at the workers, and were paid for."""
    handle, told = Scripted(endless=True), list[str]()
    monkeypatch.setattr(handle, "_tell", told.append)
    handle.drain()
    getattr(handle, asked)()
    handle._replace("its node is gone")
    assert told == ["drain", asked, asked]


def test_a_status_is_as_old_as_the_command_says_not_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver may be on another machine: probes and `penstock status` would take its clock's lag for silence. One
    that does not answer gets older all the same."""
    handle, answers = Scripted(endless=True), [ray.exceptions.GetTimeoutError()]
    said = msgspec.msgpack.encode(RunStatus("r", "n", "running", updated_at=5.0, epoch=1))

    def get(*_: object, **__: object) -> bytes:
        if answers:
            raise answers.pop()
        return said

    monkeypatch.setattr(ray, "get", get)
    handle._driver = SimpleNamespace(status=SimpleNamespace(remote=lambda: None))
    assert handle.status().updated_at == 0.0
    told = handle.status()
    assert (told.state, alive(told, time.time()).ok) == ("running", True)
    told.updated_at -= 100.0
    answers.append(ray.exceptions.GetTimeoutError())
    assert not alive(handle.status(), time.time()).ok


def test_a_commands_times_go_on_where_its_driver_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """They went back to when the new driver had started: "26 s", then "18 s", and "done in 32 s" after a minute."""
    handle = Scripted(endless=True)
    handle._options, handle._last = RunOptions(asked_at=5.0, fresh=True), RunStatus("r", "n", "running", asked_at=5.0)
    handle._last.first_dispatch_at = 7.0
    handle._replace("its node is gone")
    assert (handle._options.asked_at, handle._options.fresh) == (5.0, False)
    said = RunStatus("r", "n", "running", asked_at=handle._options.asked_at, first_dispatch_at=90.0, epoch=2)

    def get(*_: object, **__: object) -> bytes:
        return msgspec.msgpack.encode(said)

    monkeypatch.setattr(ray, "get", get)
    handle._driver = SimpleNamespace(status=SimpleNamespace(remote=lambda: None))
    told = handle.status()
    assert (told.since, told.first_dispatch_at, told.epoch) == (5.0, 7.0, 2)
