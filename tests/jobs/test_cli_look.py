"""Looking at a run from the command line: list, status, explain, costs, dead letters, report, logs.

The run is a real state folder with real records; only its clock is fixed.
"""

import json
import os
import time
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.settings import FilesSink, FilesSource, KafkaSink, Row
from penstock.connectors.writing.records import Encoder
from penstock.engine.catalog import Catalog
from penstock.engine.items import Answer, Attributes, Candidate, Item, Position, Refusal, Request, Route, Usage
from penstock.engine.policy import Policy
from penstock.engine.results import Attempt, CostLine, DeadLetter, Result, Score
from penstock.jobs.cli import call
from penstock.jobs.history import History, open_history
from penstock.jobs.look import log_lines, told
from penstock.jobs.look.reading import Outputs
from penstock.jobs.spec import load
from penstock.jobs.submit import JobHandle
from penstock.workers.runspec import RunSpec
from penstock.workers.status import ModelTally, RunState, RunStatus, Tally

GOLDEN = Path(__file__).parent.parent / "golden"
AT = 1_795_525_200.0
"""2026-11-24 13:00:00 UTC."""
FIRST = "0123456789abcdef0123456789abcdef"
DEAD = "fedcba9876543210fedcba9876543210"


def position(at: int) -> Position:
    return Position("rows.jsonl@9f2c:0-4096", 0, at)


def result() -> Result:
    item = Item(
        item_id=FIRST,
        source=position(1432),
        attributes=Attributes(task="classification", sensitivity="eu-only", tenant="shop"),
        request=Request(body_json=b'{"messages":[]}', input_hash="ab"),
        original=b'{"text":"where is my parcel?"}',
        enqueued_at=AT,
        custom_id="order-17",
        keep_json=b'{"order_id":17}',
    )
    route = Route(
        task="classification",
        tier=3,
        candidates=(Candidate("small", "v1", "vllm:small@v1"),),
        refused=(Refusal("opus", "wall eu-only: regions [us]"),),
        reason="the cheapest that meets 0.8",
    )
    return Result(
        item=item,
        route=route,
        answer=Answer("delivery", "stop", b"{}"),
        model="small",
        model_version="v1",
        provider="vllm",
        account=None,
        region="eu",
        mode="own",
        usage=Usage(input=41, cached=3, output=2),
        cost_nano=15_000,
        cost_basis="amortised",
        price_version="2026-11-20",
        policy_version="p1",
        prompt_version="q1",
        attempts=(
            Attempt(1, "primary", "small", AT + 1, 800.0, "engine_died", None, 5_000),
            Attempt(2, "retry", "small", AT + 3, 750.0, "ok", "req-2", 10_000),
        ),
        finished_at=AT + 4,
        queue_ms=1000.0,
        call_ms=750.0,
        output_hash="cd",
        maybe_paid=True,
    )


def letter(item_id: str = DEAD, reason: str = "wall", generation: int = 0) -> DeadLetter:
    walled = Route("classification", 3, (), (Refusal("groq-llama", "wall health: not self-hosted"),), "", walled=1)
    return DeadLetter(
        item_id=item_id,
        source=position(2048),
        reason=reason,  # pyright: ignore[reportArgumentType]
        message="every candidate is forbidden by wall health",
        original=b'{"text":"my leg hurts"}',
        custom_id="order-18",
        generation=generation,
        finished_at=AT + 5,
        route=walled if reason == "wall" else None,
    )


