"""What readers get: one file in input order, or parts and a manifest; whole, or as it was before."""

from __future__ import annotations

import asyncio
import csv
import datetime
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from penstock.connectors.base import OutRecord, Records, SinkName, this_process
from penstock.connectors.filestore import assembly
from penstock.connectors.filestore import sort as file_sort
from penstock.connectors.filestore.disk import no_faults
from penstock.connectors.filestore.place import FilesPlace
from penstock.connectors.filestore.store import FileStore
from penstock.connectors.registry import PRIMARY, discard_stores, iter_committed, open_stores, refuse_held
from penstock.connectors.settings import FilesSink, MemorySink, SinkSettings
from penstock.connectors.writing import table_columns
from penstock.connectors.writing.records import Encoder, iter_records
from penstock.engine.errors import Fenced, Held, Refused, SpecError
from penstock.engine.items import Answer, Attributes, Item, Position, Refusal, Request, Route, Usage
from penstock.engine.plan import Plan
from penstock.engine.results import Attempt, CostLine, DeadLetter, Result, Score, ShadowAnswer

PLAN = Plan("run-1", "n", {}, 2, (), {}, 0.0)
FAST = Path("/dev/shm")
"""Another file system than that of the tests' folders."""
SINKS: tuple[SinkName, ...] = ("results", "costs", "quality", "dead_letters")


def sinks_at(folder: Path, suffix: str = ".jsonl") -> dict[SinkName, SinkSettings]:
    return {name: FilesSink(str(folder / f"{name}{suffix}")) for name in SINKS}


def store_for(sinks: dict[SinkName, SinkSettings], home: Path, faults: Callable[[str], None] = no_faults) -> FileStore:
    files = {str(name): sink for name, sink in sinks.items() if isinstance(sink, FilesSink)}
    return FileStore(home, files, 0.0, faults=faults)


async def commit_all(store: FileStore, lanes: dict[int, list[Records]], run: int = 1) -> None:
    for lane, commits in lanes.items():
        seq = (await store.take(lane, (run, 1))).seq
        for n, records in enumerate(commits, seq + 1):
            await store.commit(lane, (run, 1), n, records, {})
        await store.release(lane)


