"""Writing a job: init, validate, plan, models, schema."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from penstock.connectors.base import SinkName
from penstock.engine.errors import SpecError
from penstock.engine.pricing import price_of
from penstock.jobs import exits
from penstock.jobs.commands import shared
from penstock.jobs.outlet import folded
from penstock.jobs.wording import relative, secret_told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.engine.catalog import Catalog, Model, Price, Wall

JOBS = {"files": "job.yaml", "kafka": "kafka.yaml", "s3": "s3.yaml"}
"""Where rows are → the example that becomes job.yaml."""
STARTER_FILES = ("job.yaml", "catalog.yaml", "messages.csv")


@click.command()
@click.argument("folder", default=".", metavar="[FOLDER]")
@click.option("--kafka", "kind", flag_value="kafka", help="A job from topic to topic.")
@click.option("--s3", "kind", flag_value="s3", help="A job from bucket to bucket.")
def init(folder: str, kind: str | None) -> None:
    """Write a first job into FOLDER (here by default): job.yaml, catalog.yaml, messages.csv.

    Never overwrites a file.
    """
    target = Path(folder)
    there = [name for name in STARTER_FILES if (target / name).exists()]
    if there:
        raise SpecError(f"{target / there[0]} is already there; init never overwrites: give it another folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in STARTER_FILES:
            example = JOBS[kind or "files"] if name == "job.yaml" else name
            (target / name).write_bytes(resources.files("penstock.jobs").joinpath("examples", example).read_bytes())
    except OSError as error:
        raise SpecError(f"can't write into {target}: {error.strerror}") from error
    click.echo(f"wrote {', '.join(STARTER_FILES)} into {target.resolve()}")
    then = "penstock plan job.yaml" if kind is None else "what stands at the top of job.yaml"
    click.echo(f"next: {_prefix(target)}penstock validate job.yaml, then {then}")


def _prefix(target: Path) -> str:
    return "" if target.resolve() == Path.cwd() else f"cd {target} && "


@click.command()
@shared.job_argument()
@shared.sets_option
@shared.json_option
def validate(job: str, sets: tuple[str, ...], as_json: bool) -> int:
    """Check JOB and its catalogue: names, templates, prices, walls. Reads no rows, calls nobody."""
    from penstock.jobs.spec import describe, missing_secrets, warnings

    spec = shared.load_job(job, sets)
    missing, warned = missing_secrets(spec), warnings(spec)
    if as_json:
        told = {"valid": True, "run_id": spec.run_id, "name": spec.name, "missing_secrets": missing, "notes": warned}
        shared.print_json(told)
        return exits.DONE
    click.echo(f"{job} is valid")
    lines = describe(spec)
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        click.echo(folded(f"  {label:<{width}}  {relative(value)}", width + 4))
    for note in [*warned, *(f"{secret_told(each)}; a run needs it" for each in missing)]:
        click.echo(folded(f"note: {note}", len("note: "), err=True), err=True)
    return exits.DONE


@click.command()
@shared.job_argument()
@shared.sets_option
@shared.json_option
@click.option("--limit", type=click.IntRange(min=1), help="Plan for the first N rows only.")
def plan(job: str, sets: tuple[str, ...], as_json: bool, limit: int | None) -> int:
    """Say what a run of JOB would do, take and cost, from a sample of its rows. Nothing is called or paid for.

    Exits 3 where a budget can't hold it.
    """
    from penstock.jobs import trial
    from penstock.jobs.forecasting import planning

    spec = shared.load_job(job, sets)
    made = planning.make_plan(spec if limit is None else trial.first(spec, limit))
    if as_json:
        shared.print_json(made)
    else:
        out = shared.console()
        for part in planning.render(made):
            out.print(part)
    return exits.DONE if made.fits else exits.BUDGET


@click.command()
@click.argument("job", required=False, metavar="[JOB]")
@shared.sets_option
@shared.json_option
@click.option("--task", help="What was measured of each model for this task of JOB, and where its items would go.")
@click.option("--sensitivity", help="With --task: of the items; what their wall forbids is not chosen.")
@click.option("--plot", metavar="FILE", help="With --task: quality against cost, as .svg or .html.")
def models(
    job: str | None,
    sets: tuple[str, ...],
    as_json: bool,
    task: str | None,
    sensitivity: str | None,
    plot: str | None,
) -> None:
    """The catalogue of JOB (job.yaml by default; a catalogue file does too) as a table: tier, price, declared quality,
    walls that allow it.

    With --task: how good each model is as measured, and what an accepted item costs. The arrow is where an item goes:
    to the cheapest that is known to reach the task's `min_quality` (without one, to the first by preference). Its
    `explore:` pays for knowing more of them. Walls count with --sensitivity, since they are of items.
    """
    if task is not None:
        from penstock.jobs.commands.standing import tell

        tell(job or "job.yaml", sets, task, sensitivity, plot, as_json)
        return
    if sensitivity is not None or plot is not None:
        raise click.UsageError("--sensitivity and --plot go with --task")
    from penstock.jobs.spec import load_catalog

    catalog = load_catalog(job or "job.yaml", sets=shared.parse_sets(sets))
    ordered = sorted(catalog.models.values(), key=lambda m: _order(catalog, m))
    rows = [row for model in ordered for row in _rows(catalog, model)]
    if as_json:
        shared.print_json([dict(zip(_COLUMNS, row, strict=True)) for row in rows])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = shared.console()
    out.print(table)
    out.print("\nin, out: $ per million tokens; quality: declared (measured: --task)", style="dim")


_COLUMNS = ("tier", "model", "served by", "in", "out", "quality", "walls")


def _order(catalog: Catalog, model: Model) -> tuple[str, str]:
    return (_tiers(catalog, model.name) or "~", model.name)


def _rows(catalog: Catalog, model: Model) -> Iterator[tuple[str, ...]]:
    """The model at its live version; below it the versions that cost something else."""
    served = f"own vLLM ({model.live_version.id})" if model.worker else f"{model.account}"
    quality = ", ".join(f"{task} {value:g}" for task, value in model.quality.items()) or "–"
    prices, walls = _prices(model, model.live), _walls(catalog, model)
    yield _tiers(catalog, model.name), model.name, served, *prices, quality, walls
    for version in model.versions:
        if (other := _prices(model, version.id)) != prices:
            yield "", f"{model.name}@{version.id}", served, *other, "–", walls


def _tiers(catalog: Catalog, name: str) -> str:
    return ", ".join(str(tier) for tier, names in sorted(catalog.tiers.items()) if name in names)


def _prices(model: Model, version: str) -> tuple[str, str]:
    if model.worker:
        return (f"${model.hour_usd or 0:g}/h", "")
    price = price_of(model, version)
    return ("?", "?") if price is None else (_dollars(price, "input"), _dollars(price, "output"))


def _dollars(price: Price, kind: str) -> str:
    nano: int = getattr(price, kind)
    return f"{nano / 1e9:g}"


def _walls(catalog: Catalog, model: Model) -> str:
    if not catalog.walls:
        return "none declared"
    return (
        ", ".join(name for name, wall in catalog.walls.items() if _permits(catalog, wall, model)) or "no wall allows it"
    )


def _permits(catalog: Catalog, wall: Wall, model: Model) -> bool:
    from penstock.engine.walls import refusal

    return refusal(wall, model, catalog.accounts.get(model.account or "")) is None


@click.command()
@click.argument("what", type=click.Choice(["job", "records"]), default="job")
@click.option("--format", "form", type=click.Choice(["json", "avro"]), default="json", show_default=True)
@click.option(
    "--sink",
    type=click.Choice(get_args(SinkName)),
    help="Only the schema of this sink's records.",
)
def schema(what: str, form: str, sink: SinkName | None) -> None:
    """The JSON Schema of a job file, for editors and machines; or, with `records`, the JSON or Avro schemas of what a
    run writes."""
    if what == "job" and (form != "json" or sink is not None):
        raise SpecError("a job file has a JSON Schema and no sinks; for a run's output: penstock schema records")
    shared.print_json(_record_schemas(form, sink) if what == "records" else _job_schema())


def _job_schema() -> object:
    from penstock.jobs import spec

    return spec.schema()


def _record_schemas(form: str, sink: SinkName | None) -> object:
    from penstock.connectors.writing import record_schemas

    made = record_schemas.json_schema if form == "json" else record_schemas.avro_schema
    return made(sink) if sink is not None else {name: made(name) for name in record_schemas.SINKS}