def cost(attempt: int, nano: int, at: float) -> CostLine:
    usage = Usage(input=41, cached=3, output=2)
    return CostLine(
        f"{FIRST}:0:{attempt}", FIRST, attempt, "primary", None, "small", "v1", usage, nano, "amortised", "p",
        "shop", "classification", 3, at,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one finished run in its state, and that is where we stand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    encoder = Encoder("job-1", "rows")
    lines = {
        "results": [encoder.result(result())],
        "costs": [encoder.cost(cost(1, 5_000, AT)), encoder.cost(cost(2, 10_000, AT + 90_000))],
        "quality": [encoder.quality(result(), Score("exact", "1", 1.0, True))],
        "dead_letters": [encoder.dead_letter(letter()), encoder.dead_letter(letter("a" * 32, "budget"))],
    }
    outputs: dict[str, list[str]] = {}
    for sink, records in lines.items():
        path = tmp_path / f"{sink}.jsonl"
        path.write_bytes(b"".join(record + b"\n" for record in records))
        outputs[sink] = [str(path)]
    save(tmp_path, outputs)
    return tmp_path


def save(folder: Path, outputs: dict[str, list[str]]) -> History:
    history = open_history(str(folder / ".penstock"))
    sinks = {name: FilesSink(paths[0]) for name, paths in outputs.items()}
    spec = RunSpec(
        "job-1", "job", {}, FilesSource(str(folder / "rows.jsonl")), None, Row(),
        Catalog(accounts={}, models={}, tiers={}), Policy(tasks={}), sinks, state=str(folder / ".penstock"),
    )  # fmt: skip
    tally = Tally(
        read=3,
        results=1,
        dead_letters={"wall": 1, "budget": 1},
        cost_nano=15_000,
        tiers={3: 1},
        models={"small": ModelTally("small", "v1", 2, 1, 15_000, 82, 6, 4, basis="amortised")},
    )
    history.save_spec(spec)
    history.save_status(
        RunStatus(
            "job-1",
            "job",
            "done",
            started_at=AT,
            updated_at=AT + 5,
            first_dispatch_at=AT + 1,
            ended_at=AT + 5,
            total_items=3,
            tally=tally,
            outputs=outputs,
        )
    )
    return history


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert call(argv) == code
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("list", ["list"]),
        ("status", ["status"]),
        ("explain", ["explain", FIRST[:8]]),
        ("explain_dead", ["explain", DEAD]),
        ("costs", ["costs"]),
        ("costs_by_day", ["costs", "--by", "day"]),
        ("dead_letters", ["dead-letters", "list"]),
        ("report", ["report", "job-1"]),
    ],
)
def test_what_a_command_says_does_not_change_by_accident(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, argv: list[str]
) -> None:
    """Plain output, line by line, at 80 columns."""
    text = said(capsys, *argv)
    path = GOLDEN / f"cli_{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("next:"))


def test_a_story_is_told_without_what_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The costs are out of reach: where the item went and why is what a person asks just then."""
    (folder / "costs.jsonl").unlink()
    assert call(["explain", FIRST]) == 0
    told = capsys.readouterr()
    assert "note: costs can't be read: " in told.err
    assert "exact@1  score 1" in told.out
    assert call(["explain", FIRST, "--json"]) == 0
    (whole,) = json.loads(capsys.readouterr().out)
    assert (whole["costs"], len(whole["quality"])) == (None, 1)


@pytest.mark.parametrize(("written", "text"), [('"a\\nb"', "a\nb"), ('{"x":1e999}', '{"x":1e999}'), ("7", "7")])
def test_an_answer_is_told_whatever_its_numbers(written: str, text: str) -> None:
    """Records of older versions hold JSON with numbers that no reader holds."""
    line = f'{{"answer": {written}, "penstock": {{"item_id": "{FIRST}"}}}}'.encode()
    assert told.result(line).answer == text


def test_scores_belong_to_the_answer_that_they_are_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An item that was sent again has two endings: each has its own score, in the text and for machines."""
    encoder, first = Encoder("job-1", "rows"), result()
    item = msgspec.structs.replace(first.item, generation=1)
    again = msgspec.structs.replace(first, item=item, finished_at=AT + 60)
    with (folder / "results.jsonl").open("ab") as results, (folder / "quality.jsonl").open("ab") as quality:
        results.write(encoder.result(again) + b"\n")
        quality.write(encoder.quality(again, Score("exact", "1", 0.0, False)) + b"\n")
    assert call(["explain", FIRST, "--json"]) == 0
    assert [[s["score"] for s in each["quality"]] for each in json.loads(capsys.readouterr().out)] == [[1.0], [0.0]]
    one, two = said(capsys, "explain", FIRST).split("generation 1")
    assert ("score 1" in one, "score 0" in one, "score 1" in two, "score 0" in two) == (True, False, False, True)


JOB_OF_A_DAY = """\
name: daily
vars: {date: required}
source: {type: files, path: "in-{{ vars.date }}.jsonl"}
prompt: "{{ text }}"
models: [sandbox/a]
sinks: "out-{{ vars.date }}.jsonl"
"""