def shuffled(count: int, seed: int = 1) -> list[OutRecord]:
    """Records of 7 splits in no order; half the items have two."""
    places = [(n % 7, n // 7 * 10, sub) for n in range(count) for sub in range(1 + n % 2)]
    random.Random(seed).shuffle(places)
    return [OutRecord(o, p, json.dumps([o, p, s, "x" * (p % 50)]).encode(), s) for o, p, s in places]


def in_commits(records: list[OutRecord], size: int) -> list[Records]:
    return [{"results": records[at : at + size]} for at in range(0, len(records), size)]


def keys(path: Path) -> list[tuple[int, ...]]:
    return [tuple(json.loads(line)[:3]) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("chunk_rows", [10, 1000, 1_000_000])
async def test_one_file_is_in_input_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    """Whatever lane, commit or order a record came in: sorted by (ordinal, position, sub), none lost, none twice; with
    one chunk, with many runs, and with runs merged in small pieces."""
    monkeypatch.setattr(file_sort, "CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr(file_sort, "MERGE_BYTES", 1)
    monkeypatch.setattr(file_sort, "BLOCK_BYTES", 500)
    records = shuffled(3000)
    store = store_for(sinks_at(tmp_path), tmp_path / ".results.penstock")
    await commit_all(store, {0: in_commits(records[:2000], 17), 1: in_commits(records[2000:], 400)})
    done = await store.finish(PLAN)
    assert done["results"] == [str(tmp_path / "results.jsonl")]
    found = keys(tmp_path / "results.jsonl")
    assert found == sorted((r.ordinal, r.position, r.sub) for r in records)
    assert not list((tmp_path / ".results.penstock/assembly").rglob("*.run"))


async def test_empty_outputs_exist_and_an_empty_dead_letter_file_does_not(tmp_path: Path) -> None:
    """No records: empty results, costs and quality; of dead letters no file, and one of the run's earlier life goes."""
    store = store_for(sinks_at(tmp_path), tmp_path / ".results.penstock")
    (tmp_path / "dead_letters.jsonl").write_text('{"item_id":"a","run_id":"run-1"}\n')
    done = await store.finish(PLAN)
    assert done["dead_letters"] == []
    assert sorted(p.name for p in tmp_path.glob("*.jsonl")) == ["costs.jsonl", "quality.jsonl", "results.jsonl"]
    assert (tmp_path / "results.jsonl").read_bytes() == b""


NO_PARQUET = b"PAR1" + b"\xff" * 100 + (100).to_bytes(4, "little") + b"PAR1"


@pytest.mark.parametrize(
    "theirs",
    [b"my notes\n", b"", b'{"run_id":"run-2"}\n', b"\xff\0" * 100, b"[1, 2]", NO_PARQUET, b'{"a":' + b"[" * 100_000],
)
async def test_without_dead_letters_a_strangers_file_stays(tmp_path: Path, theirs: bytes) -> None:
    """Nothing would be written in its place, so nothing is taken away."""
    for name in ("dead.jsonl", "dead.csv", "dead.parquet"):
        (tmp_path / name).write_bytes(theirs)
        sinks = {**sinks_at(tmp_path), "dead_letters": FilesSink(str(tmp_path / name))}
        store = store_for(sinks, tmp_path / f".{name}.penstock")
        assert (await store.finish(PLAN))["dead_letters"] == []
        assert (tmp_path / name).read_bytes() == theirs


class Killed(BaseException):
    pass


@pytest.mark.parametrize("folder", [False, True])
async def test_a_kill_at_any_step_leaves_the_old_output_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    """A single file is the old one or the new one, whole. A folder with a manifest is exactly what the manifest says;
    without one it is unfinished. Finishing again always gives the whole new output, and no stale part."""
    monkeypatch.setattr(assembly, "PART_BYTES", 3000)
    monkeypatch.setattr(file_sort, "BLOCK_BYTES", 500)
    for step in assembly.FINISH_STEPS:
        place = tmp_path / step
        sink = FilesSink(str(place / "out") + "/" if folder else str(place / "out.jsonl"))
        outputs: dict[SinkName, SinkSettings] = {"results": sink}
        records = shuffled(400)
        store = store_for(outputs, place / ".out.penstock")
        await commit_all(store, {0: in_commits(records[:500], 100)})
        await store.finish(PLAN)
        await commit_all(store, {0: in_commits(records[500:], 10)}, run=2)

        def die(name: str, at: str = step) -> None:
            if name == at:
                raise Killed

        try:
            await store_for(outputs, place / ".out.penstock", die).finish(PLAN)
        except Killed:
            assert len(whole(sink)) in ((500, len(records)) if not folder else (0, 500, len(records)))
        await store.finish(PLAN)
        assert whole(sink) == sorted((r.ordinal, r.position, r.sub) for r in records)
        if folder:
            named = json.loads((place / "out/_manifest.json").read_bytes())
            assert {f["name"] for f in named["files"]} == {p.name for p in (place / "out").glob("part-*")}
            assert named["run_id"] == "run-1"


def whole(sink: FilesSink) -> list[tuple[int, ...]]:
    """What a careful reader takes for finished."""
    path = Path(sink.path)
    if path.suffix:
        return keys(path)
    if not (path / "_manifest.json").exists():
        return []
    files = json.loads((path / "_manifest.json").read_bytes())["files"]
    found = [keys(path / f["name"]) for f in files]
    assert [(len(k), (path / f["name"]).stat().st_size) for k, f in zip(found, files, strict=True)] == [
        (f["rows"], f["bytes"]) for f in files
    ]
    return [key for part in found for key in part]


async def test_fewer_parts_than_before_leave_none_behind_and_strangers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of an earlier finish that the new manifest does not name are removed; files that are not ours are not."""
    outputs: dict[SinkName, SinkSettings] = {"results": FilesSink(str(tmp_path / "out/"))}
    store = store_for(outputs, tmp_path / ".out.penstock")
    await commit_all(store, {0: in_commits(shuffled(400), 100)})
    monkeypatch.setattr(assembly, "PART_BYTES", 1000)
    monkeypatch.setattr(file_sort, "BLOCK_BYTES", 500)
    assert len((await store.finish(PLAN))["results"]) > 3
    (tmp_path / "out/notes.txt").write_text("mine")
    monkeypatch.setattr(assembly, "PART_BYTES", 1 << 30)
    assert len((await store.finish(PLAN))["results"]) == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["_manifest.json", "notes.txt", "part-0000.jsonl"]


@pytest.mark.skipif(not FAST.exists(), reason="there is no second file system")
async def test_a_folder_may_be_a_disk_of_its_own(tmp_path: Path) -> None:
    """A mount point, or a link to another disk; what a killed command left in it goes."""
    with tempfile.TemporaryDirectory(dir=FAST) as disk:
        assert os.stat(disk).st_dev != tmp_path.stat().st_dev
        (tmp_path / "out").symlink_to(disk)
        (Path(disk) / ".penstock-parts-dead0000").mkdir()
        store = store_for({"results": FilesSink(str(tmp_path / "out/"))}, tmp_path / ".out.penstock")
        await commit_all(store, {0: in_commits(shuffled(40), 10)})
        await store.finish(PLAN)
        assert len(whole(FilesSink(str(tmp_path / "out")))) == len(shuffled(40))
        assert sorted(os.listdir(disk)) == ["_manifest.json", "part-0000.jsonl"]


async def test_a_command_that_was_taken_over_publishes_nothing(tmp_path: Path) -> None:
    """It stood still while it assembled; another took the run over, added records and finished. Then it wakes up."""
    sinks = sinks_at(tmp_path)
    new = store_for(sinks, tmp_path / ".results.penstock")

    def stand_still(step: str) -> None:
        if step == "finish.written" and not (tmp_path / "results.jsonl").exists():
            asyncio.run(go_on())

    async def go_on() -> None:
        await new.hold(this_process(), take_over=True)
        await commit_all(new, {0: [{"results": [OutRecord(0, 1, b"[0,1,0]")]}]}, run=2)
        await new.finish(PLAN)

    old = store_for(sinks, tmp_path / ".results.penstock", stand_still)
    await old.hold(this_process())
    await commit_all(old, {0: [{"results": [OutRecord(0, 0, b"[0,0,0]")]}]})
    with pytest.raises(Fenced):
        await old.finish(PLAN)
    assert keys(tmp_path / "results.jsonl") == [(0, 0, 0), (0, 1, 0)]
    with pytest.raises(Fenced):
        await old.finish(PLAN)


# tables


def item(n: int, keep: dict[str, object]) -> Item:
    return Item(
        f"{n:032x}", Position("in.csv@1:0-9", 0, n), Attributes(task="t", tenant="acme"), Request(b"{}"), b"{}",
        1_795_563_215.5, custom_id=f"c{n}", keep_json=msgspec.json.encode(keep),
    )  # fmt: skip


def result(n: int, keep: dict[str, object], text: str = "yes") -> Result:
    usage = Usage(input=100 + n, output=3)
    tries = (Attempt(1, "primary", "small", 1_795_563_215.75, 12.5, "ok", f"req_{n}", 1_500 + n, usage=usage),)
    return Result(
        item(n, keep), Route("t", 3, (), (Refusal("opus", "wall"),), "tier 3"), Answer(text, "stop", b'{"id":"x"}'),
        "small", "v1", "own", None, "eu", "own", usage, 1_500 + n, "metered", "p", "q", "r", tries, 1_795_563_216.0,
        1.0, 12.5, "h",
    )  # fmt: skip


KEPT: list[dict[str, object]] = [
    {"i": 1, "f": 1, "b": True, "s": "ü,\n\"", "m": 1, "nul": None, "big": 2**70, "penstock_model": "mine"},
    {"i": 2, "f": 0.5, "b": None, "s": "", "m": "one", "nul": None, "big": 1, "j": {"x": [1]}},
]  # fmt: skip


def outputs(encoder: Encoder, text: str = "yes") -> Records:
    results = [result(n, keep, text) for n, keep in enumerate(KEPT)]
    cost = CostLine("e", "i", 1, "primary", None, "small", "v1", Usage(input=5), 7, "metered", "p", None, "t", 3, 1.5)
    dead = DeadLetter("d", Position("s", 0, 9), "malformed", "bad", b"\xff", finished_at=2.0)
    other, score = ShadowAnswer("large", "v1", "no", (), Usage(), 0, 0.0, 1.0), Score("exact", "1", 0.0, False)
    asked = msgspec.structs.replace(results[0].item, request=Request(b'{"messages":[]}', input_hash="ab"))
    looked_at = msgspec.structs.replace(results[0], item=asked, scores=(score,), shadows=(other, other))
    return {
        "results": [OutRecord(0, n, encoder.result(r)) for n, r in enumerate(results)],
        "costs": [OutRecord(0, 0, encoder.cost(cost))],
        "dead_letters": [OutRecord(0, 0, encoder.dead_letter(dead))],
        "review": [OutRecord(0, 0, encoder.review(looked_at, ("low confidence", "random share")))],
    }


async def finished(folder: Path, suffix: str, records: Records) -> dict[SinkName, SinkSettings]:
    sinks = sinks_at(folder, suffix)
    sinks["review"] = FilesSink(str(folder / f"review{suffix}"))
    store = store_for(sinks, folder / f".results{suffix}.penstock")
    await commit_all(store, {0: [records]})
    await store.finish(PLAN)
    return sinks


async def test_parquet_has_flat_typed_columns(tmp_path: Path) -> None:
    """Ours with `penstock_` in front, money decimal(18,9), times timestamp(us, UTC), attempts a list of structs; the
    user's with the type that all values share, else text."""
    await finished(tmp_path, ".parquet", outputs(Encoder("run-1", "rows")))
    table = pq.read_table(tmp_path / "results.parquet")
    types = {f.name: f.type for f in table.schema}
    assert [types[n] for n in ("i", "f", "b", "s", "m", "nul", "big", "j", "answer")] == [
        pa.int64(), pa.float64(), pa.bool_(), *[pa.string()] * 6
    ]  # fmt: skip
    assert types["penstock_cost_usd"] == pa.decimal128(18, 9)
    assert types["penstock_finished_at"] == pa.timestamp("us", tz="UTC")
    first, second = table.to_pylist()
    assert [first[n] for n in ("i", "b", "s", "m", "big", "j")] == [1, True, 'ü,\n"', "1", str(2**70), None]
    assert [second[n] for n in ("f", "m", "j")] == [0.5, "one", '{"x":[1]}']
    assert (first["input_penstock_model"], first["penstock_model"], first["answer"]) == ("mine", "small", "yes")
    assert first["penstock_cost_usd"] == Decimal("0.000001500")
    assert first["penstock_enqueued_at"] == datetime.datetime(2026, 11, 24, 23, 33, 35, 500_000, datetime.UTC)
    assert first["penstock_attempts"][0]["cost_usd"] == Decimal("0.000001500")
    assert first["penstock_refused"] == [{"model": "opus", "reason": "wall"}]
    assert (first["penstock_source_position"], first["penstock_tokens_input"]) == (0, 100)
    assert pq.read_table(tmp_path / "costs.parquet").to_pylist()[0]["usd"] == Decimal("0.000000007")
    assert pq.read_table(tmp_path / "quality.parquet").num_rows == 0
    assert "score" in pq.read_table(tmp_path / "quality.parquet").schema.names


async def test_answers_under_a_schema_are_a_struct_column(tmp_path: Path) -> None:
    """One struct type that fits all of them; where they don't go together, JSON text."""
    for n, (texts, wanted) in enumerate([
        (('{"a": 1}', '{"a": null, "b": "x"}'), [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
        (('{"a": 1}', '{"a": "one"}'), ['{"a":1}', '{"a":"one"}']),
        (('{"a": 1}', "not json"), ['{"a":1}', "not json"]),
        (("{}", "{}"), ["{}", "{}"]),
    ]):  # fmt: skip
        encoder = Encoder("run-1", "rows", {"t"})
        rows = [OutRecord(0, i, encoder.result(result(i, {}, text))) for i, text in enumerate(texts)]
        (tmp_path / str(n)).mkdir()
        await finished(tmp_path / str(n), ".parquet", {"results": rows})
        assert pq.read_table(tmp_path / str(n) / "results.parquet")["answer"].to_pylist() == wanted


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([12345678901234567, 1], [12345678901234567, 1]),
        ([12345678901234567, 0.5], ["12345678901234567", "0.5"]),
        ([-(2**53) - 1, 0.5], [str(-(2**53) - 1), "0.5"]),
        ([2**53, 0.5], [float(2**53), 0.5]),
    ],
)
async def test_no_kept_number_is_rounded_in_parquet(tmp_path: Path, values: list[float], wanted: list[object]) -> None:
    """An order number of seventeen digits beside one fraction is text: as a float it would be another order's."""
    rows = [OutRecord(0, n, Encoder("r", "rows").result(result(n, {"n": value}))) for n, value in enumerate(values)]
    await finished(tmp_path, ".parquet", {"results": rows})
    assert pq.read_table(tmp_path / "results.parquet")["n"].to_pylist() == wanted


async def test_a_time_of_a_far_year_costs_no_run_its_table(tmp_path: Path) -> None:
    """Records that were committed before such times were bound: the table is written at last, with the last time."""
    line = Encoder("r", "rows").result(result(0, {}))
    far = line.replace(b'"enqueued_at":"2026', b'"enqueued_at":"57873')
    assert far != line
    await finished(tmp_path, ".parquet", {"results": [OutRecord(0, 0, far)]})
    [time] = pq.read_table(tmp_path / "results.parquet")["penstock_enqueued_at"].to_pylist()
    assert time == datetime.datetime(9999, 12, 31, 23, 59, 59, 999_000, datetime.UTC)


async def test_a_carriage_return_alone_tears_no_row_of_csv(tmp_path: Path) -> None:
    """It stands in quotes, as a line feed does: any reader gives the value back. Rows end in LF alone."""
    rows = [OutRecord(0, 0, Encoder("r", "rows").result(result(0, {"n": "a\rb"}, "x\ry")))]
    await finished(tmp_path, ".csv", {"results": rows})
    with (tmp_path / "results.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["n"], row["answer"]) == ("a\rb", "x\ry")
    [back] = [json.loads(value) for value in iter_records([str(tmp_path / "results.csv")])]
    assert (back["n"], back["answer"]) == ("a\rb", "x\ry")
    assert b"\r\n" not in (tmp_path / "results.csv").read_bytes()


async def test_csv_is_flat_with_nested_values_as_json(tmp_path: Path) -> None:
    """One header, one row a record, quoting that every reader knows."""
    await finished(tmp_path, ".csv", outputs(Encoder("run-1", "rows")))
    with (tmp_path / "results.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert [first[n] for n in ("i", "b", "s", "answer", "penstock_cost_usd", "penstock_maybe_paid")] == [
        "1", "true", 'ü,\n"', "yes", "0.0000015", "false",
    ]  # fmt: skip
    assert json.loads(second["penstock_attempts"])[0]["request_id"] == "req_1"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize("shape", ["rows", "openai-batch"])
async def test_any_output_reads_back_as_the_same_records(tmp_path: Path, suffix: str, shape: str) -> None:
    """`iter_records` gives nested JSON whatever the format; committed spools give the same before the finish."""
    encoder = Encoder("run-1", "rows" if shape == "rows" else "openai-batch")
    sinks = await finished(tmp_path, suffix, outputs(encoder))
    for sink in ("results", "costs", "dead_letters", "review"):
        back = [json.loads(v) for v in iter_records([str(tmp_path / f"{sink}{suffix}")])]
        spooled = [json.loads(v) for v in iter_committed(sinks, "run-1", sink)]
        ours = [r.get("penstock", r) for r in spooled]
        assert [r.get("penstock", r) for r in back] == ours
        assert [r.get("response") for r in back] == [r.get("response") for r in spooled]


@pytest.mark.parametrize("name", ["labels.txt", "labels.csv", "labels.parquet", "labels.jsonl"])
@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
async def test_a_file_is_read_as_what_it_is_whatever_its_name(
    tmp_path: Path, name: str, format: assembly.OutFormat
) -> None:
    """A sink's `format` stands above its name when it is written; so it must when it is read."""
    sink = FilesSink(str(tmp_path / name), format)
    store = store_for({"results": sink}, tmp_path / ".labels.penstock")
    await commit_all(store, {0: [{"results": outputs(Encoder("run-1", "rows"))["results"]}]})
    await store.finish(PLAN)
    back = [json.loads(value) for value in iter_records([sink.path])]
    assert [record["penstock"]["custom_id"] for record in back] == ["c0", "c1"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("sink", ["quality", "costs", "dead_letters", "review", "results"])
async def test_results_over_records_of_an_earlier_run_are_read_as_results(
    tmp_path: Path, suffix: str, sink: SinkName
) -> None:
    """A second job over a first one's samples, or its batch results, keeps columns that are named as ours are."""
    fixed = table_columns.BATCH if sink == "results" else table_columns.FIXED[sink]
    keep: dict[str, object] = {column.name: "mine" for column in fixed if not column.name.startswith("penstock_")}
    line = Encoder("run-2", "rows").result(result(0, keep))
    await finished(tmp_path, suffix, {"results": [OutRecord(0, 0, line)]})
    (back,) = (json.loads(value) for value in iter_records([str(tmp_path / f"results{suffix}")]))
    assert back == json.loads(line)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
async def test_a_table_of_an_earlier_release_is_read(tmp_path: Path, suffix: str) -> None:
    """It lacks the columns that joined its records since."""
    line = Encoder("run-1", "rows").quality(result(0, {}), Score("exact", "1", 0.5, True))
    await finished(tmp_path, suffix, {"quality": [OutRecord(0, 0, line)]})
    path, later = tmp_path / f"quality{suffix}", ["role", "signal", "signal_by", "sensitivity"]
    if suffix == ".csv":
        table = pc.read_csv(path).drop_columns(later)
        pc.write_csv(table, path)
    else:
        pq.write_table(pq.read_table(path).drop_columns(later), path)
    (back,) = (json.loads(value) for value in iter_records([str(path)]))
    assert (back["scorer"], back["passed"]) == ("exact", True)
    assert not set(later) & set(back)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
async def test_a_number_of_thousands_of_digits_costs_no_run_its_table(tmp_path: Path, suffix: str) -> None:
    """Records of older versions hold such answers as JSON."""
    line = Encoder("run-1", "rows", {"t"}).result(result(0, {}, '{"x":1}'))
    long = line.replace(b'{"x":1}', b'{"x":' + b"1" * 5000 + b"}")
    await finished(tmp_path, suffix, {"results": [OutRecord(0, 0, long)]})
    (back,) = (json.loads(v) for v in iter_records([str(tmp_path / f"results{suffix}")]))
    assert back["answer"] == '{"x":' + "1" * 5000 + "}"


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
async def test_records_of_both_shapes_make_a_table_of_rows(tmp_path: Path, suffix: str) -> None:
    """The job's `shape` was changed while it ran: what was paid for is readable all the same."""
    said, strange = (
        msgspec.structs.replace(result(n, {}), answer=Answer("yes", "stop", body))
        for n, body in enumerate((b'{"choices":[{"message":{"content":"yes"}}]}', b'{"choices":7}'), 2)
    )
    requests = [Encoder("run-1", "openai-batch").result(one) for one in (said, strange)]
    rows = [Encoder("run-1", "rows").result(result(n, keep)) for n, keep in enumerate(KEPT)]
    mixed = [OutRecord(0, n, line) for n, line in enumerate([*requests, *rows])]
    await finished(tmp_path, suffix, {"results": mixed})
    back = [json.loads(v) for v in iter_records([str(tmp_path / f"results{suffix}")])]
    assert [row["answer"] for row in back] == ["yes", '{"choices":7}', "yes", "yes"]
    assert [row["penstock"]["item_id"][-1] for row in back] == ["2", "3", "0", "1"]
    assert [row["i"] or None for row in back] in ([None, None, 1, 2], [None, None, "1", "2"])


# which store holds what


async def test_sinks_of_the_results_folder_live_in_the_primary(tmp_path: Path) -> None:
    """Others are grouped a folder; all outputs are finished together."""
    sinks = sinks_at(tmp_path / "out")
    sinks["costs"] = FilesSink(str(tmp_path / "money/costs.jsonl"))
    sinks["quality"] = FilesSink(str(tmp_path / "money/quality/"))
    stores = open_stores(sinks, "run-1")
    follower = str(tmp_path / "money")
    assert stores.placement == {"results": PRIMARY, "dead_letters": PRIMARY, "costs": follower, "quality": follower}
    assert list(stores.followers) == [follower]
    assert (tmp_path / "out/.results.jsonl.penstock/run.json").exists()
    done = await stores.finish(PLAN)
    assert done["costs"] == [str(tmp_path / "money/costs.jsonl")]
    assert (tmp_path / "money/quality/_manifest.json").exists()
    mixed = open_stores({"results": FilesSink(str(tmp_path / "x.jsonl")), "costs": MemorySink("m")}, "run-1")
    assert mixed.placement["costs"] == "memory:m"


async def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    """The message names the other run; `discard_stores` makes room; the same run opens it again."""
    sinks = sinks_at(tmp_path)
    open_stores(sinks, "run-1")
    open_stores(sinks, "run-1")
    with pytest.raises(Refused, match="run-1"):
        open_stores(sinks, "run-2")
    await discard_stores(sinks, "run-2")
    open_stores(sinks, "run-2")


def day(folder: Path, name: str, costs: str = "costs.jsonl") -> dict[SinkName, FilesSink]:
    """The results of each day in a place of their own, the costs of all days in one."""
    return {"results": FilesSink(str(folder / f"{name}.jsonl")), "costs": FilesSink(str(folder / costs))}


async def test_the_costs_of_another_run_are_not_replaced(tmp_path: Path) -> None:
    """Told when it starts, before anything is paid; a run that was refused has taken nothing. With `--fresh` the path
    changes hands, and the first run can't take it back unasked."""
    monday = open_stores(day(tmp_path, "monday"), "run-1")
    await monday.finish(PLAN)
    there = (tmp_path / "costs.jsonl").stat().st_ino
    with pytest.raises(Refused, match=r"costs.jsonl holds the output of another run \(run-1\); this one is run-2"):
        open_stores(day(tmp_path, "tuesday"), "run-2")
    open_stores(day(tmp_path, "tuesday", "other.jsonl"), "run-3")
    await discard_stores(day(tmp_path, "wednesday"), "run-2")
    wednesday = open_stores(day(tmp_path, "wednesday"), "run-2")
    assert (tmp_path / "costs.jsonl").stat().st_ino == there, "what readers were given stays until it is replaced"
    for _ in range(2):
        await wednesday.finish(msgspec.structs.replace(PLAN, run_id="run-2"))
        after = (tmp_path / "costs.jsonl").stat().st_ino
        with pytest.raises(Refused, match=r"another run \(run-2\)"):
            await monday.finish(PLAN)
        assert (tmp_path / "costs.jsonl").stat().st_ino == after
    open_stores(day(tmp_path, "monday", "costs-of-monday.jsonl"), "run-1")


async def test_a_folder_whose_manifest_names_another_run_is_refused(tmp_path: Path) -> None:
    """Also where the working folders, which say whose an output is, were tidied away."""
    await open_stores(day(tmp_path, "monday", "costs/"), "run-1").finish(PLAN)
    for home in tmp_path.glob(".*.penstock"):
        shutil.rmtree(home)
    with pytest.raises(Refused, match="run-1"):
        open_stores(day(tmp_path, "tuesday", "costs/"), "run-2")
    assert not list(tmp_path.glob(".*.penstock"))
    await discard_stores(day(tmp_path, "tuesday", "costs/"), "run-2")
    again = open_stores(day(tmp_path, "tuesday", "costs/"), "run-2")
    await again.finish(msgspec.structs.replace(PLAN, run_id="run-2"))
    assert json.loads((tmp_path / "costs/_manifest.json").read_bytes())["run_id"] == "run-2"


async def test_what_another_runs_live_command_writes_is_not_discarded(tmp_path: Path) -> None:
    """`--fresh` of a run that would take its results for costs."""
    stores = open_stores(day(tmp_path, "monday"), "run-1")
    await stores.primary.hold(this_process())
    with pytest.raises(Held):
        await discard_stores(day(tmp_path, "tuesday", "monday.jsonl"), "run-2")
    await stores.primary.let_go()


async def test_what_a_live_command_holds_is_not_discarded(tmp_path: Path) -> None:
    """`--fresh` beside a running command: `Held`."""
    stores = open_stores(sinks_at(tmp_path), "run-1")
    await stores.primary.hold(this_process())
    with pytest.raises(Held):
        await refuse_held(sinks_at(tmp_path), "run-1")
    with pytest.raises(Held):
        await discard_stores(sinks_at(tmp_path), "run-1")
    await stores.primary.let_go()
    await refuse_held(sinks_at(tmp_path), "run-1")
    await discard_stores(sinks_at(tmp_path), "run-1")


async def test_fresh_that_is_killed_between_two_stores_leaves_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a new life would begin beside followers of the old one, whose owners fence it off."""
    sinks: dict[SinkName, SinkSettings] = {
        "results": FilesSink(str(tmp_path / "out/results.jsonl")),
        "costs": FilesSink(str(tmp_path / "money/costs.jsonl")),
    }
    stores = open_stores(sinks, "run-1")
    await stores.hold(this_process())
    await stores.primary.write_plan(PLAN)
    for follower in stores.followers.values():
        await follower.take(0, (7, 1))
        await follower.release(0)
    await stores.primary.let_go()
    discard, gone = FilesPlace.discard, list[str]()

    async def killed_before_the_last(place: FilesPlace) -> None:
        if gone:
            raise KeyboardInterrupt
        await discard(place)
        gone.append(place.home.name)

    with monkeypatch.context() as patched:
        patched.setattr(FilesPlace, "discard", killed_before_the_last)
        with pytest.raises(KeyboardInterrupt):
            await discard_stores(sinks, "run-1")
    assert gone == [".costs.jsonl.penstock"]
    assert await open_stores(sinks, "run-1").primary.read_plan() == PLAN
    await discard_stores(sinks, "run-1")
    anew = open_stores(sinks, "run-1")
    assert await anew.primary.read_plan() is None
    for follower in anew.followers.values():
        assert (await follower.take(0, (1, 1))).seq == 0
        await follower.release(0)


def test_two_sinks_cannot_share_a_path(tmp_path: Path) -> None:
    """`SpecError`, naming both."""
    sinks = sinks_at(tmp_path)
    sinks["costs"] = sinks["results"]
    with pytest.raises(SpecError, match="results and costs"):
        open_stores(sinks, "run-1")


MEMORY = """
import asyncio, resource, sys
from pathlib import Path
from penstock.connectors.base import OutRecord
from penstock.connectors.filestore.store import FileStore
from penstock.connectors.settings import FilesSink
from penstock.engine.plan import Plan

async def main(folder, count):
    store = FileStore(Path(folder) / ".results.penstock", {"results": FilesSink(f"{folder}/results.jsonl")})
    await store.take(0, (1, 1))
    for seq in range(1, count // 1000 + 1):
        rows = [OutRecord(0, (n * 7919) % count, b"x" * 200) for n in range(seq * 1000 - 1000, seq * 1000)]
        await store.commit(0, (1, 1), seq, {"results": rows}, {})
    import numpy
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await store.finish(Plan("r", "n", {}, 1, (), {}, 0.0))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def test_assembly_needs_little_memory(tmp_path: Path) -> None:
    """400,000 records in the worst order: less than 50 MB above what the process had (four runs are merged)."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path), "400000"]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    shutil.rmtree(tmp_path)
    assert grown < 50
