"""Sending dead letters again: the same items, a new generation, nobody twice."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from penstock.connectors.base import Raw
from penstock.connectors.reading.intake import Intake
from penstock.connectors.reading.replay import ReplayIntake, intake_for
from penstock.connectors.s3.client import client
from penstock.connectors.settings import Connection, FilesSink, FilesSource, Format, KafkaSource, Row, S3Source
from penstock.connectors.writing.records import Encoder
from penstock.engine.catalog import Account, Catalog, Model, Price, Version
from penstock.engine.errors import SpecError, Temporary
from penstock.engine.items import Item, Position
from penstock.engine.policy import Policy, Prompt, Task
from penstock.engine.results import DeadLetter
from penstock.jobs import letter_files, replay, requeue, run
from penstock.jobs.cli import call
from penstock.jobs.history import open_history
from penstock.jobs.look import told
from penstock.jobs.progress import Silent
from penstock.jobs.run import Session
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunState, RunStatus, Tally
from tests.connectors.registry import running

if TYPE_CHECKING:
    from penstock.jobs.dev.s3 import S3Server
    from tests.conftest import S3At

LOST, WALLED, HUGE = "1" * 32, "2" * 32, "3" * 32
POLICY = Policy(tasks={"t": Task("t", tier=3, prompt=Prompt(user="{{ text }}"))}, default_task="t")
PRICED = Catalog(
    {"a": Account("a", "openai", "http://localhost")},
    {"m": Model("m", (Version("v1", "m"),), "v1", account="a", price=Price(10**9, 10**9, version="t"))},
    {3: ("m",)},
)


def letter(item_id: str, reason: str, generation: int = 0, **more: object) -> bytes:
    made = DeadLetter(
        item_id=item_id,
        source=Position("rows.jsonl", 0, 7),
        reason=reason,  # pyright: ignore[reportArgumentType]
        message="",
        original=b'{"text":"hello"}',
        generation=generation,
    )
    return Encoder("job-1", "rows").dead_letter(msgspec.structs.replace(made, **more))


class Story:
    """A base run with dead letters, in a real state folder; replays are added as they come."""

    def __init__(self, folder: Path, state: str | None = None) -> None:
        self.folder = folder
        state = state or str(folder / "state")
        self.history = open_history(state)
        self.spec = RunSpec(
            "job-1", "job", {}, FilesSource(str(folder / "rows.jsonl")), None, Row(),
            Catalog(accounts={}, models={}, tiers={}), POLICY,
            {name: FilesSink(str(folder / f"out.{name}.jsonl")) for name in ("results", "dead_letters")},
            state=state,
        )  # fmt: skip

    def ends(self, spec: RunSpec, letters: list[bytes], state: RunState = "done") -> None:
        sink = spec.sinks["dead_letters"]
        assert isinstance(sink, FilesSink)
        Path(sink.path).write_bytes(b"".join(line + b"\n" for line in letters))
        self.history.save_spec(spec)
        outputs = {"dead_letters": [sink.path]}
        self.history.save_status(RunStatus(spec.run_id, "job", state, started_at=1.0, outputs=outputs))

    def prepare(self, *reasons: str, everything: bool = False) -> tuple[RunSpec, list[told.LetterTold]]:
        spec, chosen = replay.prepare(self.history, self.spec, replay.wanted(reasons, everything))
        return spec, list(told.letters(letter_files.read(chosen.file)))


@pytest.fixture
def story(tmp_path: Path) -> Story:
    made = Story(tmp_path)
    huge = letter(HUGE, "attempts_exhausted", original_length=2_000_000)
    made.ends(made.spec, [letter(LOST, "attempts_exhausted"), letter(WALLED, "wall"), huge])
    return made


def test_what_sending_again_may_help_is_sent(story: Story) -> None:
    """Retryable reasons, whole originals; the outputs stand beside the real ones."""
    spec, sent = story.prepare()
    assert [one.item_id for one in sent] == [LOST]
    assert (spec.run_id, spec.generation) == ("job-1~replay-1", 1)
    assert spec.sinks["results"] == FilesSink(str(story.folder / "out.results.replay-1.jsonl"))
    assert isinstance(spec.source, FilesSource)
    path = Path(spec.source.path)
    assert spec.source == FilesSource(str(path), "jsonl", replay=True)
    assert path.parent == story.folder / "state/replays/job-1"
    other = letter_files.new(str(story.folder / "state"), "job-1", 1)
    assert letter_files.where(other) != str(path)  # of another command that began at the same time


def test_a_reason_or_all_takes_others_too(story: Story) -> None:
    """`--reason wall` and `--all`; a letter whose original was cut is never sent."""
    assert [one.item_id for one in story.prepare("wall")[1]] == [WALLED]
    assert [one.item_id for one in story.prepare(everything=True)[1]] == [LOST, WALLED]


async def test_letters_that_only_a_schema_can_read_are_sent_as_their_rows(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay's source is a file, which knows no registry: as they were they would all die as malformed. What its
    schema can't read is sent as it is, to die of that."""
    monkeypatch.setenv("REGISTRY", "me:secret")
    avro = b"\0" + (7).to_bytes(4) + b"\x0ahello"
    async with running() as registry:
        fields = [{"name": "text", "type": "string"}]
        registry.schemas[7] = {"schema": json.dumps({"type": "record", "name": "Row", "fields": fields})}
        at = Connection("b:1", schema_registry=registry.url, schema_registry_auth="env:REGISTRY")
        story.spec = msgspec.structs.replace(story.spec, source=KafkaSource(("in",), connection=at, format="avro"))
        died = [(LOST, avro), (WALLED, avro + b"?"), (HUGE, b'{"text":"sent before"}')]
        letters = [letter(item, "attempts_exhausted", original=original) for item, original in died]
        story.ends(story.spec, letters)
        made, sent = await asyncio.to_thread(story.prepare)
    assert isinstance(made.source, FilesSource)
    assert [one.bytes for one in sent] == [b'{"text":"hello"}', avro + b"?", b'{"text":"sent before"}']
    assert [one.item_id for one in sent] == [item for item, _ in died]


