"""Harm of every kind, at moments that a seed decides, to one job; then the check. Also what is noted for the table in
docs/reliability.md.

    storm(bench, ["lane", "broker killed"], seed=3)

A killed process costs what it had in flight and what was answered since the last commit. A broker or S3 server that is
away costs that, and what else was under the committed horizon: its lanes went on until they reached it.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from penstock.jobs.look.verify import Report
from tests.crash.bench import Kind
from tests.crash.streams.kafka_cluster import Node
from tests.crash.streams.s3_proxy import Shares
from tests.crash.streams.stream_bench import StreamBench

Harm = Literal[
    "lane", "driver", "dispatcher", "command", "lanes moved",
    "broker killed", "broker frozen", "network cut", "network held", "network slow",
    "S3 killed", "S3 frozen", "S3 errors", "S3 answers lost", "S3 cut", "S3 held", "S3 slow",
    "source leader killed", "sink leader killed", "transaction coordinator killed", "group coordinator killed",
]  # fmt: skip
KAFKA: tuple[Harm, ...] = get_args(Harm)[5:10]
S3: tuple[Harm, ...] = get_args(Harm)[10:17]
LEADERS: tuple[Harm, ...] = get_args(Harm)[17:]
"""Of a cluster: one broker of several dies, and another takes its place."""
PROCESSES: tuple[Harm, ...] = get_args(Harm)[:5]

UNCOMMITTED_S = {"kafka": 0.4, "s3": 3.0}
"""How old an answer may be and not yet committed: the interval (0.2 s, and 2 s to S3), the commit, and a busy
machine's share."""
AHEAD_S, FLOOR = 0.5, 64
"""What a lane may send beyond its last commit: so many seconds of work, and so many items at least
(`engine.flow.horizon`, `engine.flow.lane_types`)."""
FROZEN_S = (11.0, 13.0)
"""Longer than a transaction's timeout (10 s)."""
HELD_S = (21.0, 25.0)
"""Longer than a client of S3 waits for an answer (20 s)."""
AWAY_S = (0.5, 4.0)
LEADER_AWAY_S = (1.0, 12.0)
"""Others take over once it was silent for 3 s (`broker.session.timeout.ms`): it comes back before that, or after."""
MOVES, MOVE_S = 5, 1.0
"""Every second all lanes of an actor go to another one."""
MORE = 400
"""Records that come before each harm to a job without an end, and after the last."""
FOUND_S = 120.0
TALLY = "PENSTOCK_RELIABILITY"
"""Environment: a file that gains a line for every storm; `reliability.py` makes the table of it."""


class Line(msgspec.Struct, frozen=True):
    """One storm, as it was seen. `job`: what kind of job."""

    job: str
    harm: str
    seed: int
    harms: int
    items: int
    lost: int
    twice: int
    repeated: int
    bound: int
    marked: int
    seconds: float


def storm(b: StreamBench, kinds: Sequence[Harm], seed: int, name: str = "") -> Report:
    """Every kind in turn, each once it has served its share; a command that was killed or gave up is run again. What
    is left when the job ends is not done, and not counted."""
    began = time.monotonic()
    chance = random.Random(f"{seed}-{kinds}")
    moments = sorted(chance.uniform(0.05, 0.8) for _ in kinds)
    done: list[Harm] = []
    command = b.start()
    for moment, kind in zip(moments, kinds, strict=True):
        command = reach(b, round(moment * len(b.offered)), command)
        if command.poll() == 0:
            break
        command = harm(b, kind, command, chance)
        done.append(kind)
    b.stage.heal()
    if b.end(command) != 0:
        b.run_until_done()
    assert done, "the job was over before any harm was done"
    bound = sum(allowed(b, kind) for kind in done)
    report = b.check(bound=bound)
    name = name or " + ".join(sorted(set(done)))
    note(line_of(b, name, seed, len(done), report, bound, time.monotonic() - began))
    return report


def endless_storm(b: StreamBench, kinds: Sequence[Harm], seed: int, name: str = "") -> Report:
    """The same for a job without an end, whose input comes while it is harmed: so each harm meets work, however long
    the one before lasted. Once all have ended it is stopped."""
    began = time.monotonic()
    chance = random.Random(f"{seed}-{kinds}")
    labels = (f"late-{n}" for n in itertools.count())
    command = b.start()
    for kind in kinds:
        before = b.served()
        b.add(itertools.islice(labels, MORE))
        command = reach(b, before + round(chance.uniform(0.1, 0.6) * MORE), command)
        command = harm(b, kind, command, chance)
    b.stage.heal()
    b.add(itertools.islice(labels, MORE))
    b.wait_ended()
    command.send_signal(signal.SIGTERM)
    assert b.end(command) == 130, b.log(command)
    bound = sum(allowed(b, kind) for kind in kinds)
    report = b.check(bound=bound)
    note(line_of(b, name or " + ".join(sorted(set(kinds))), seed, len(kinds), report, bound, time.monotonic() - began))
    return report


