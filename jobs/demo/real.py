"""Act three: a small real model on vLLM labels topics, scored against true labels and set beside pretended
models. Runs in the Python that has vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from penstock.engine.errors import Temporary
from penstock.jobs import demo_data
from penstock.jobs import spec as job_spec
from penstock.jobs.demo import commands, extra, files, sums, versions
from penstock.jobs.demo.stage import Stage
from penstock.jobs.forecasting import planning
from penstock.jobs.look.committed import read_outputs
from penstock.jobs.look.verify import check
from penstock.jobs.sandbox import Behaviour, Settings, running_sandbox
from penstock.jobs.sandbox.cases import Truth
from penstock.jobs.sandbox.planted import Planted
from penstock.jobs.wording import counted
from penstock.workers.runspec import RunSpec

REWRITES = 6
"""Descriptions for Tier 1: cents, where a real provider answers."""
BUDGET_USD = 0.05
"""Hard: what can't be reserved isn't sent. Six rewrites take a cent at worst (Haiku's price)."""
PRETEND_BUDGET_USD = 0.5
"""The sandbox's pretended Tier 1 is five times as dear."""
PROVIDERS = (("ANTHROPIC_API_KEY", "anthropic/claude-haiku-4-5"), ("OPENAI_API_KEY", "openai/gpt-4.1-mini"))
"""Key variable → what rewrites for it: each host's small, cheap, non-reasoning model."""
PLANTED = (0.55, 0.92)
"""How often the two pretended models beside it are right."""
EVAL = "topics"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
"""Nothing is fetched; 1 GB of key-value cache is plenty for 64 short requests."""


def play(stage: Stage, folder: Path) -> int:
    """Run the act; 0 where everything was as promised. Raises what penstock raises."""
    part = files.act(folder, "real")
    model = _model(stage)
    rows = _rows()
    files.write_rows(part / "packages.jsonl", rows)
    tier1 = _tier1(stage)
    budget = BUDGET_USD if tier1 else PRETEND_BUDGET_USD
    topics = sum(row.kind == "topic" for row in rows)
    stage.say(
        f"The input: {counted(topics, 'package')} whose classifiers name one clear topic, for SmolLM2-135M on vLLM; "
        f"{counted(len(rows) - topics, 'description')} to rewrite, for Tier 1."
    )
    with running_sandbox(_sandbox(part / "packages.jsonl"), process=True) as url:
        catalog = files.real_catalog(url, model, tier1)
        files.write(part, {"catalog.yaml": catalog, "job.yaml": files.job("demo-real", files.TASKS, budget)})
        stage.act("penstock plan job.yaml")
        spec = job_spec.load(part / "job.yaml")
        stage.parts(planning.render(planning.make_plan(spec)))
        stage.act("penstock run job.yaml")
        code = commands.run(["run", "job.yaml"], part, ENVIRONMENT)
        if code:
            stage.bad(f"`penstock run` ended with exit code {code}: see above, and {part}")
            return code
        code = _told(stage, part, rows, spec, tier1) or _evaluate(stage, part)
    if code == 0:
        stage.act("where it is")
        sums.where(stage, files.outputs(part), Path.cwd())
    return code


def _sandbox(rows: Path) -> Settings:
    """Beside the pretended Tier 1: models that know the true topics, and say them as often as was planted."""
    planted = {f"pretend-{name}": quality for name, quality in zip(files.PLANTED, PLANTED, strict=True)}
    return Settings(
        default=Behaviour(latency_ms=300.0),
        models={name: Behaviour(latency_ms=100.0, planted=Planted(quality)) for name, quality in planted.items()},
        truth=Truth(str(rows)),
    )


def _evaluate(stage: Stage, part: Path) -> int:
    """The same rows for the real model and for two pretended ones."""
    candidates = ("small", *files.PLANTED)
    fair, good = files.PLANTED
    arguments = ["eval", "job.yaml", "--task", "topic", "--name", EVAL, "--budget-usd", f"{PRETEND_BUDGET_USD:g}"]
    for model in candidates:
        arguments += ["--model", model]
    stage.act("penstock eval job.yaml: the same rows for other models")
    stage.say(
        f"{fair} and {good} are pretended, at pretended prices: the sandbox knows the true topics, and has {fair} be "
        f"right in {100 * PLANTED[0]:.0f} % and {good} in {100 * PLANTED[1]:.0f} %. small is the real one."
    )
    stage.say(f"\n$ penstock {' '.join(arguments)}")
    code = commands.run(arguments, part, ENVIRONMENT)
    if code:
        stage.bad(f"`penstock eval` ended with exit code {code}: see above, and {part}")
        return code
    return versions.tell_winner(stage, versions.winner(part, EVAL), good)


def _told(stage: Stage, part: Path, rows: Sequence[demo_data.Row], spec: RunSpec, tier1: str | None) -> int:
    stage.act("how good, and what it cost")
    outputs = read_outputs(files.outputs(part), "id")
    report = check((row.id for row in rows), outputs)
    if not report.clean:
        stage.bad(str(report))
        return 1
    stage.good(
        f"{counted(report.offered, 'row')} in and out: {report.lost} lost, {report.twice} twice; the bill adds up"
    )
    sums.accuracy(stage, outputs, [row.label for row in rows if row.label is not None])
    note = "small: $0.10 an hour (pretended), spread over the tokens it served" + (
        "" if tier1 else "; large: pretended prices"
    )
    sums.cost_table(stage, sums.bills(outputs.costs, spec.catalog, tier1 or "large"), sums.tiers_of(spec.catalog), note)
    return 0


def _rows() -> list[demo_data.Row]:
    packages = demo_data.installed()
    rewrites = demo_data.rows(packages, kinds=("rewrite",))[:REWRITES]
    return [*demo_data.rows(packages, kinds=("topic",)), *rewrites]


def _tier1(stage: Stage) -> str | None:
    """A real provider where its key is set; None: the sandbox."""
    for variable, model in PROVIDERS:
        if os.environ.get(variable):
            stage.say(
                f"[yellow]{variable} is set: Tier 1 is the real {model}, with a hard budget of ${BUDGET_USD:.2f}. "
                f"Unset it to pay nobody.[/]"
            )
            return model
    stage.say("No provider's key is set: Tier 1 is the sandbox. Tier 3 is real.")
    return None


def _model(stage: Stage) -> Path:
    """The small model's folder; the first time it is fetched (89 MB) and converted."""
    root = extra.checkout()
    if root is None:
        raise Temporary("the real part needs a checkout of penstock: its model is made by infra/local/model.py")
    with extra.busy(stage, "the model: SmolLM2-135M (89 MB the first time, then converted once)"):
        made = subprocess.run(
            [sys.executable, str(root / "infra" / "local" / "model.py"), "small"], capture_output=True, text=True
        )
    if made.returncode:
        raise Temporary(f"the model could not be made: {_last(made.stderr.splitlines())}; run the demo again")
    return Path(_last(made.stdout.splitlines()))


def _last(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "no word")