def test_a_run_is_known_by_its_job_file_and_vars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--set` as `run` takes it, in every command that reads a job file; without a job file it says so."""
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB_OF_A_DAY)
    for day in ("monday", "sunday"):
        spec = load(Path("job.yaml"), sets={"date": day})
        history = open_history(spec.state)
        history.save_spec(spec)
        history.save_status(RunStatus(spec.run_id, "daily", "done", message=day, started_at=AT, updated_at=AT))
    for command in (["status"], ["report"], ["costs"], ["logs"], ["cancel"], ["dead-letters", "list"]):
        said(capsys, *command, "job.yaml", "--set", "date=monday")
    assert "monday" in said(capsys, "report", "job.yaml", "--set", "date=monday")
    assert "sunday" in said(capsys, "report", "--run", "job.yaml", "--set", "date=sunday")
    assert call(["status", "job.yaml"]) == 2
    assert "date" in capsys.readouterr().err
    assert call(["status", "job.yaml", "--set", "date=tuesday"]) == 2
    assert "has not run yet" in capsys.readouterr().err
    assert call(["status", "daily", "--set", "date=monday"]) == 2
    assert "--set goes with a job file" in capsys.readouterr().err
    assert call(["explain", "x", "--set", "date=monday"]) == 2


def test_an_item_is_found_by_its_dead_letters_label(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`custom_id` is what people have at hand; where two items carry it, both are named."""
    assert call(["explain", "order-18"]) == 2
    error = capsys.readouterr().err
    assert DEAD in error
    assert "a" * 32 in error


def test_an_item_that_is_nowhere_is_said_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback, and what to give instead."""
    assert call(["explain", "nobody"]) == 2
    assert "no committed record of 'nobody'" in capsys.readouterr().err


def test_status_for_machines_speaks_openais_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """States and request_counts as OpenAI's batch object has them; the rest under `penstock`."""
    batch = json.loads(said(capsys, "status", "--json"))
    assert (batch["object"], batch["status"]) == ("batch", "completed")
    assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    assert batch["output_file_id"].endswith("results.jsonl")
    assert batch["penstock"]["cost_usd"] == 0.000015


@pytest.mark.parametrize("argv", [["list"], ["explain", FIRST], ["costs"], ["dead-letters", "list"], ["report"]])
def test_every_look_has_a_form_for_machines(folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """`--json` prints one JSON document and nothing else."""
    json.loads(said(capsys, *argv, "--json"))


def test_costs_add_up_to_the_nano_dollar(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sum over any grouping is the sum of the cost lines."""
    for by in ("model", "tier", "task", "tenant", "day", "role", "account"):
        bills = json.loads(said(capsys, "costs", "--json", "--by", by))
        assert round(sum(bill["usd"] for bill in bills) * 1e9) == 15_000


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_bill_of_which_a_topic_kept_a_part_is_told_as_one(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    """Kafka deletes after seven days, unless told otherwise: of a run of months `costs` told the last week alone."""
    history = open_history(str(folder / ".penstock"))
    spec = history.spec("job-1")
    sinks = {**spec.sinks, "costs": KafkaSink("results.costs", bootstrap="k:1")}
    history.save_spec(msgspec.structs.replace(spec, sinks=sinks))
    kept = (folder / "costs.jsonl").read_bytes().splitlines()
    for lines in (kept, kept[1:]):
        monkeypatch.setattr(Outputs, "records", lambda _, __, found=lines: iter(found))  # pyright: ignore
        assert call(["costs", *form]) == 0
        told = "holds cost lines of $0.000010, and the run has paid $0.000015" in capsys.readouterr().err
        assert told == (lines != kept)


@pytest.mark.parametrize(
    ("kept", "asked", "words"),
    [
        (2, (), ""),
        (0, (), "holds 0 of the 2 that the run wrote"),
        (1, (), "holds 1 of the 2"),
        (1, ("--reason", "wall"), ""),
    ],
)
def test_letters_that_a_topic_deleted_are_missed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    kept: int, asked: tuple[str, ...], words: str,
) -> None:  # fmt: skip
    """After a week a run with letters had none, by its list."""
    history = open_history(str(folder / ".penstock"))
    spec = history.spec("job-1")
    sinks = {**spec.sinks, "dead_letters": KafkaSink("letters", bootstrap="k:1")}
    history.save_spec(msgspec.structs.replace(spec, sinks=sinks))
    lines = (folder / "dead_letters.jsonl").read_bytes().splitlines()[:kept]
    monkeypatch.setattr(Outputs, "records", lambda _, __: iter(lines))  # pyright: ignore
    assert call(["dead-letters", "list", *asked]) == 0
    told = capsys.readouterr().err
    assert words in told
    assert bool(words) == ("that the run wrote" in told)


def test_a_run_is_found_from_any_folder(
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--state` is all that is needed."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert "job-1" in said(capsys, "status", "job", "--state", str(folder / ".penstock"))


