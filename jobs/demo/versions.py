"""Act two: which model is good enough, and what becomes of a worse version.

An evaluation, a rollout that is taken back by itself while a job runs, and the page about it. How good each model
really is was planted, so what is found can be checked.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import msgspec
from rich.markup import escape

from penstock.engine.steering.rollout import Rollout
from penstock.jobs import rollouts
from penstock.jobs.demo import commands, files
from penstock.jobs.demo.stage import Stage
from penstock.jobs.look import told
from penstock.jobs.sandbox import Behaviour, Settings, cases, running_sandbox
from penstock.jobs.sandbox.planted import Planted
from penstock.jobs.wording import counted, duration, share

ROWS = 6_000
"""Enough that the job still runs when the worse version is found out."""
EVAL_ROWS = 1_000
"""At most: three candidates this far apart are told apart in a third of that."""
PLANTED = {"pretend-little": 0.70, "pretend-clerk-v1": 0.92, "pretend-clerk-v2": 0.70, "pretend-large": 0.82}
"""Model as the sandbox is asked for it → how often it is right. The dearest is not the best one."""
CANDIDATES = ("little", "clerk@v1", "large")
BEST = "clerk@v1"
NAME = "departments"
SETTINGS = Settings(
    seed=1,
    models={name: Behaviour(latency_ms=100.0, planted=Planted(quality)) for name, quality in PLANTED.items()},
)
STAGES = "10,50,100"
BEGIN_AFTER = 300
"""Answers of the job before the rollout starts."""
WAIT_S = 90.0
"""For a start on a slow machine, and for the guards' decision."""
TELL_EVERY_S = 1.0
POLL_S = 0.25
PAGE = "report.html"


class Side(msgspec.Struct, frozen=True):
    """What one version answered, and how much of it was right."""

    items: int
    right: int


def play(stage: Stage, folder: Path) -> int:
    """Run the act; 0 where everything was as promised. Raises what penstock raises."""
    part = files.act(folder, "quality")
    lines = (msgspec.json.encode(row) + b"\n" for row in cases.rows(ROWS))
    (part / "messages.jsonl").write_bytes(b"".join(lines))
    stage.act("penstock eval job.yaml: which model is good enough?")
    planted = ", ".join(f"{name.removeprefix('pretend-')} {share_of(q)}" for name, q in PLANTED.items())
    stage.say(
        f"The input: {ROWS:,} made messages with their true departments. The models are pretended, and the sandbox "
        f"has them be right as often as was planted: {planted}. Penstock is told nothing of that."
    )
    with running_sandbox(SETTINGS, process=True) as url:
        files.write(part, {"catalog.yaml": files.planted_catalog(url), "job.yaml": files.PLANTED_JOB})
        return _evaluate(stage, part) or _change(stage, part, url) or _page(stage, part)


def _state(part: Path) -> str:
    return str(part / ".penstock")


# ---- the evaluation


def _evaluate(stage: Stage, part: Path) -> int:
    arguments = ["eval", "job.yaml", "--name", NAME, "--rows", f"{EVAL_ROWS}"]
    for model in CANDIDATES:
        arguments += ["--model", model]
    stage.say(f"\n$ penstock {' '.join(arguments)}")
    code = commands.run(arguments, part)
    if code:
        stage.bad(f"`penstock eval` ended with exit code {code}: see above, and {part}")
        return code
    return tell_winner(stage, winner(part, NAME), BEST)


def winner(part: Path, name: str) -> str | None:
    """`model@version`, as the evaluation has it; None: it named none."""
    from penstock.jobs.evals import running
    from penstock.jobs.history import open_history

    state = _state(part)
    found = running.find(running.remembered(name, state), open_history(state)).evaluation
    return found.stop.leader if found is not None and found.stop.reason == "winner" else None


def tell_winner(stage: Stage, found: str | None, best: str) -> int:
    """Beside what was planted. 1 where a wrong one was named, or none: candidates so far apart are told apart."""
    model = best.partition("@")[0]
    if found is None:
        stage.bad(f"the evaluation named no winner, and {best} is by far the best one, as it was planted")
        return 1
    if found.partition("@")[0] != model:
        stage.bad(f"the evaluation named {found}, and {best} is the best one, as it was planted")
        return 1
    stage.good(f"the right winner: {model} is the best one, as it was planted")
    return 0


# ---- the rollout


def _change(stage: Stage, part: Path, url: str) -> int:
    stage.act("penstock rollout start: a worse version, while a job runs")
    stage.say(
        "clerk has a version v2, and nobody knows yet that it is worse. The job runs in the background "
        "(its words go to run.log); v2 gets a tenth of its items, and the guards compare."
    )
    before = commands.served(url)
    with (part / "run.log").open("wb") as log:
        process = commands.start(["run", "job.yaml"], part, out=log)
        try:
            code = _steer(stage, part, process, url, before) or process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    if code:
        stage.bad(f"the run ended with exit code {code}: see {part / 'run.log'}")
        return code
    stage.act("penstock rollout show clerk")
    commands.run(["rollout", "show", "clerk"], part)
    return tell_change(stage, rollouts.standing(_state(part), "clerk")[0].rollout, sides(part))


