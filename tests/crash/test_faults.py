"""Stops, take-overs, interrupts, empty purses, full disks: what people and machines do to a run in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from penstock.jobs.sandbox import Faults
from tests.crash.bench import Bench, Shape, below, bench, kill_now
from tests.crash.shared_ray import SharedRay
from tests.small_disk import enlarge, small_disk

pytestmark = pytest.mark.ray

SILENT_S = 10.0
"""A lane actor is replaced after this long without a word (`workers.lanes.crew`)."""


def wait_for(what: str, command: subprocess.Popen[bytes], b: Bench, timeout_s: float = 60.0) -> None:
    """Until the command's screen says it."""
    until = time.monotonic() + timeout_s
    while what not in b.log(command):
        assert time.monotonic() < until, f"never said {what!r}:\n{b.log(command)}"
        time.sleep(0.05)


def paid_for(b: Bench) -> list[str]:
    return [paid.request_id for paid in b.paid()]


OLD = "-00000001."
"""In names of what the first epoch wrote: a commit that the stop cut in two may end there, where nobody reads."""


def folder_state(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of all that readers and the new owner use under a folder."""
    found = [p for p in folder.rglob("*") if p.is_file() and OLD not in p.name]
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


@pytest.mark.long
def test_a_stopped_lane_that_wakes_up_writes_and_sends_nothing(tmp_path: Path, ray: SharedRay) -> None:
    """SIGSTOP past its replacement, then SIGCONT: the run ends as if nothing had been; every item once."""
    with bench(tmp_path, Shape(items=6_000, concurrency=48), ray) as b:
        command = b.start()
        b.wait_served(600, command)
        stopped = b.find("lane", command)[0]
        stopped.suspend()
        wait_for("is silent; its lanes go on in another", command, b, 40.0)
        with contextlib.suppress(psutil.NoSuchProcess):
            stopped.resume()
        assert b.end(command) == 0, b.log(command)
        b.kills.append("stopped lane")
        b.check(bound=2 * b.shape.concurrency + round(b.fastest_rate() * 0.6))


@pytest.mark.long
def test_a_stopped_command_that_was_taken_over_pays_and_writes_nothing(tmp_path: Path, mark: str) -> None:
    """All of a command is stopped, a second one with --take-over finishes the run, the first wakes up: it pays for
    nothing more, writes nothing more, and says that it was taken over."""
    with bench(tmp_path, Shape(items=2_000)) as b:
        first = b.start()
        b.wait_served(500, first)
        stopped = [psutil.Process(first.pid), *below(first.pid)]
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        second = b.start("--take-over")
        assert b.end(second) == 0, b.log(second)
        paid, written = paid_for(b), [folder_state(tmp_path / place) for place in ("out", "beside")]
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        assert b.end(first, 60.0) == 4, b.log(first)
        assert "taken over by" in b.log(first)
        assert paid_for(b) == paid
        status = b.penstock("status")
        assert status.wait(30) == 0
        assert " done" in b.log(status), b.log(status)
        assert [folder_state(tmp_path / place) for place in ("out", "beside")] == written
        b.kills.append("stopped command")
        b.check(bound=2 * b.shape.concurrency + round(b.fastest_rate() * 0.6))


@pytest.mark.long
def test_a_second_run_of_a_job_is_refused_and_told_who_holds_it(tmp_path: Path, ray: SharedRay) -> None:
    """Exit code 2, the holder by name and command, the way out; the first is not disturbed. --take-over takes it; while
    it waits for a holder that is frozen, Ctrl-C ends it at once, exit code 130, and takes back its wish."""
    with bench(tmp_path, Shape(items=3_000, concurrency=6), ray) as b:
        first = b.start()
        b.wait_served(100, first)
        second = b.start()
        assert b.end(second, 60.0) == 2, b.log(second)
        said = " ".join(b.log(second).split())
        assert "held by" in said
        assert "penstock run job.yaml" in said
        assert "--take-over" in said
        _interrupted_take_over(b, first)
        assert first.poll() is None, b.log(first)
        b.write_job(concurrency=64)
        third = b.start("--take-over")
        assert b.end(first) == 0, b.log(first)
        assert "handed over" in b.log(first)
        assert b.end(third) == 0, b.log(third)
        b.kills += ["interrupted take-over", "take-over"]
        b.check(bound=2 * b.shape.concurrency + round(b.fastest_rate() * 0.6))


def _interrupted_take_over(b: Bench, holder: subprocess.Popen[bytes]) -> None:
    frozen = b.find("driver", holder)
    for process in frozen:
        process.suspend()
    command = b.start("--take-over")
    wish = next(b.folder.glob(".penstock/runs/*")) / "handover"
    until = time.monotonic() + 60.0
    while not (wish.exists() and wish.read_bytes()):
        assert time.monotonic() < until, b.log(command)
        time.sleep(0.02)
    command.send_signal(signal.SIGINT)
    assert b.end(command, 60.0) == 130, b.log(command)
    assert "before the run began" in b.log(command)
    for process in frozen:
        process.resume()
    b.wait_served(b.served() + 60, holder)
    assert "handed over" not in b.log(holder)


@pytest.mark.usefixtures("terminal")
def test_an_interrupt_drains_commits_and_says_how_to_go_on(tmp_path: Path, mark: str) -> None:
    """What is in flight ends and is committed, nothing is paid twice or doubted, exit code 130; the same command goes
    on. A closed terminal (SIGHUP) tells the whole process group, Ray's processes too."""
    # Only failures that nobody charges: a charged try of an item that did not end would be repeated, as promised.
    with bench(tmp_path, Shape(items=3_000, faults=Faults(server_error=0.02))) as b:
        for name, tell in (("SIGINT", os.kill), ("SIGTERM", os.kill), ("SIGHUP", os.killpg)):
            command = b.start()
            b.wait_served(b.served() + 400, command)
            tell(command.pid, signal.Signals[name])
            assert b.end(command, 60.0) == 130, b.log(command)
            assert "goes on where it was" in " ".join(b.log(command).split())
            assert len(b.paid()) < b.shape.items
            b.kills.append(name)
        b.run_until_done()
        assert b.check(bound=0).marked == 0, "nothing was left in doubt"


def test_a_run_is_cancelled_from_another_terminal(tmp_path: Path, ray: SharedRay) -> None:
    """`penstock cancel`: the run drains and commits, exit code 130; status says so; the same command goes on, and is
    not stopped by the old request."""
    with bench(tmp_path, Shape(items=2_000, faults=Faults(server_error=0.02)), ray) as b:
        run = b.start()
        b.wait_served(400, run)
        asked = b.penstock("cancel", "job.yaml")
        assert b.end(asked, 60.0) == 0, b.log(asked)
        assert "it drains and commits first" in b.log(asked)
        assert b.end(run, 60.0) == 130, b.log(run)
        assert len(b.paid()) < b.shape.items
        status = b.penstock("status", "job.yaml")
        assert b.end(status, 60.0) == 0, b.log(status)
        assert "cancelled" in b.log(status)
        again = b.penstock("cancel", "job.yaml")
        assert b.end(again, 60.0) == 0, b.log(again)
        assert "over already" in b.log(again)
        b.run_until_done(tries=1)
        b.kills.append("cancel")
        assert b.check(bound=0).marked == 0


@pytest.mark.long
def test_a_budget_holds_across_crashes(tmp_path: Path, ray: SharedRay) -> None:
    """Killed and resumed with a small budget: what was paid never passes it; exit code 3. A larger one goes on."""
    budget_usd = 0.02  # about 400 of the items here; 50 calls at once, by their worst case
    with bench(tmp_path, Shape(items=900, budget_usd=budget_usd), ray) as b:
        command = b.start()
        b.wait_served(80, command)
        b.kill("group", command, random.Random(1))
        command = b.start()
        assert b.end(command) == 3, b.log(command)
        assert paid_usd(b) <= budget_usd
        b.write_job(budget_usd=1.0)
        b.run_until_done()
        assert paid_usd(b) <= 1.0
        b.check(bound=b.shape.concurrency + round(b.fastest_rate() * 0.6))


def paid_usd(b: Bench) -> float:
    """By the provider's journal, at the job's prices."""
    return sum((paid.input or 0) * 1e-6 + (paid.output or 0) * 2e-6 for paid in b.paid())


@pytest.mark.long
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path, ray: SharedRay) -> None:
    """Exit code 4 and words about the disk; with space, the same command goes on."""
    out = tmp_path / "out"
    with bench(tmp_path, Shape(items=1_500), ray) as b, small_disk(out, "1500k"):
        command = b.start()
        assert b.end(command) == 4, b.log(command)
        assert "space" in b.log(command)
        enlarge(out, "64m")
        b.run_until_done()
        b.kills.append("full disk")
        b.check(bound=6 * (b.shape.concurrency + round(b.fastest_rate() * 0.6)))