def test_no_item_is_sent_twice_for_one_death(story: Story) -> None:
    """What an earlier replay sent is not sent again, unless it died again there: then its newest letter is."""
    first, _ = story.prepare()
    story.ends(first, [])
    with pytest.raises(SpecError, match="left: 1 wall"):
        story.prepare()
    story.ends(first, [letter(LOST, "deadline", generation=1)])
    second, sent = story.prepare()
    assert second.run_id == "job-1~replay-2"
    assert [(one.item_id, one.generation) for one in sent] == [(LOST, 1)]


def test_letters_that_were_sent_again_are_told_apart(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    """They stay where they are. A list that did not say so would have a person send them once more, which is refused:
    there is nothing left to send."""
    listed = ["dead-letters", "list", "job-1", "--state", story.spec.state]
    assert call(listed) == 0
    assert "sent again" not in capsys.readouterr().out
    story.ends(story.prepare()[0], [])
    story.ends(story.prepare("wall")[0], [letter(WALLED, "wall", generation=1)])
    assert call(listed) == 0
    told = capsys.readouterr().out
    assert "3 in " in told
    assert "\n2 of them were sent again: job-1~replay-1, job-1~replay-2 tell what became of them\n" in told
    assert call(["dead-letters", "list", "job-1~replay-2", "--state", story.spec.state]) == 0
    assert "sent again" not in capsys.readouterr().out
    assert call([*listed, "--reason", "wall"]) == 0
    told = capsys.readouterr().out
    assert "\n1 of them was sent again: job-1~replay-2 tells what became of them\n" in told
    assert "dead-letters replay" not in told


def test_what_replays_cost_is_told_beside_what_the_run_cost(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = story.prepare()
    story.ends(first, [])
    status = story.history.status(first.run_id)
    story.history.save_status(msgspec.structs.replace(status, tally=Tally(cost_nano=73_000)))
    story.spec.sinks["costs"] = FilesSink(str(story.folder / "costs.jsonl"))
    (story.folder / "costs.jsonl").touch()
    story.history.save_spec(story.spec)
    story.history.save_status(RunStatus("job-1", "job", "done", outputs={"costs": [str(story.folder / "costs.jsonl")]}))
    assert call(["costs", "job-1", "--state", story.spec.state]) == 0
    assert "not in it, what was sent again: job-1~replay-1 $0.000073\n" in capsys.readouterr().out


def test_a_run_that_is_begun_anew_stands_above_the_replays_of_its_old_life(story: Story) -> None:
    """By the highest generation its records count, not theirs; and what died now was sent by none of them."""
    old, _ = story.prepare()
    story.ends(old, [], "interrupted")
    assert replay.generation_of(story.history, story.spec) == 0
    born = replay.generation_anew(story.history, story.spec.run_id)
    assert born is not None
    assert born > old.generation
    story.ends(msgspec.structs.replace(story.spec, generation=born), [letter(LOST, "attempts_exhausted", born)])
    assert replay.generation_of(story.history, story.spec) == born, "as its next command goes on"
    new, sent = story.prepare()
    assert [one.item_id for one in sent] == [LOST]
    assert (new.run_id, new.generation) == ("job-1~replay-2", born + 1)
    story.ends(new, [])
    with pytest.raises(SpecError, match="no dead letters to send again"):
        story.prepare()


class Planning:
    """A cluster whose `--fresh` throws the plan away and fails; the next command's plan is made as it asks."""

    def launch(self, spec: RunSpec, options: RunOptions, asked: Callable[[], int]) -> Planning:
        if options.fresh:
            raise Temporary("the source can't be listed now")
        self._status = RunStatus(spec.run_id, spec.name, "done", generation=options.generation_anew)
        return self

    def status(self) -> RunStatus:
        return self._status

    def drain(self) -> None: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


def test_a_fresh_start_that_failed_leaves_its_generation_to_the_next_command(story: Story) -> None:
    """Else its records would stand below the replays of the life thrown away. History says as the plan does."""
    old, _ = story.prepare()
    story.ends(old, [])

    def execute(*, fresh: bool) -> None:
        session = Session(RunOptions(fresh=fresh), "ray://x", lambda _: nullcontext(Planning()))
        run.execute(story.spec, session, Silent(), run.Stop())

    with pytest.raises(Temporary):
        execute(fresh=True)
    assert replay.of_this_life(story.history, "job-1") == [old.run_id], "a refused command changes nothing"
    execute(fresh=False)
    assert story.history.spec("job-1").generation > old.generation
    assert replay.of_this_life(story.history, "job-1") == []


UNDONE: tuple[RunState, ...] = ("running", "interrupted", "failed", "stopped_by_budget", "too_many_dead_letters")


@pytest.mark.parametrize("state", UNDONE)
def test_an_unfinished_run_or_replay_is_finished_first(story: Story, state: RunState) -> None:
    """Its items may still end well: sending them now could pay twice."""
    first, _ = story.prepare()
    story.ends(first, [], state)
    with pytest.raises(SpecError, match="is not finished"):
        story.prepare("wall")


@pytest.fixture
def endless(story: Story) -> Story:
    """The same, whose run reads a topic without an end."""
    story.spec = msgspec.structs.replace(story.spec, source=KafkaSource(("in",), bootstrap="broker:9092"))
    story.ends(story.spec, [letter(LOST, "attempts_exhausted")], "running")
    return story


@pytest.mark.parametrize("state", ["running", "draining", "handed_over", "interrupted", "failed", "stopped_by_budget"])
def test_a_run_without_an_end_has_its_letters_sent_whether_it_goes_or_not(endless: Story, state: RunState) -> None:
    """What is committed is final. A letter that came meanwhile is one for the next replay, once this one has ended."""
    endless.ends(endless.spec, [letter(LOST, "attempts_exhausted")], state)
    first, sent = endless.prepare()
    assert (first.run_id, first.endless, [one.item_id for one in sent]) == ("job-1~replay-1", False, [LOST])
    came = letter(WALLED, "deadline")
    endless.ends(endless.spec, [letter(LOST, "attempts_exhausted"), came], state)
    endless.ends(first, [], "interrupted")
    with pytest.raises(SpecError, match="job-1~replay-1 is not finished"):
        endless.prepare()
    endless.ends(first, [])
    second, sent = endless.prepare()
    assert (second.run_id, [one.item_id for one in sent]) == ("job-1~replay-2", [WALLED])
    endless.ends(second, [])
    with pytest.raises(SpecError, match="no dead letters to send again"):
        endless.prepare()


def test_a_run_without_an_end_that_is_begun_anew_stands_above_a_replay_that_is_just_prepared(endless: Story) -> None:
    """Its letters were read before `--fresh` threw that life away, and nobody knows of it yet."""
    assert replay.generation_anew(endless.history, "job-1") is None, "no plan was ever told: no item has ended"
    assert replay.generation_anew(endless.history, "job-2") is None
    status = endless.history.status("job-1")
    status.generation = 0
    endless.history.save_status(status)
    old, _ = endless.prepare()
    born = replay.generation_anew(endless.history, "job-1")
    assert born == old.generation + 1
    with replay.begun(endless.history, old):
        pass
    anew = replay.generation_anew(endless.history, "job-1")
    assert anew is not None
    assert anew > old.generation


def test_letters_of_a_life_that_history_has_not_heard_of_keep_their_generation(endless: Story) -> None:
    """The run was begun anew seconds ago. The replay stands above it, and counts as one of this life."""
    endless.ends(endless.spec, [letter(LOST, "attempts_exhausted", generation=2)], "running")
    made, _ = endless.prepare()
    assert made.generation == 3
    endless.ends(made, [])
    endless.history.save_spec(msgspec.structs.replace(endless.spec, generation=2))
    assert replay.of_this_life(endless.history, "job-1") == [made.run_id]


def test_a_run_without_an_end_that_has_told_nothing_yet_has_no_letters(endless: Story) -> None:
    """Its command has only just begun, or died at once: an error that says so, and no crash."""
    (endless.folder / "state/runs/job-1/status.json").unlink()
    with pytest.raises(SpecError, match="job-1 has no dead letters to send again"):
        endless.prepare()


def test_a_replay_whose_command_died_before_it_told_anything_keeps_its_number(
    story: Story, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its letters may have been sent and paid for: no other letters go under its number, and it can be gone on with."""
    begun: list[RunSpec] = []

    def dies(spec: RunSpec, *_: object) -> None:
        begun.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.jobs.run.execute", dies)
    command = ["dead-letters", "replay", "job-1", "--yes", "--state", story.history.url]
    assert call(command) == 130
    assert call([*command, "--reason", "wall"]) == 2
    assert "penstock run job-1~replay-1 --state " in capsys.readouterr().err
    (spec,) = begun
    assert story.history.spec("job-1~replay-1") == spec
    with pytest.raises(SpecError, match="another command has begun"), replay.begun(story.history, spec):
        raise AssertionError("it must not run")


@pytest.mark.parametrize("answer", ["n", "y", ""])
def test_a_replay_says_what_it_costs_and_asks(
    story: Story, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    """Where nobody says yes nothing is sent, and nothing is left behind."""
    sent: list[str] = []
    monkeypatch.setattr("penstock.jobs.run.execute", lambda spec, *_: sent.append(spec.run_id) or refuse())
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{answer}\n" if answer else ""))
    story.ends(msgspec.structs.replace(story.spec, catalog=PRICED), [letter(LOST, "attempts_exhausted")])
    code = call(["dead-letters", "replay", "job-1", "--state", story.history.url])
    said, err = capsys.readouterr()
    assert "sending 1 dead letter again" in said
    assert "at worst $0.001" in said
    assert "dead letters foreseen" not in said, "it is the letters' originals that are priced"
    assert "Send them?" in said
    assert (code, sent) == {"n": (0, []), "y": (2, ["job-1~replay-1"]), "": (2, [])}[answer]
    assert ("--yes sends without asking" in err) == (answer == ""), "where there is nobody to ask"
    assert list((story.folder / "state/replays/job-1").iterdir()) == []
    assert not story.history.knows("job-1~replay-1") or answer == "y"


def refuse() -> None:
    raise SpecError("the variable KEY is not set")


def test_a_replay_that_is_refused_gives_its_number_back(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was sent: the job is mended and the replay asked for again."""
    monkeypatch.setattr("penstock.jobs.run.execute", lambda *_: refuse())
    for _ in range(2):
        assert call(["dead-letters", "replay", "job-1", "--yes", "--state", story.history.url]) == 2
    spec, sent = story.prepare()
    assert (spec.run_id, [one.item_id for one in sent]) == ("job-1~replay-1", [LOST])


@pytest.mark.s3
def test_a_state_on_s3_keeps_the_letters_as_an_object_of_its_own(
    tmp_path: Path,
    s3_server: S3Server | S3At,
    s3_keys: None,
    new_bucket: Callable[..., str],
) -> None:
    """Sent by an S3 source, encrypted as the state is; an item is sent once for its death."""
    bucket = new_bucket("state")
    story = Story(tmp_path, f"s3://{bucket}/team/a?endpoint={s3_server.endpoint}&sse=AES256")
    story.ends(story.spec, [letter(LOST, "attempts_exhausted"), letter(WALLED, "wall")])
    asked: list[dict[str, str]] = []
    events = client(s3_server.endpoint)._client.meta.events  # pyright: ignore[reportPrivateUsage] - what is sent is ours

    def seen(params: dict[str, str], **_: object) -> None:
        asked.append(params)

    events.register("provide-client-params.s3.PutObject", seen)
    try:
        first, sent = story.prepare()
    finally:
        events.unregister("provide-client-params.s3.PutObject", seen)
    assert [one.item_id for one in sent] == [LOST]
    assert isinstance(first.source, S3Source)
    assert first.source.prefix.startswith("team/a/replays/job-1/1-")
    assert [one["ServerSideEncryption"] for one in asked if one["Key"] == first.source.prefix] == ["AES256"]
    items = [intake_for(first.source, plain()).item(one, 5.0) for one in asyncio.run(read(first))]
    assert [(one.item_id, one.generation) for one in items] == [(LOST, 1)]
    story.ends(first, [])
    second, sent = story.prepare("wall", "attempts_exhausted")
    assert [one.item_id for one in sent] == [WALLED]
    with pytest.raises(SpecError, match="KEY"), replay.begun(story.history, second):
        refuse()
    assert not letter_files.is_there(letter_files.of(second.source)), "its number is given back"
    letter_files.remove(letter_files.of(first.source))
    with pytest.raises(SpecError, match=r"the letters that job-1~replay-1 sent are gone \(s3://"):
        story.prepare(everything=True)


async def read(spec: RunSpec) -> list[Raw]:
    return [raw async for raw in requeue.records(spec)]


def test_with_no_dead_letters_there_is_nothing_to_send(story: Story) -> None:
    """An error that says so, and no empty run."""
    story.ends(story.spec, [])
    with pytest.raises(SpecError, match="no dead letters"):
        story.prepare()


def test_openai_batch_lines_stay_openai_batch_lines(story: Story) -> None:
    """The replay reads originals in the form they came in."""
    original = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"messages":[]}}'
    story.ends(story.spec, [letter(LOST, "budget", original=original)])
    source = story.prepare()[0].source
    assert isinstance(source, FilesSource)
    assert source.format == "openai-batch"


@pytest.mark.parametrize(
    ("path", "format", "original", "wanted"),
    [
        ("mail.csv", None, {"custom_id": "a", "body": "Where is my parcel?"}, "jsonl"),
        ("mail.parquet", None, {"custom_id": "a", "body": {"text": "hi"}}, "jsonl"),
        ("mail.jsonl", "jsonl", {"custom_id": "a", "body": {"text": "hi"}}, "jsonl"),
        ("mail/", None, {"custom_id": "a", "body": "hi"}, "jsonl"),
        ("batch.jsonl", None, {"custom_id": "a", "body": {"messages": []}}, "openai-batch"),
        ("batch.jsonl", "openai-batch", {"custom_id": "a", "body": None}, "openai-batch"),
    ],
)
def test_rows_whose_columns_are_named_as_a_requests_fields_stay_rows(
    story: Story, path: str, format: Format | None, original: dict[str, object], wanted: str
) -> None:
    """A table of mails has a body too: read as requests, all of them would die again."""
    story.spec = msgspec.structs.replace(story.spec, source=FilesSource(str(story.folder / path), format))
    story.ends(story.spec, [letter(LOST, "budget", original=json.dumps(original).encode())])
    source = story.prepare()[0].source
    assert isinstance(source, FilesSource)
    assert source.format == wanted


def raw(data: bytes) -> Raw:
    return Raw(position=Position("replay", 0, 99), object_id="replays/1.jsonl", data=data, length=len(data))


def plain() -> Intake:
    return Intake("job-1~replay-1", "rows", Row(), POLICY, ())


def intake() -> ReplayIntake:
    return ReplayIntake(plain())


def test_a_replayed_item_is_the_same_item_in_its_next_generation() -> None:
    """Same item_id, generation + 1, the original record; its position is its place in the replay's file."""
    made = intake().item(raw(letter(LOST, "budget", generation=1)), 5.0)
    assert isinstance(made, Item)
    assert (made.item_id, made.generation, made.source.position) == (LOST, 2, 99)
    assert b"hello" in made.request.body_json
    assert made.original == b'{"text":"hello"}'


def test_a_replayed_record_of_a_topic_keeps_its_key_and_headers() -> None:
    """They say whose data it is and which wall it stands behind: without them it could go where it must not."""
    headers = (("penstock-tenant", b"acme"), ("penstock-record", b"{}"), ("x", b"\xff"))
    died = DeadLetter(
        LOST, Position("requests/0", 0, 7), "budget", "spent", b'{"text":"hello"}', key=b"k", headers=headers
    )
    line = Encoder("job-1", "rows").dead_letter(died)
    made = intake().item(raw(line), 5.0)
    assert isinstance(made, Item)
    assert (made.item_id, made.key, made.headers) == (LOST, b"k", (headers[0], headers[2]))
    assert made.attributes.tenant == "acme"


def test_a_letter_whose_topic_did_not_take_all_of_its_headers_is_not_whole() -> None:
    """Without them the item could go where it must not."""
    died = DeadLetter(LOST, Position("s", 0, 7), "budget", "spent", b"{}", headers=(("h", b"v"),), cut="header big")
    encoder = Encoder("job-1", "rows")
    (cut, whole) = told.letters([encoder.dead_letter(died), encoder.dead_letter(msgspec.structs.replace(died, cut=""))])
    assert (cut.is_whole, whole.is_whole) == (False, True)


def test_a_letter_that_was_unreadable_dies_again_as_itself() -> None:
    """Bytes that are not UTF-8 come back as they were, and the dead letter keeps the item's identity."""
    made = intake().item(raw(letter(LOST, "malformed", original=b"\xff\xfe{")), 5.0)
    assert isinstance(made, DeadLetter)
    assert (made.item_id, made.generation, made.reason, made.original) == (LOST, 1, "malformed", b"\xff\xfe{")


def test_a_line_that_is_no_dead_letter_is_data_not_a_crash() -> None:
    """Whatever stands in the file becomes an item or a dead letter."""
    assert isinstance(intake().item(raw(b"{"), 5.0), DeadLetter)