@pytest.mark.parametrize("argv", [["status"], ["report"], ["costs"], ["logs"], ["dead-letters", "list"], ["cancel"]])
def test_a_run_is_named_by_position_or_option(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    """Summaries write `--run ID`; a person may keep to it with every command."""
    assert said(capsys, *argv, "--run", "job-1") == said(capsys, *argv, "job-1")
    assert call([*argv, "job-1", "--run", "job-2"]) == 2


def test_a_list_at_80_columns_leaves_run_ids_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are there to be copied; a state of four words gives way."""
    history = open_history(str(folder / ".penstock"))
    name = "label-all-messages-8869a43d~replay-12"
    history.save_spec(msgspec.structs.replace(history.spec("job-1"), run_id=name))
    told = msgspec.structs.replace(history.status("job-1"), run_id=name, state="too_many_dead_letters")
    history.save_status(told)
    lines = said(capsys, "list").splitlines()
    assert sum(line.startswith(f"{name}  ") for line in lines) == 1
    assert all(len(line) <= 80 for line in lines)


def test_a_tier_that_the_job_does_not_have_is_said_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A slip (`--tier 33`) would hold nothing back, unseen. Nor is anything held of a run that is over."""
    history = open_history(str(folder / ".penstock"))
    history.save_spec(msgspec.structs.replace(history.spec("job-1"), catalog=Catalog({}, {}, {1: ("a",), 3: ("b",)})))
    assert call(["pause", "job", "--tier", "33"]) == 0
    out, err = capsys.readouterr()
    assert out == "job-1: paused: tier 33\n"
    assert "note: the job has no tier 33; it has 1, 3\n" in err
    assert "note: the run is over (done): this holds when it goes on\n" in err


def test_what_replay_would_refuse_is_not_recommended(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --reason only those are sent that sending again may help."""
    assert "penstock dead-letters replay job-1\n" in said(capsys, "dead-letters", "list")
    mended = "mend the job or its input, then penstock dead-letters replay job-1 --reason wall\n"
    assert mended in said(capsys, "dead-letters", "list", "--reason", "wall")


def test_what_a_log_line_does_not_say_is_not_shown() -> None:
    line = log_lines.parse('{"at": 1.0, "event": "worker ready", "reason": "", "pid": 0}')
    assert log_lines.told(line).endswith("worker ready  pid=0")


def test_tiers_are_paused_and_resumed_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One after another, and all at once; it stays as it was left."""
    assert said(capsys, "pause", "job", "--tier", "3") == "job-1: paused: tier 3\n"
    assert said(capsys, "pause", "job", "--tier", "2") == "job-1: paused: tier 2, tier 3\n"
    assert open_history(str(folder / ".penstock")).paused("job-1") == (2, 3)
    assert said(capsys, "resume", "job", "--tier", "3") == "job-1: paused: tier 2\n"
    assert said(capsys, "resume", "job") == "job-1: no tier is paused\n"
    said(capsys, "pause", "job", code=2)


def test_cancelling_leaves_a_request_for_the_driver(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the run looks as if it were over: a new command lists its input for minutes before it tells
    anything, and one that takes a run over may not have told yet."""
    history, words = open_history(str(folder / ".penstock")), "it drains and commits first"
    states: dict[RunState, str] = {"interrupted": "over already: interrupted", "handed_over": words, "running": words}
    for state, said_so in states.items():
        history.forget_cancel("job-1")
        history.save_status(msgspec.structs.replace(history.status("job-1"), state=state, updated_at=time.time()))
        assert said_so in said(capsys, "cancel", "job")
        assert history.cancel_asked("job-1"), state


@pytest.mark.parametrize("state", ["running", "starting", "handed_over"])
def test_a_run_whose_command_was_killed_is_told_as_such(
    folder: Path, capsys: pytest.CaptureFixture[str], state: RunState
) -> None:
    """By every look: who waits for its end waits for nothing. One that only just was submitted is waited for."""
    history = open_history(str(folder / ".penstock"))
    told = msgspec.structs.replace(history.status("job-1"), state=state, ended_at=None, updated_at=time.time() - 100)
    history.save_status(told)
    assert f"{state.replace('_', ' ')}, command gone" in said(capsys, "list")
    assert "seems to be gone" in said(capsys, "status")
    for batch in (json.loads(said(capsys, "status", "--json")), *json.loads(said(capsys, "list", "--json"))):
        assert (batch["status"], batch["failed_at"]) == ("failed", int(told.updated_at))
        assert batch["penstock"]["gone"]
        assert "run the job again" in batch["penstock"]["message"]
    assert "seems to be gone" in said(capsys, "cancel", "job")
    assert history.cancel_asked("job-1")
    assert JobHandle("job-1", "", history).done()
    for updated_at in (0.0, time.time()):
        history.save_status(msgspec.structs.replace(told, updated_at=updated_at))
        assert not json.loads(said(capsys, "status", "--json"))["penstock"]["gone"]
        assert "gone" not in said(capsys, "list") + said(capsys, "status")


def test_logs_are_merged_by_time_and_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes, one story; by level and by item; a torn line is shown, not lost."""
    logs = folder / ".penstock" / "logs" / "job-1"
    logs.mkdir(parents=True)
    (logs / "lane-0.jsonl").write_text(
        f'{{"at":{AT},"level":"info","event":"taken","lane":0}}\n{{"at":{AT + 2},"level":"warning","event":"retry",'
        f'"item_id":"{FIRST}"}}\n{{"at":17'
    )
    (logs / "driver.jsonl").write_text(f'{{"at":{AT + 1},"level":"info","event":"watching"}}\n')
    events = [line.split()[2] for line in said(capsys, "logs").splitlines()]
    assert events == ["taken", "watching", "retry", '{"at":17']
    assert said(capsys, "logs", "--level", "warning").count("\n") == 1
    assert "retry" in said(capsys, "logs", "--item", FIRST[:8])


def test_a_run_cut_off_is_read_from_what_is_committed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without finished outputs the committed spool is read; nothing there: said so."""
    outputs = {name: [str(folder / f"{name}.jsonl")] for name in ("results", "costs", "dead_letters")}
    history = save(folder, outputs)
    history.save_status(msgspec.structs.replace(history.status("job-1"), state="interrupted", outputs={}))
    assert "nothing was paid yet" in said(capsys, "costs")


@pytest.mark.parametrize("argv", [["report", "-o", "page.html"], ["explain", FIRST], ["costs"]])
def test_outputs_that_were_moved_are_missed_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    """Which file, and what to do; no half a page. The summary needs no records, and is told as ever."""
    (folder / "moved").mkdir()
    for name in ("results", "costs"):
        (folder / f"{name}.jsonl").rename(folder / "moved" / f"{name}.jsonl")
    assert call(argv) == 2
    error = capsys.readouterr().err
    assert f"{argv[0] if argv[0] == 'costs' else 'results'}.jsonl is not there any more" in error
    assert "Put it back there" in error
    assert not Path("page.html").exists()
    assert "job-1" in said(capsys, "report", "job-1")


@pytest.mark.parametrize("tenant", ["[red]acme[/red]", "[/red]", "[link=x]acme"])
def test_a_bill_names_tenants_as_they_are_written(
    folder: Path, capsys: pytest.CaptureFixture[str], tenant: str
) -> None:
    """A tenant is a word of the input. Read as marks for a terminal, one would be billed under another one's name, and
    a stray mark would leave no bill at all."""
    line = msgspec.structs.replace(cost(1, 5_000, AT), tenant=tenant)
    (folder / "costs.jsonl").write_bytes(Encoder("job-1", "rows").cost(line) + b"\n")
    assert tenant in said(capsys, "costs", "--by", "tenant")


def test_nothing_that_models_or_customers_wrote_moves_the_cursor(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or clears the screen, or writes the clipboard: a record's words are shown without what a terminal would obey."""
    clear, clip = "\x1b[2J", "\x1b]52;c;cm0gLXJmIH4=\x07"
    answered = msgspec.structs.replace(result(), answer=Answer(f"deli{clear}very\n{clip}\x9b1;1Hsoon", "stop", b"{}"))
    died = msgspec.structs.replace(letter(), message=f"no{clear}", custom_id=f"order{clip}-18", original=clip.encode())
    encoder = Encoder("job-1", "rows")
    (folder / "results.jsonl").write_bytes(encoder.result(answered) + b"\n")
    (folder / "dead_letters.jsonl").write_bytes(encoder.dead_letter(died) + b"\n")
    for argv in (["explain", FIRST], ["explain", DEAD], ["dead-letters", "list"]):
        shown = said(capsys, *argv)
        assert not any(c in shown for c in "\x1b\x07\x9b"), shown
    assert "very\n" in said(capsys, "explain", FIRST), "an answer's own lines stay"