@pytest.mark.long
def test_input_that_goes_away_half_way_is_a_clear_error(tmp_path: Path, ray: SharedRay) -> None:
    """Removed, and cut short: exit code 4 with the file's name; once it is back, the same command goes on and loses
    nothing."""
    away = tmp_path / "away"
    with bench(tmp_path, Shape(items=3_000, concurrency=32, window=256), ray) as b:
        whole, times = b.input.read_bytes(), b.input.stat()
        command = b.start()
        b.wait_served(200, command)
        b.input.rename(away)
        for process in b.find("lane", command):  # so small a file is one lane, in either
            kill_now(process)
        _names_the_input(b, command)
        away.rename(b.input)
        command = b.start()
        b.wait_served(b.served() + 200, command)
        os.truncate(b.input, len(whole) // 3)
        _names_the_input(b, command)
        b.input.write_bytes(whole)
        os.utime(b.input, ns=(times.st_atime_ns, times.st_mtime_ns))
        b.run_until_done()
        b.kills += ["removed", "cut short"]
        b.check(bound=12 * (b.shape.concurrency + round(b.fastest_rate() * 0.6)))


def _names_the_input(b: Bench, command: subprocess.Popen[bytes]) -> None:
    assert b.end(command) == 4, b.log(command)
    assert "input.jsonl" in "".join(b.log(command).split())  # a long path is broken over lines


OWN_MODEL = '{{name: own, worker: vllm, model: "{}", hour_usd: 0.1, engine: {{max_model_len: 512}}}}'


@pytest.mark.long
@pytest.mark.parametrize("fallback", [True, False])
def test_a_model_that_dies_while_loading(fallback: bool, tmp_path: Path, ray: SharedRay) -> None:
    """A model that isn't there. With another candidate, the items go to it; without, exit code 4, the reason, and no
    dead letter: once the job is mended, the same command goes on from the first item, and doubts none."""
    loading_dies("/nowhere/at/all", fallback, tmp_path, ray)


@pytest.mark.soak
@pytest.mark.parametrize("fallback", [True, False])
def test_soak_a_model_that_vllm_cannot_load(fallback: bool, tmp_path: Path, mark: str) -> None:
    """As above, by an empty folder: vLLM itself dies, after its import, and is tried five times (four minutes)."""
    empty = tmp_path / "empty"
    empty.mkdir()
    loading_dies(str(empty), fallback, tmp_path)


def loading_dies(model: str, fallback: bool, folder: Path, ray: SharedRay | None = None) -> None:
    with bench(folder, Shape(items=40, own_model=OWN_MODEL.format(model), fallback=fallback), ray) as b:
        command = b.start()
        code = b.end(command)
        assert code == (0 if fallback else 4), b.log(command)
        said = " ".join(b.log(command).split())
        assert "own" in said
        assert model in said or "--extra cpu" in said, said
        if fallback:
            b.check(bound=0)
        else:
            dead = b.outputs().get("dead_letters", [])
            assert not any(json.loads(line) for path in dead for line in path.read_text().splitlines())
            assert not b.paid()
            b.write_job(own_model=None)
            b.run_until_done(tries=1)
            assert b.check(bound=0).marked == 0
