"""Evaluations: several candidates over the same labelled rows."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
import msgspec

from penstock.engine.errors import SpecError
from penstock.jobs import exits
from penstock.jobs.commands import shared

if TYPE_CHECKING:
    from penstock.jobs.evals.asked import Asked
    from penstock.jobs.evals.running import Found, Prepared
    from penstock.jobs.look.reading import Outputs
    from penstock.workers.runspec import RunSpec


class EvalCall(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `penstock eval`, as click read them."""

    sets: tuple[str, ...] = ()
    state: str | None = None
    as_json: bool = False
    name: str | None = None
    task: str | None = None
    models: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    scorer: str | None = None
    slices: tuple[str, ...] = ()
    samples: bool = False
    with_samples: bool = False
    rows: int | None = None
    confidence: float = 0.95
    within: float | None = None
    same_within: float | None = None
    all_rows: bool = False
    budget_usd: float | None = None
    price_only: bool = False
    fresh: bool = False
    address: str | None = None


@click.group(name="eval", cls=shared.with_default("go"))
def evaluate() -> None:
    """Ask several candidates the same labelled rows, and say which is better.

    The task's scorers say where a row's label stands: `scorers: [{type: exact, expected: "{{ label }}"}]`.

    \b
      penstock eval job.yaml --model small --model small@v2 --model opus
      penstock eval job.yaml --variant brief=brief.yaml --slice channel
          brief.yaml has `prompt:` or `params:`, as a task has them; channel is
          a column of the rows
      penstock eval job.yaml --confidence 0.99 --within 0.02 --price
      penstock eval show NAME
    """


@evaluate.command()
@shared.job_argument()
@shared.sets_option
@shared.state_option
@shared.json_option
@click.option("--name", help="The same name goes on where it was. [default: the job's name and the task]")
@click.option("--task", help="Which task of the job. [default: its only one]")
@click.option("--model", "models", multiple=True, metavar="NAME[@VERSION]", help="A candidate. [default: the task's]")
@click.option(
    "--variant", "variants", multiple=True, metavar="NAME=FILE", help="Another `prompt:` or `params:`, in YAML."
)
@click.option("--scorer", help="The scorer that decides. [default: the task's first, else exact]")
@click.option(
    "--slice", "slices", multiple=True, metavar="COLUMN", help="Also by this column, metadata key or attribute."
)
@click.option("--samples", is_flag=True, help="Quality samples of the job's run instead of the source's rows.")
@click.option("--with-samples", is_flag=True, help="Such samples beside the source's rows; what is both counts once.")
@click.option("--rows", type=click.IntRange(min=1), help="At most so many rows, drawn at random.")
@click.option("--confidence", type=click.FloatRange(0.5, 0.999), default=0.95, show_default=True)
@click.option("--within", type=click.FloatRange(0.001, 0.5), help="Stop when each quality is known to ± this.")
@click.option(
    "--same-within",
    type=click.FloatRange(0.001, 0.5),
    help="Stop also when the leader is better than no other by more than this.",
)
@click.option("--all-rows", is_flag=True, help="Use every row, also when a winner is clear.")
@click.option(
    "--budget-usd",
    type=click.FloatRange(min=0),
    help="Never more. [default: the price's high end × 1.25, and room for a crash]",
)
@click.option("--price", "price_only", is_flag=True, help="Say what it would cost, and stop.")
@click.option("--fresh", is_flag=True, help="Start over with rows and job as they are now; what was done is forgotten.")
@click.option("--address", envvar="RAY_ADDRESS", help="A Ray cluster. [default: a Ray of its own; env RAY_ADDRESS]")
def go(job: str, **given: object) -> int:
    """Evaluate candidates on the rows of JOB that have an expected answer.

    Each row's first answer comes from the first candidate, all others answer the same request: walls, budgets and
    the commit hold as in any run. It stops by itself when a winner is clear (with --same-within 0.02 also when the
    leader is shown to be better than no other by more than 2 points, with --within when every quality is known as well
    as asked), and the intervals of quality are valid whenever you look. Killed or stopped, it goes on; where the job
    has changed meanwhile, it says what, and wants --fresh or another --name. With the state on S3 its rows and answers
    lie on this machine, and it goes on from here; all else is shared.
    """
    call = msgspec.convert(given, EvalCall, strict=False)
    from penstock.jobs.evals import running
    from penstock.jobs.progress import display_for
    from penstock.jobs.run import Session

    base = _base(job, call)
    asked = _asked(job, base, call)
    name = call.name or _name(base, asked)
    samples = _samples(base) if asked.samples else None
    if call.price_only:
        with TemporaryDirectory(prefix="penstock-price-") as aside:
            _priced(running.prepare(name, base, asked, samples, fresh=call.fresh, aside=Path(aside)), call)
        return exits.DONE
    prepared = running.prepare(name, base, asked, samples, fresh=call.fresh)
    spec = _priced(prepared, call)
    display = display_for(sys.stderr if call.as_json else sys.stdout, "ctrl-c: stop; the same command goes on")
    found = running.go(prepared, spec, Session(address=call.address), display, to_the_end=call.all_rows)
    _tell(found, call.as_json)
    return running.exit_code(found, to_the_end=call.all_rows)


