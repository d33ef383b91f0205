"""Act one: all tiers against the sandbox, a `kill -9` in the middle, and the resume."""

from __future__ import annotations

from pathlib import Path

from penstock.jobs import demo_data
from penstock.jobs import spec as job_spec
from penstock.jobs.demo import commands, files, sums
from penstock.jobs.demo.stage import Stage
from penstock.jobs.forecasting import planning
from penstock.jobs.look.committed import read_outputs
from penstock.jobs.look.verify import check, journal_of
from penstock.jobs.sandbox import Behaviour, Faults, Settings, running_sandbox
from penstock.jobs.wording import counted
from penstock.workers.runspec import RunSpec

KILL_AT = 0.4
"""Share of the rows that are answered when the command is killed."""
START_S = 90.0
"""How long a start may take on a slow machine before the demo goes on without the kill."""
MAX_ROWS = 400
BUDGET_USD = 5.0
"""Holds the worst case, in which every row falls back to the dearest model."""
ANSWER_MS = 250.0
"""About what a small hosted model takes; twelve calls at a time make the act last some seconds."""

SANDBOX = Behaviour(latency_ms=ANSWER_MS, jitter_ms=150.0, faults=Faults(overloaded=0.02, server_error=0.01))
"""It also fails now and then, as providers do; retries are part of what is shown."""
PLANTED = demo_data.Row(
    id="planted:unknown-sensitivity",
    kind="shorten",
    package="penstock",
    text="This row says it is secret, and no wall of that name is declared. So it goes nowhere.",
    sensitivity="secret",
)


def play(stage: Stage, folder: Path) -> int:
    """Run the act; 0 where everything was as promised. Raises what penstock raises."""
    part = files.act(folder, "sandbox")
    rows = [*demo_data.rows(demo_data.installed())[: MAX_ROWS - 1], PLANTED]
    files.write_rows(part / "packages.jsonl", rows)
    journal = part / "sandbox-journal.jsonl"
    stage.say(
        f"The input: {counted(len(rows), 'row')} of what the Python packages on this machine say of themselves. "
        "The provider: a sandbox on this machine; its answers and prices are pretended, its failures are on purpose."
    )
    with running_sandbox(Settings(default=SANDBOX, journal=str(journal)), process=True) as url:
        files.write(
            part,
            {
                "catalog.yaml": files.rehearsal_catalog(url),
                "job.yaml": files.job("demo-sandbox", files.TASKS + files.SHORTEN, BUDGET_USD),
            },
        )
        spec = job_spec.load(part / "job.yaml")
        _plan(stage, spec)
        killed_after, code = _run_killed(stage, part, url, len(rows))
    if code:
        stage.bad(f"`penstock run` ended with exit code {code}: see above, and {part}")
        return code
    return tell(stage, spec, part, rows, journal, killed_after)


def _plan(stage: Stage, spec: RunSpec) -> None:
    stage.act("penstock plan job.yaml: before anything is paid for")
    stage.parts(planning.render(planning.make_plan(spec)))


def _run_killed(stage: Stage, part: Path, url: str, rows: int) -> tuple[int | None, int]:
    """(calls answered at the kill, exit code of the resumed run). None: it ended before it could be killed."""
    stage.act("penstock run job.yaml, and a kill -9 in the middle")
    process = commands.start(["run", "job.yaml"], part)
    try:
        killed_after = commands.kill_when_served(process, url, round(rows * KILL_AT), START_S)
        if killed_after is None:
            return None, process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        stage.restore()
    stage.say(
        f"[red bold]kill -9 {process.pid}[/]: the command is gone; the sandbox had answered {killed_after:,} calls."
    )
    stage.act("penstock run job.yaml, again: it goes on where it was")
    return killed_after, commands.run(["run", "job.yaml"], part)


def tell(
    stage: Stage, spec: RunSpec, part: Path, rows: list[demo_data.Row], journal: Path, killed_after: int | None
) -> int:
    stage.act("what became of it")
    found = files.outputs(part)
    outputs = read_outputs(found, "id")
    report = check((row.id for row in rows), outputs, journal_of(journal))
    fine = sums.check(stage, report, killed_after=killed_after)
    stage.say(
        "  the quality shown above is of pretended answers: it shows that samples are scored, and says nothing else"
    )
    stage.act("one record (shortened)")
    sums.one_record(stage, found["results"][0], "rewrite")
    stage.act("the bill, from the costs file")
    tiers = sums.tiers_of(spec.catalog)
    note = "tokens were really counted, prices are pretended"
    sums.cost_table(stage, sums.bills(outputs.costs, spec.catalog, "large"), tiers, note)
    stage.act("where it is")
    sums.where(stage, found, Path.cwd())
    return 0 if fine else 1
