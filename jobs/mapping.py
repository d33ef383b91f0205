"""`penstock.map`: answers for the rows of a table that is in memory, as a job like any other.

The rows go into a file below the state, a job named by its content runs over them, and its answers come back as
columns. So the same call again sends nothing, and one that was cut off goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.connectors.settings import FilesSink
from penstock.connectors.state import folder_of, open_state
from penstock.engine.errors import Permanent, SpecError, Spent, Temporary
from penstock.workers.here import folder_here

if TYPE_CHECKING:
    from penstock.jobs.look.told import LetterTold
    from penstock.jobs.result import JobResult
    from penstock.workers.runspec import RunSpec

Data = Any
"""pandas or polars DataFrame, pyarrow Table or RecordBatchReader, Ray Dataset, or a list of mappings."""
Batch = Any
Columns = dict[str, list[Any]]
ROW = "penstock_row"
"""The column that numbers the rows: by it answers find their row again."""
ADDED = ("answer", "error", "model", "cost_usd")
_SET_HERE = ("source", "sinks", "shape", "name")


def map(
    data: Data,
    *,
    prompt: str | Mapping[str, object] | None = None,
    models: str | Sequence[str | Mapping[str, object]] | None = None,
    output: Sequence[str] | Mapping[str, object] | None = None,
    id: str | None = None,
    job: str | Path | Mapping[str, object] | None = None,
    vars: Mapping[str, str] | None = None,
    limit: int | None = None,
    budget_usd: float | None = None,
    state: str | None = None,
    progress: bool = True,
) -> Data:
    """Ask a model about every row; the same kind of table comes back, in order, with four more columns.

        frame = ps.map(frame, prompt="Which topic? {{ text }}", models="groq/llama-3.3-70b-versatile",
                       output=["sport", "money"], budget_usd=2)

    `answer`: text, or what `output` asked for; null where the row failed. `error`: null, or reason and message. `model`
    and `cost_usd` (US dollars, all attempts): who answered, and for how much.

    prompt: a Jinja2 template over the row's columns, or `{system, user}`. models: in order of preference
    (`provider/model`, or entries as in the job file). output: the allowed answers, or `{choices: …}` or
    `{json_schema: …}`. job: a job file (or mapping) of which all is used but its source, sinks, name and `row`'s id and
    keep: so its walls see the attributes (`row.attributes`: sensitivity, tenant, …) that they go by.
    id: a column that stands in the records (costs, `penstock explain`) beside the row's number.
    limit: the first so many rows only; the others come back without an answer. budget_usd: never exceeded; the job's
    own budgets hold as well. state: a folder, or `s3://bucket/prefix`; else the job's, else `.penstock` here. Rows and
    answers are kept on this machine: in `maps/` of the folder, or of what stands here of a state on S3
    (`$PENSTOCK_LOCAL`), and in `.penstock/maps` here where the state is the job's.

    The same call on the same rows is the same run: what was answered is not asked, nor paid for, again. With a state on
    S3 that holds on the machine that it was first made on; another one is refused, unless both make it at once.
    Raises the errors of `penstock.engine.errors`: `Spent` where the budget ended it, `Temporary` where it was
    interrupted (the same call, with a larger budget, goes on where it was). A failed row is no error but says so in
    `error`.
    """
    from penstock.jobs.run import run

    columns = _columns_of(data)
    _check_columns(columns, id)
    base, fields = _base(job)
    given = {"prompt": prompt, "models": [models] if isinstance(models, str) else models, "output": _output(output)}
    fields |= {name: value for name, value in given.items() if value is not None}
    if budget_usd is not None:
        fields["budgets"] = [*_budgets(fields.get("budgets")), {"usd": budget_usd}]
    given_state = _absolute(state or ".penstock")
    if state is not None or fields.get("state") is None:
        fields["state"] = given_state
    folder = folder_here(given_state) / "maps"
    source, rows = _write(data, folder)
    spec = _job(fields, base, folder, source, id, vars, limit)
    _refuse_elsewhere(spec, limit)
    result = run(spec, limit=limit, progress=progress)
    _check_end(result)
    return _joined(data, _answers(result, source, rows, rows if limit is None else min(limit, rows)), source)


def _refuse_elsewhere(spec: RunSpec, limit: int | None) -> None:
    """Answers that lie on another machine would be paid for again. Raises `SpecError`."""
    from penstock.jobs import trial
    from penstock.jobs.history import open_history

    if folder_of(spec.state) is not None:
        return
    asked = spec if limit is None else trial.first(spec, limit)
    results = asked.sinks["results"]
    here = Path(results.path).parent if isinstance(results, FilesSink) else None
    if here is not None and not here.exists() and open_history(spec.state).knows(asked.run_id):
        raise SpecError(
            f"this call was made before, as run {asked.run_id}, and its answers are not in {here} of this machine. "
            "Make it where it was made first; or name another state, which pays again"
        )


# ---- rows in


def _columns_of(data: Data) -> list[str]:
    import pyarrow as pa

    if isinstance(data, (pa.Table, pa.RecordBatchReader)):
        return data.schema.names
    names: Any = getattr(data, "columns", None)
    if callable(names):  # a Ray Dataset's
        names = data.columns()
    if names is not None:
        return [str(name) for name in names]
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return list(dict.fromkeys(str(name) for row in data if isinstance(row, Mapping) for name in row))
    raise SpecError(
        f"penstock.map takes a pandas or polars DataFrame, a pyarrow Table or RecordBatchReader, a Ray Dataset, or a "
        f"list of dicts; this is a {type(data).__name__}"
    )


def _check_columns(names: Sequence[str], id: str | None) -> None:
    if id is not None and id not in names:
        raise SpecError(f"id={id!r}: there is no such column; there are {', '.join(names[:20])}")
    taken = [name for name in (*ADDED, ROW) if name in names]
    if taken:
        raise SpecError(f"the data has columns that penstock.map adds: {', '.join(taken)}; rename them first")


def _write(data: Data, folder: Path) -> tuple[Path, int]:
    """The rows in a file named by their content. Returns it, and how many rows it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".draft-{os.getpid()}-{id(data)}"
    try:
        rows, suffix = (
            (_write_lines(data, draft), "jsonl") if _is_rows(data) else (_write_table(data, draft), "parquet")
        )
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
        there = folder / f"{digest}.{suffix}"
        draft.replace(there)
        return there, rows
    finally:
        draft.unlink(missing_ok=True)


