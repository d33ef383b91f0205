"""One item's story, and a run's records, wherever they stand: assembled or only committed, in any format."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.connectors.base import OutRecord
from penstock.connectors.registry import open_stores
from penstock.connectors.settings import FilesSink, FilesSource, Row
from penstock.connectors.writing.records import Encoder
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.errors import Corrupt, SpecError
from penstock.engine.items import Answer, Attributes, Item, Position, Request, Route, Usage
from penstock.engine.measure.sample import Sample
from penstock.engine.plan import Plan
from penstock.engine.policy import Policy, Scorer, Task
from penstock.engine.registry.standing import Standing
from penstock.engine.results import DeadLetter, Result
from penstock.engine.router import Router
from penstock.jobs.look import explain, reading, told
from penstock.jobs.result import JobResult
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus, Tally

ITEMS = [f"{n:032x}" for n in range(0x10000000, 0x10000005)]
BODY = b'{"choices":[{"message":{"role":"assistant","content":"delivery"}}]}'


def result(item_id: str, label: str | None = None, generation: int = 0, text: str = "delivery") -> Result:
    item = Item(
        item_id=item_id,
        source=Position("rows", 0, 0),
        attributes=Attributes(),
        request=Request(body_json=b"{}"),
        original=b"{}",
        enqueued_at=1.0,
        custom_id=label,
        keep_json=msgspec.json.encode({"n": int(item_id, 16)}),
        generation=generation,
    )
    return Result(
        item=item, route=Route("t", 3, (), (), "why"), answer=Answer(text, "stop", BODY), model="m",
        model_version="v", provider="p", account="a", region=None, mode="now", usage=Usage(), cost_nano=7,
        cost_basis="metered", price_version="", policy_version="", prompt_version="", attempts=(), finished_at=2.0,
        queue_ms=0.0, call_ms=0.0, output_hash="",
    )  # fmt: skip


def line(made: Result, shape: str = "rows") -> bytes:
    return Encoder("job-1", "rows" if shape == "rows" else "openai-batch").result(made)


def spec_in(folder: Path, suffix: str) -> RunSpec:
    names = {"results": f"out{suffix}", "dead_letters": "out.dead_letters.jsonl", "costs": "out.costs.jsonl"}
    sinks = {name: FilesSink(str(folder / path)) for name, path in names.items()}
    catalog = Catalog(accounts={}, models={}, tiers={})
    return RunSpec("job-1", "job", {}, FilesSource("x"), None, Row(), catalog, Policy(tasks={}), sinks)


async def committed(folder: Path, suffix: str = ".jsonl", *, finish: bool = True) -> JobResult:
    """Five results in a real file store; assembled, or only committed."""
    spec = spec_in(folder, suffix)
    stores = open_stores(spec.sinks, spec.run_id)  # pyright: ignore[reportArgumentType]
    plan = Plan(spec.run_id, spec.name, {}, 1, (), {}, 1.0)
    await stores.primary.write_plan(plan)
    await stores.primary.take(0, (1, 1))
    records = {"results": [OutRecord(0, n, line(result(item))) for n, item in enumerate(ITEMS)]}
    await stores.primary.commit(0, (1, 1), 1, records, {})
    outputs = await stores.finish(plan) if finish else {}
    return JobResult(spec, RunStatus("job-1", "job", "done", tally=Tally(results=5), outputs=outputs))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
async def test_results_come_as_a_table_whatever_the_file(tmp_path: Path, suffix: str) -> None:
    """All rows, in input order, kept columns and answer beside what is ours."""
    table: pa.Table = (await committed(tmp_path, suffix)).to_arrow()
    assert table.column("n").to_pylist() == [int(item, 16) for item in ITEMS]
    assert set(table.column("answer").to_pylist()) == {"delivery"}


MIXED: list[tuple[bytes, bytes]] = [
    (
        b'{"n":12345678901234567,"price":1,"day":"2026-11-24","big":12345678901234567890,"j":{"x":1},"k":{"x":1}}',
        b'{"a":1}',
    ),
    (b'{"n":0.5,"price":"n/a","day":null,"big":1,"j":{"x":2},"k":{"x":"1"}}', b'"not json"'),
]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 8192])
async def test_a_table_of_json_lines_holds_every_value_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """However few rows are read at once. What goes together has its type; what does not is text; a day that is text is
    no time, and an order number is not rounded."""
    monkeypatch.setattr(reading, "BATCH_ROWS", rows)
    path = tmp_path / "r.jsonl"
    penstock = b'{"item_id":"a","finished_at":"2026-11-24T00:00:00.000Z"}'
    path.write_bytes(
        b"".join(kept[:-1] + b',"answer":%s,"penstock":%s}\n' % (answer, penstock) for kept, answer in MIXED)
    )
    spec = spec_in(tmp_path, ".jsonl")
    job = JobResult(spec, RunStatus("job-1", "job", "done", outputs={"results": [str(path)]}))
    table: pa.Table = job.to_arrow()
    first, second = table.drop_columns("penstock").to_pylist()
    assert first == {
        "n": "12345678901234567", "price": "1", "day": "2026-11-24", "big": "12345678901234567890",
        "j": {"x": 1}, "k": '{"x":1}', "answer": '{"a":1}',
    }  # fmt: skip
    assert second == {
        "n": "0.5", "price": "n/a", "day": None, "big": "1", "j": {"x": 2}, "k": '{"x":"1"}', "answer": "not json",
    }  # fmt: skip
    assert table["penstock"].to_pylist()[0]["item_id"] == "a"


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        (b'{"choices":[]}', {"body": {"choices": [], "created": None}}),
        (b'{"choices":"none"}', '{"body":{"choices":"none"}}'),
    ],
)
async def test_bodies_that_providers_wrote_in_other_ways_make_a_table(
    tmp_path: Path, other: bytes, wanted: object
) -> None:
    """They are a struct where they go together, else JSON text."""
    path = tmp_path / "r.jsonl"
    bodies = (other, b'{"choices":[{"text":"2026-11-24"}],"created":1}')
    path.write_bytes(
        b"".join(b'{"id":"x","response":{"body":%s},"error":null,"penstock":{"item_id":"a"}}\n' % b for b in bodies)
    )
    job = JobResult(spec_in(tmp_path, ".jsonl"), RunStatus("job-1", "job", "done", outputs={"results": [str(path)]}))
    assert job.to_arrow()["response"].to_pylist()[0] == wanted


async def test_tables_of_several_objects_need_not_be_alike(tmp_path: Path) -> None:
    """Each object of a prefix learnt its columns' types from its own rows."""
    import pyarrow.parquet as pq

    parts = [
        {"n": pa.array([None], pa.string()), "m": pa.array([1]), "answer": pa.array(["no"])},
        {"n": pa.array([7]), "m": pa.array([0.5]), "answer": pa.array([{"a": 1}]), "o": pa.array([1])},
    ]
    paths = [str(tmp_path / f"{number}.parquet") for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        pq.write_table(pa.table(part), path)
    job = JobResult(spec_in(tmp_path, ".parquet"), RunStatus("job-1", "job", "done", outputs={"results": paths}))
    assert job.to_arrow().to_pylist() == [
        {"n": None, "m": 1.0, "answer": "no", "o": None},
        {"n": "7", "m": 0.5, "answer": '{"a":1}', "o": 1},
    ]


async def test_a_run_that_goes_is_read_from_what_it_committed(tmp_path: Path) -> None:
    """Before anything is assembled, `explain` finds the item all the same."""
    job = await committed(tmp_path, finish=False)
    (ending,) = explain.find(ITEMS[3], job.lines("results"), job.lines("dead_letters"))
    assert explain.item_id(ending) == ITEMS[3]


async def test_a_result_says_in_one_line_what_came_of_it(tmp_path: Path) -> None:
    """What a notebook shows, and the whole summary for who asks."""
    job = await committed(tmp_path)
    assert repr(job) == "JobResult('job-1', done, 5 results, 0 dead letters)"
    assert job.ok
    assert "5: 5 results" in job.summary
    assert list(job.dead_letters()) == []
    assert list(job.costs()) == []


def nothing() -> Iterator[bytes]:
    return iter(())


def test_six_digits_find_an_item_and_fewer_are_a_label() -> None:
    """`explain 1000` means the row that somebody called 1000."""
    lines = [line(result("ab" * 16, "1000"), "openai-batch"), line(result("1000" * 8, "b"), "openai-batch")]
    (labelled,) = explain.find("1000", lines, nothing())
    (by_id,) = explain.find("100010", lines, nothing())
    assert (explain.item_id(labelled), explain.item_id(by_id)) == ("ab" * 16, "1000" * 8)


def measured(models: tuple[str, ...], *known: Standing) -> Router:
    """From cheap to dear; 0.8 is asked for."""
    made = {
        name: Model(name, (Version("v", name),), "v", account="a", price=Price(n * 10**9, n * 10**9))
        for n, name in enumerate(models, 1)
    }
    catalog = Catalog({"a": Account("a", "openai", "http://localhost")}, made, {1: models})
    task = Task("t", tier=1, min_quality=0.8, scorers=(Scorer("exact"),))
    router = Router(catalog, Policy({"t": task}, default_task="t"))
    router.learn(known)
    return router


def test_a_story_shows_the_numbers_that_decided() -> None:
    """Bounds and how many samples: of who answered, and of who is cheaper and not known to be good enough."""
    counts = (("cheap", 43, 50), ("good", 900, 1000))
    cheap, good = (Standing("t", name, "v", (Sample(((0, of - n), (1000, n))),)) for name, n, of in counts)
    route = measured(("cheap", "good"), cheap, good).route(Attributes(), Request(b'{"messages":[]}'))
    assert isinstance(route, Route)
    (ending,) = explain.find(ITEMS[0], [line(msgspec.structs.replace(result(ITEMS[0]), route=route))], nothing())
    story = {each.label: each.text for each in explain.story(ending, "out.jsonl")}
    assert "quality ≥ 0.8: good, quality 0.900 (0.866–0.928" in story["route"]
    assert "n = 1,000) measured" in story["route"]
    assert story["refused"].startswith("cheap: quality 0.860 (")
    assert "n = 50) measured, not shown to reach 0.8" in story["refused"]


def test_a_label_with_quotes_is_found() -> None:
    """Labels are anybody's text."""
    label = 'the "big" one \\ ä'
    (ending,) = explain.find(label, [line(result(ITEMS[0], label), "openai-batch")], nothing())
    assert explain.item_id(ending) == ITEMS[0]


def test_a_kept_column_finds_an_item_where_no_label_does() -> None:
    """Rows carry their order number as a column: that is what people have at hand."""
    lines = [line(result(item)) for item in ITEMS]
    (ending,) = explain.find(str(int(ITEMS[2], 16)), lines, nothing())
    assert explain.item_id(ending) == ITEMS[2]


def test_every_generation_of_an_item_is_told() -> None:
    """A dead letter first, its replay's result after it."""
    dead = DeadLetter(ITEMS[0], Position("rows", 0, 0), "budget", "spent", b"{}")
    letters = [Encoder("job-1", "rows").dead_letter(dead)]
    first, second = explain.find(ITEMS[0], [line(result(ITEMS[0], generation=1))], letters)
    assert isinstance(first, told.LetterTold)
    assert isinstance(second, told.ResultTold)


def test_an_items_story_says_which_arm_it_was_drawn_into() -> None:
    """Else nobody knows why it got v2."""
    drawn = msgspec.structs.replace(result(ITEMS[0]), experiment="small-v2-1a", arm="candidate-1", propensity=0.25)
    for made, lines in ((drawn, ["arm candidate-1 of small-v2-1a, with a chance of 25 %"]), (result(ITEMS[0]), [])):
        (ending,) = explain.find(ITEMS[0], [line(made)], nothing())
        assert [each.text for each in explain.story(ending, "out.jsonl") if each.label == "drawn"] == lines


def test_a_prefix_of_several_items_names_them() -> None:
    """Nobody's story is told in another's place."""
    with pytest.raises(SpecError, match="fits 5 items"):
        explain.find("000000000000", [line(result(item)) for item in ITEMS], nothing())


@pytest.mark.parametrize("shape", ["rows", "openai-batch"])
def test_the_answer_is_told_in_either_shape(shape: str) -> None:
    """The column `answer`, or the first choice of the completion."""
    assert told.result(line(result(ITEMS[0]), shape)).answer == "delivery"


def test_a_file_that_is_not_ours_is_refused() -> None:
    """It says so, instead of telling half a story."""
    with pytest.raises(Corrupt, match="not one of ours"):
        told.result(b'{"a":1}')


@given(st.text())
def test_any_answer_and_any_kept_text_can_be_told(text: str) -> None:
    """What models say never breaks a story; long answers are cut and say so."""
    made = result(ITEMS[0], text=text.encode("utf-8", "replace").decode())
    lines = explain.story(told.result(line(made)), "out.jsonl")
    assert all(len(each.text) <= explain.ANSWER_SHOWN + 100 for each in lines)


@given(st.integers(0, 10**15))
def test_money_survives_a_record(nano: int) -> None:
    """Nano-dollars out, nano-dollars back."""
    made = msgspec.structs.replace(result(ITEMS[0]), cost_nano=nano)
    assert told.nano(told.result(line(made)).penstock.cost_usd) == nano