def _priced(prepared: Prepared, call: EvalCall) -> RunSpec:
    """Says what it would cost. The run inside its budget."""
    from penstock.engine.pricing import usd_to_nano
    from penstock.jobs.evals import going, running, view

    cost, spec = running.price(prepared, None if call.budget_usd is None else usd_to_nano(call.budget_usd))
    words = [view.price_words(cost, prepared, min(b.limit_nano for b in spec.budgets)) if spec.budgets else "free"]
    if (why := going.informs(spec, prepared.asked)) is not None:
        words.append(f"note: {view.informs_words(prepared.asked, why)}")
    for line in (*view.rows_words(prepared), *words):
        shared.echo(line, err=call.as_json)
    return spec


@evaluate.command()
@click.argument("name")
@shared.state_option
@shared.json_option
def show(name: str, state: str | None, as_json: bool) -> int:
    """What the evaluation NAME found, or has found so far."""
    from penstock.jobs.evals import running
    from penstock.jobs.history import open_history

    url = shared.state_url(state)
    _tell(running.find(running.remembered(name, url), open_history(url)), as_json)
    return exits.DONE


def _tell(found: Found, as_json: bool) -> None:
    from penstock.jobs.evals import view

    if as_json:
        shared.print_json(view.machine(found))
    else:
        out = shared.console()
        for part in view.parts(found):
            out.print(part)


def _base(job: str, call: EvalCall) -> RunSpec:
    spec = shared.load_job(job, call.sets)
    return spec if call.state is None else msgspec.structs.replace(spec, state=shared.state_url(call.state))


def _asked(job: str, base: RunSpec, call: EvalCall) -> Asked:
    from penstock.jobs.evals.asked import Asked, Variant, models_of, read_variant
    from penstock.jobs.evals.derived import scorer_of

    task = call.task or base.policy.default_task
    if task is None or task not in base.policy.tasks:
        raise SpecError(f"say which task with --task: {', '.join(base.policy.tasks)}")
    if call.samples and call.with_samples:
        raise SpecError("--samples takes samples alone, --with-samples beside the source's rows: say one of them")
    if call.samples and call.slices:
        raise SpecError("--slice goes by columns and attributes, and samples keep none: leave --slice or --samples out")
    models = models_of(base.catalog, call.models or _models(base, task))
    variants = {"": Variant()}
    for text in call.variants:
        name, equals, path = text.partition("=")
        if not equals or not name.strip() or not name.isidentifier():
            raise SpecError(f"--variant {text!r}: expected NAME=FILE, with letters, digits and _ in the name")
        variants[name] = read_variant(path)
    return Asked(
        job=base.name,
        task=task,
        models=models,
        variants=variants,
        scorer=scorer_of(base.policy.tasks[task], call.scorer),
        slices=call.slices,
        samples=call.samples or call.with_samples,
        beside=call.with_samples,
        rows=call.rows,
        confidence=call.confidence,
        within=call.within,
        same_within=call.same_within,
    )


def _models(base: RunSpec, task: str) -> tuple[str, ...]:
    """Those that the task's items may go to."""
    at = base.policy.tasks[task]
    tiers = base.catalog.tiers
    return (
        at.models
        or (at.cascade.models if at.cascade is not None else ())
        or tiers.get(at.tier or (3 if 3 in tiers else max(tiers, default=0)), ())
        or tuple(base.catalog.models)
    )


def _name(base: RunSpec, asked: Asked) -> str:
    from penstock.jobs.spec.digest import digest

    samples = "beside" if asked.beside else asked.samples
    parts = "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{base.name}-{asked.task}")[:40]
    return f"{parts.strip('-')}-{digest([asked.models, sorted(asked.variants), asked.rows, samples])[:4]}"


def _samples(base: RunSpec) -> Outputs:
    from penstock.jobs.history import open_history
    from penstock.jobs.look.reading import Outputs

    history = open_history(base.state)
    return Outputs(history.spec(base.run_id), history.status(base.run_id))