def _steer(stage: Stage, part: Path, process: subprocess.Popen[bytes], url: str, before: int) -> int:
    """Start the rollout once the job is under way, and watch it until it has ended or the job has."""
    if commands.wait_until_served(process, url, before + BEGIN_AFTER, WAIT_S) is None:
        process.kill()
        stage.bad(f"the job ended, or never began, before the rollout could start: see {part / 'run.log'}")
        return process.wait() or 1
    arguments = ["rollout", "start", "clerk", "v2", "--stages", STAGES, "--unit", "item"]
    stage.say(f"\n$ penstock {' '.join(arguments)}")
    code = commands.run(arguments, part)
    if code:
        process.kill()
        return code
    watch(stage, _state(part), process)
    return 0


def watch(stage: Stage, state: str, process: subprocess.Popen[bytes]) -> None:
    """Say what the quality guard says, now and then, until a decision ends the rollout or the job ends."""
    began = told_at = time.monotonic()
    while process.poll() is None and time.monotonic() < began + WAIT_S:
        at = rollouts.standing(state, "clerk")[0]
        if not at.rollout.active:
            break
        if time.monotonic() - told_at >= TELL_EVERY_S:
            told_at = time.monotonic()
            stage.say(f"{duration(told_at - began):>10}  {_words(at)}")
        time.sleep(POLL_S)
    rollout = rollouts.standing(state, "clerk")[0].rollout
    last = rollout.decisions[-1]
    if last.what == "rolled_back":
        stage.say(f"{duration(time.monotonic() - began):>10}  [bold red]taken back by {last.by.partition('/')[0]}[/]")
        for line in (_numbers(rollout), escape(last.why), "the job runs on; what it sends from now on goes to v1"):
            stage.say(f"{'':>10}  {line}")


def _numbers(rollout: Rollout) -> str:
    """What the guard of quality had seen when it was decided; for a person's word there is nothing to be told."""
    last = rollout.decisions[-1]
    said = next((each for each in last.told if each.guard.startswith("quality")), None)
    if said is None or said.mean is None:
        return f"{100 * last.share:g} % of the items get {rollout.candidate}"
    return f"quality of {rollout.candidate}: {100 * said.mean:+.1f} points, from {said.items:,} scored items"


def _words(at: rollouts.Standing) -> str:
    base, other = (sum(pair[side] for pair in at.items.values()) for side in (0, 1))
    said = next((each for each in at.guards if each.guard.startswith("quality")), None)
    shown = f"{base:,} items by {at.rollout.baseline}, {other:,} by {at.rollout.candidate}"
    if said is None or said.mean is None:
        return f"{shown}: nothing to compare yet"
    return f"{shown}; quality of {at.rollout.candidate}: {100 * said.mean:+.1f} points ({said.decision})"


def sides(part: Path) -> dict[str, Side]:
    """Version → what the committed quality samples say of it: every answer of this job is one."""
    counts: dict[str, tuple[int, int]] = {}
    with (part / "results.quality.jsonl").open("rb") as lines:
        for sample in told.samples(lines):
            items, right = counts.get(sample.model_version or "", (0, 0))
            counts[sample.model_version or ""] = items + 1, right + sample.passed
    return {version: Side(*pair) for version, pair in sorted(counts.items())}


def tell_change(stage: Stage, rollout: Rollout, seen: dict[str, Side]) -> int:
    """What became of it, from the decisions and the committed records. 1 where the worse version stayed."""
    total = sum(side.items for side in seen.values())
    bad = seen.get(rollout.candidate, Side(0, 0))
    took = duration(rollout.decisions[-1].at - rollout.decisions[0].at)
    if rollout.state != "rolled_back":
        stage.bad(f"{rollout.candidate} was not taken back: the rollout is {rollout.state.replace('_', ' ')}")
        return 1
    stage.good(
        f"taken back by itself after {took}: [bold]{bad.items:,} of {counted(total, 'item')} "
        f"({share(bad.items, total)})[/] saw the worse version"
    )
    for version, side in seen.items():
        stage.say(
            f"  {version}: {side.right:,} of {side.items:,} right, {share(side.right, side.items)}; "
            f"planted {share_of(PLANTED[f'pretend-clerk-{version}'])}"
        )
    return 0


def share_of(quality: float) -> str:
    return f"{100 * quality:.0f} %"


# ---- the page


def _page(stage: Stage, part: Path) -> int:
    stage.act(f"penstock report -o {PAGE}")
    code = commands.run(["report", "--run", "demo-quality", "-o", PAGE], part)
    if code == 0:
        page = part / PAGE
        shown = page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page
        stage.say(f"open [bold]{shown}[/] in a browser; its prices are pretended, all else happened here")
    return code