def _is_rows(data: Data) -> bool:
    return isinstance(data, Sequence) and not hasattr(data, "schema")


def _write_lines(data: Sequence[object], path: Path) -> int:
    with path.open("wb") as file:
        for number, row in enumerate(data):
            if not isinstance(row, Mapping):
                raise SpecError(f"row {number} is a {type(row).__name__}, not a dict")
            try:
                file.write(msgspec.json.encode({ROW: number, **row}) + b"\n")
            except (TypeError, ValueError) as error:  # ValueError: half a surrogate pair
                raise SpecError(f"row {number} can't be written as JSON: {error}") from error
    return len(data)


def _write_table(data: Data, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, count = None, 0
    try:
        for batch in _batches(data):
            numbers = pa.array(range(count, count + batch.num_rows), pa.int64())
            table = pa.Table.from_batches([batch]).append_column(ROW, numbers)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            count += batch.num_rows
        if writer is None:
            pq.write_table(pa.table({ROW: pa.array([], pa.int64())}), path)
    finally:
        if writer is not None:
            writer.close()
    return count


def _batches(data: Data) -> Iterator[Batch]:
    import pyarrow as pa

    if isinstance(data, pa.RecordBatchReader):
        yield from data
    elif hasattr(data, "iter_batches"):  # a Ray Dataset
        for table in data.iter_batches(batch_format="pyarrow"):
            yield from table.to_batches()
    else:
        yield from _table(data).to_batches()


def _table(data: Data) -> Any:
    import pyarrow as pa

    if isinstance(data, pa.Table):
        return data
    if hasattr(data, "to_arrow"):  # polars
        return data.to_arrow()
    return pa.Table.from_pandas(data, preserve_index=False)


# ---- the job


def _base(job: str | Path | Mapping[str, object] | None) -> tuple[str, dict[str, object]]:
    """(folder that its paths start from, its fields)."""
    if job is None:
        return os.getcwd(), {}
    if isinstance(job, Mapping):
        base, found = os.getcwd(), dict(job)
    else:
        from penstock.jobs.spec import compiler

        base, found = os.path.dirname(os.path.abspath(job)), dict(compiler.read(os.fspath(job)).data)
    return base, {name: value for name, value in found.items() if name not in _SET_HERE}


def _output(output: Sequence[str] | Mapping[str, object] | None) -> Mapping[str, object] | None:
    return output if output is None or isinstance(output, Mapping) else {"choices": list(output)}


def _budgets(given: object) -> Sequence[object]:
    return [] if given is None else given if isinstance(given, Sequence) else [given]


def _row(given: object, id: str | None) -> Mapping[str, object]:
    """As the job reads a row, but known by its number. Attributes stay: walls, tenants and tasks go by them."""
    if not isinstance(given, Mapping | None):
        raise SpecError(f"the job's row is a {type(given).__name__}, not a mapping")
    return {**(given or {}), "id": f"{{{{ {ROW} }}}}", "keep": [ROW, *([id] if id is not None else [])]}


def _absolute(state: str) -> str:
    """Refused before any row is written."""
    open_state(state)
    there = folder_of(state)
    return state if there is None else str(there.absolute())


def _job(
    fields: Mapping[str, object],
    base: str,
    folder: Path,
    source: Path,
    id: str | None,
    vars: Mapping[str, str] | None,
    limit: int | None,
) -> RunSpec:
    from penstock.jobs import spec as job_spec

    # a larger budget goes on with the run, and so does one that finds its state elsewhere
    answers = {name: value for name, value in fields.items() if name not in ("budgets", "state")}
    asked = {"id": id, "vars": dict(vars or {}), "base": base, "rows": source.name, "job": answers}
    before = _digest(asked)
    whole = {
        **fields,
        "source": {"type": "files", "path": str(source)},
        "row": _row(fields.get("row"), id),
        "shape": "rows",
        "on_duplicate": "allow",
    }

    def named(digest: str) -> RunSpec:
        name = {"name": f"map-{digest}", "sinks": str(folder / digest / "results.jsonl")}
        return job_spec.from_mapping({**whole, **name}, base, sets=vars)

    earlier = named(before)
    meant = earlier.fingerprint  # what stands in its catalogue counts too
    return earlier if _ran(earlier, limit) else named(_digest([asked, meant]))


def _digest(asked: object) -> str:
    try:
        encoded = msgspec.json.encode(asked, order="sorted")
    except (TypeError, ValueError) as error:  # ValueError: half a surrogate pair
        raise SpecError(f"this can't stand in a job: {error}") from error
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def _ran(spec: RunSpec, limit: int | None) -> bool:
    """By an earlier Penstock, which named a call without what its catalogue says: where that is still the same, its
    rows are not paid for again."""
    from penstock.jobs import trial
    from penstock.jobs.history import open_history

    history, run_id = open_history(spec.state), (spec if limit is None else trial.first(spec, limit)).run_id
    return history.knows(run_id) and history.spec(run_id).fingerprint == spec.fingerprint


def _check_end(result: JobResult) -> None:
    """A run that did not come to its end is an error here: half a table would look like a whole one."""
    status = result.status
    words = f"run {status.run_id} is {status.state}: {status.message}"
    match status.state:
        case "done":
            return
        case "stopped_by_budget":
            raise Spent(f"{words}. The same call with a larger budget_usd goes on where it was.")
        case "interrupted" | "cancelled" | "handed_over":
            raise Temporary(f"{words}. The same call goes on where it was.")
        case _:
            raise Permanent(words)


# ---- answers out


class _Told(msgspec.Struct):
    """What one row's record says."""

    answer: Any = None
    error: str | None = None
    model: str | None = None
    cost_usd: float | None = None


class _By(msgspec.Struct):
    model: str
    cost_usd: float = 0.0


class _Result(msgspec.Struct):
    penstock_row: int
    answer: Any
    penstock: _By


def _answers(result: JobResult, source: Path, rows: int, asked: int) -> Columns:
    """`asked`: so many of the rows were to be answered; each of them has an answer or an error."""
    told: dict[int, _Told] = {}
    decode = msgspec.json.Decoder(_Result).decode
    for line in result.lines("results"):
        one = decode(line)
        told[one.penstock_row] = _Told(one.answer, None, one.penstock.model, one.penstock.cost_usd)
    for row, letter in _by_row(result.dead_letters(), source):
        told[row] = _Told(None, f"{letter.reason}: {letter.message}", None, letter.cost_usd)
    for row in range(asked):
        told.setdefault(row, _Told(error="lost: the run told nothing of this row"))
    nothing = _Told()
    ordered = [told.get(number, nothing) for number in range(rows)]
    return {name: [getattr(one, name) for one in ordered] for name in ADDED}


def _by_row(letters: Iterable[LetterTold], source: Path) -> Iterator[tuple[int, LetterTold]]:
    """A row that could not be read has no label: it is known by where it stands."""
    unread: dict[int, LetterTold] = {}
    for letter in letters:
        if letter.custom_id is not None and letter.custom_id.isdigit():
            yield int(letter.custom_id), letter
        elif letter.source is not None:
            unread[letter.source.position] = letter
    if source.suffix == ".parquet":  # there, positions are rows
        yield from unread.items()
    elif unread:
        yield from ((row, unread[place]) for row, place in _lines(source) if place in unread)


def _lines(source: Path) -> Iterator[tuple[int, int]]:
    """(number, first byte) of each line."""
    place = 0
    with source.open("rb") as file:
        for row, line in enumerate(file):
            yield row, place
            place += len(line)


def _joined(data: Data, added: Columns, source: Path) -> Data:
    """The same kind of table, with the new columns."""
    if _is_rows(data):
        return [{**row, **{name: added[name][n] for name in ADDED}} for n, row in enumerate(data)]
    if hasattr(data, "assign"):  # pandas: its index stays
        return data.assign(**added)
    if hasattr(data, "to_arrow"):
        import polars as pl

        return data.with_columns([pl.Series(name, values, strict=False) for name, values in added.items()])
    import pyarrow as pa

    if isinstance(data, pa.Table):
        return _with_columns(data, added)
    if isinstance(data, pa.RecordBatchReader):  # it was read to its end: the rows stand in the file
        table = _with_columns(_stored(source), added)
        return pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
    import ray.data

    return ray.data.from_arrow(_with_columns(_stored(source), added))


def _stored(source: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(source).drop_columns([ROW])


def _with_columns(table: Any, added: Mapping[str, Iterable[Any]]) -> Any:
    import pyarrow as pa

    types = {"error": pa.string(), "model": pa.string(), "cost_usd": pa.float64()}
    for name, values in added.items():
        table = table.append_column(name, pa.array(values, types.get(name)))
    return table