def reach(b: StreamBench, calls: int, command: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Until so many calls were served in all; where the command ended because of the harm, the next goes on."""
    until = time.monotonic() + FOUND_S * 2
    while b.served() < calls:
        if command.poll() is not None:
            if command.returncode == 0:
                return command
            command = b.start()
        assert time.monotonic() < until, f"{calls} calls were not served:\n{b.log(command)}"
        time.sleep(0.03)
    return command


def harm(
    b: StreamBench, kind: Harm, command: subprocess.Popen[bytes], chance: random.Random
) -> subprocess.Popen[bytes]:
    """Do it, and undo it where it would last. Returns the command that goes on."""
    stage = b.stage
    match kind:
        case "lane" | "driver" | "dispatcher":
            _kill(b, kind, command, chance)
            return command
        case "lanes moved":
            for _ in range(MOVES):
                _kill(b, "lane", command, chance)
                time.sleep(MOVE_S)
            return command
        case "command":
            b.kill("command", command, chance)
            return b.start()
        case "broker killed":
            _for(chance, AWAY_S, stage.kafka.kill, stage.kafka.start)
        case "broker frozen":
            _for(chance, FROZEN_S, stage.kafka.freeze, stage.kafka.thaw)
        case "network cut":
            _for(chance, AWAY_S, stage.network.cut, stage.network.mend)
        case "network held":
            _for(chance, (1.0, 12.0), stage.network.pause, stage.network.resume)
        case "network slow":
            stage.network.delay_s = chance.uniform(0.01, 0.1)
        case "S3 killed":
            _for(chance, AWAY_S, stage.s3.kill, stage.s3.start)
        case "S3 frozen":
            _for(chance, FROZEN_S, stage.s3.freeze, stage.s3.thaw)
        case "S3 errors":
            stage.front.harm(Shares(slow_down=0.05, silent=0.02, half=0.03, lost=0.03), chance.randrange(1 << 30))
        case "S3 answers lost":
            stage.front.harm(Shares(conditional_lost=0.3), chance.randrange(1 << 30))
        case "S3 cut":
            _for(chance, AWAY_S, stage.s3_network.cut, stage.s3_network.mend)
        case "S3 held":
            _for(chance, HELD_S, stage.s3_network.pause, stage.s3_network.resume)
        case "S3 slow":
            stage.s3_network.delay_s = chance.uniform(0.01, 0.1)
        case "source leader killed":
            _away(b, stage.cluster.leader(b.topic, chance), chance)
        case "sink leader killed":
            _away(b, stage.cluster.leader(b.out("results"), chance), chance)
        case "transaction coordinator killed":
            _away(b, stage.cluster.transaction_coordinator(b.name, chance), chance)
        case "group coordinator killed":
            _away(b, stage.cluster.group_coordinator(b.group), chance)
    b.kills.append(kind)
    return command


def _away(b: StreamBench, node: Node, chance: random.Random) -> None:
    _for(chance, LEADER_AWAY_S, node.kill, b.stage.cluster.start)


def _for(
    chance: random.Random, seconds: tuple[float, float], begin: Callable[[], None], end: Callable[[], None]
) -> None:
    begin()
    time.sleep(chance.uniform(*seconds))
    end()


def _kill(b: StreamBench, kind: Kind, command: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Once there is one to kill; nothing where the run has ended meanwhile."""
    until = time.monotonic() + FOUND_S
    while command.poll() is None and not b.kill(kind, command, chance):
        assert time.monotonic() < until, f"no process of kind {kind}:\n{b.log(command)}"
        time.sleep(0.05)


def allowed(b: StreamBench, kind: Harm) -> int:
    """Second payments that the promise allows for one harm of this kind."""
    uncommitted_s = UNCOMMITTED_S["s3" if "s3" in (b.shape.results, b.shape.source) else "kafka"]
    calls = b.shape.concurrency + b.fastest_rate() * uncommitted_s
    if kind not in PROCESSES:
        calls += b.shape.lanes * FLOOR + b.fastest_rate() * AHEAD_S
    return round(calls * (MOVES if kind == "lanes moved" else 1))


def note(line: Line) -> None:
    """For the table, where one is wanted."""
    if path := os.environ.get(TALLY):
        with Path(path).open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


def line_of(b: StreamBench, name: str, seed: int, harms: int, report: Report, bound: int, seconds: float) -> Line:
    elsewhere = [f"{sink}: {b.shape.places[sink]}" for sink in ("costs", "quality")]
    job = f"{b.shape.source} → {b.shape.results}"
    if b.shape.quality is not None:
        job += f" ({', '.join(elsewhere)})"
    elif b.shape.followers:
        job += f" ({elsewhere[0]})"
    if b.shape.until == "forever":
        job += ", without an end"
    return Line(
        job, name, seed, harms, report.offered, report.lost, report.twice, report.repeated, bound, report.marked,
        round(seconds, 1),
    )  # fmt: skip
