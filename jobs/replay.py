"""Sending dead letters again, as a run of its own over their originals.

What a replay is: run `<run_id>~replay-<n>`, whose source is a file of dead-letter *records* (`letter_files`)
in the state and whose outputs stand beside the real ones (`results.replay-1.jsonl`); topics take them in, so
there they go to the same topics. So nothing that is finished is opened again, and the replay has what every run has:
plan, budget, resume, its own dead letters.

Identity: an item keeps its `item_id` and enters as `generation + 1`. So a reader of all outputs takes, for each
`item_id`, the record of the highest generation: the dead letter of generation 0 is history once generation 1 ended.
Within one generation every promise holds as ever.

No item is sent twice for one death: a replay takes only letters that are the *last word* on their item over the run
and all its replays so far, and refuses to start while an earlier replay is unfinished (its items may still end well).
A run without an end is never finished: its letters are taken as far as they are committed, while it goes or not. What
is committed is final, whoever has taken the run over since; a letter that comes later is one for the next replay.
Not replayed: letters over 1 MB of which only the head was kept, and those whose topic took not all of their key and
headers (which say whose an item is, and where it may go); they are counted and named.

Memory: 16 bytes and some of every item in earlier replays of the same run, nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

import msgspec

from penstock.connectors.reading.intake import input_shape
from penstock.connectors.settings import KafkaSink, KafkaSource, MemorySource, SinkSettings, SourceSettings
from penstock.connectors.state import Conflict
from penstock.connectors.writing.records import readable
from penstock.engine.errors import SpecError
from penstock.jobs import letter_files
from penstock.jobs.history import History, is_over
from penstock.jobs.letter_files import LetterFile
from penstock.jobs.look import told
from penstock.jobs.look.reading import Outputs
from penstock.jobs.look.told import LetterTold
from penstock.jobs.spec.places import resolve
from penstock.jobs.trial import beside
from penstock.jobs.wording import at_state
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

MARK = "~replay-"


class Chosen(msgspec.Struct):
    """What came of looking at the letters. `file`: those to send."""

    file: LetterFile
    sent: int = 0
    left: Counter[str] = msgspec.field(default_factory=Counter[str])
    """Reason → letters that were not asked for."""
    batch: bool = False
    """The originals are openai-batch lines."""
    cut: list[str] = msgspec.field(default_factory=list[str])
    """Item ids of letters that can't be sent: they were kept only in part."""
    generation: int = 0
    """The highest among those to send."""


Wanted = Callable[[LetterTold], bool]


def wanted(reasons: tuple[str, ...], everything: bool) -> Wanted:
    """`reasons` given: those. Else all that sending again may help, or everything."""
    if reasons:
        return lambda letter: letter.reason in reasons
    return lambda letter: everything or letter.retryable


def base_of(run_id: str) -> str:
    return run_id.partition(MARK)[0]


def generation_of(history: History, spec: RunSpec) -> int:
    """What the items of a run are that is begun or goes on."""
    return history.spec(spec.run_id).generation if history.knows(spec.run_id) else spec.generation


def generation_anew(history: History, run_id: str) -> int | None:
    """What they are where the run has no plan any more, by this command's `--fresh` or an earlier one's: above all
    replays of its life before, for whoever follows the highest; their outputs stay, and in a topic the old records too.
    Of a run without an end also above one that somebody prepares at this moment, over letters of that life.
    None: it was never replayed."""
    if _may_be_replayed_now(history, run_id):
        return next_generation(history, run_id) + 1
    return next_generation(history, run_id) if replays(history, run_id) else None


def _may_be_replayed_now(history: History, run_id: str) -> bool:
    """It has no end that a replay waits for, and had begun."""
    if not history.knows(run_id) or not history.spec(run_id).endless:
        return False
    return history.status_or_starting(run_id).generation is not None


def next_generation(history: History, base: str) -> int:
    return 1 + max(history.spec(run_id).generation for run_id in [base, *replays(history, base)])


def of_this_life(history: History, base: str) -> list[str]:
    """The replays of a run since it was last begun anew, in order: its items were new then."""
    born = history.spec(base).generation
    return [run_id for run_id in replays(history, base) if history.spec(run_id).generation > born]


def later(history: History, run_id: str) -> list[str]:
    """The replays that may have sent letters of this run, or replay, again."""
    story = [base_of(run_id), *of_this_life(history, base_of(run_id))]
    return story[story.index(run_id) + 1 :] if run_id in story else []


def replays(history: History, run_id: str) -> list[str]:
    """The replays of a run so far, in order, those of a life that was thrown away too: their names are taken."""
    found: list[str] = []
    while history.knows(one := f"{run_id}{MARK}{len(found) + 1}") and not _is_free(history, one):
        found.append(one)
    return found


def next_number(history: History, base: str) -> int:
    """Of the replay to come. Asked for before anything is read of the run: whoever begins one meanwhile takes it, and
    what was read before that is sent by nobody else (see `begun`)."""
    return len(replays(history, base)) + 1


def prepare(history: History, spec: RunSpec, wants: Wanted) -> tuple[RunSpec, Chosen]:
    """Choose letters, write their file, make the spec of the replay. `spec`: of the base run, as it is to be now.

    Raises `SpecError` where there is nothing to send, or an earlier replay is unfinished.
    """
    base = base_of(spec.run_id)
    number = next_number(history, base)
    earlier = of_this_life(history, base)
    if not history.spec(base).endless:
        _refuse_unfinished(history, base)
    for run_id in earlier:
        _refuse_unfinished(history, run_id)
    chosen = Chosen(letter_files.new(history.url, base, number))
    lines = _wanted(chosen, _last_words(history, base, earlier), wants, spec.source)
    letter_files.write(chosen.file, _as_rows(spec.source, lines), history.url)
    if not chosen.sent:
        letter_files.remove(chosen.file)
        raise SpecError(_nothing(base, chosen))
    # A run that was begun anew just now may not have told history yet what its items are.
    generation = max(next_generation(history, base), chosen.generation + 1)
    return again(spec, number, chosen.file, generation=generation, batch=chosen.batch), chosen


def again(spec: RunSpec, number: int, file: LetterFile, *, generation: int, batch: bool) -> RunSpec:
    """The run that sends the records of a file again, beside the base run. generation: the highest that its items may
    get. batch: they are openai-batch lines."""
    mark = f"replay-{number}"
    return msgspec.structs.replace(
        spec,
        run_id=f"{base_of(spec.run_id)}~{mark}",
        source=msgspec.structs.replace(file, format="openai-batch" if batch else "jsonl"),
        sinks={name: _sink(sink, mark) for name, sink in spec.sinks.items()},
        generation=generation,
        on_duplicate="allow",  # who replays a duplicate means it
        limit=None,
    )


@contextmanager
def begun(history: History, spec: RunSpec) -> Generator[None]:
    """History knows of a replay before anything of it is sent, though a run tells of itself only while it goes.
    Whatever becomes of this command, other letters get another number; of two commands one is refused. Within: its
    run, which gives the number back where it is refused itself. Raises `SpecError`, `Temporary`."""
    try:
        history.add_spec(spec)
    except Conflict as error:
        if not _is_free(history, spec.run_id):
            if history.spec(spec.run_id).source != spec.source:
                letter_files.remove(letter_files.of(spec.source))
            raise SpecError(f"another command has begun {spec.run_id} just now; try again when it has ended") from error
        history.save_spec(spec)
    try:
        yield
    except SpecError:
        if not history.has_told(spec.run_id):
            letter_files.remove(letter_files.of(spec.source))
        raise


def _is_free(history: History, run_id: str) -> bool:
    """It was refused before it began, and its letters are gone."""
    return not history.has_told(run_id) and not letter_files.is_there(letter_files.of(history.spec(run_id).source))


def _sink(sink: SinkSettings, mark: str) -> SinkSettings:
    """A topic takes more records in (each says its run and generation); a finished file or prefix doesn't."""
    return sink if isinstance(sink, KafkaSink) else beside(sink, mark)


def _refuse_unfinished(history: History, run_id: str) -> None:
    status = history.status_or_starting(run_id)
    if not is_finished(status):
        raise SpecError(
            f"{run_id} is not finished ({status.state}): its items may still end well. "
            f"Finish it first: penstock run {run_id} {at_state(history.url)}"
        )


def is_finished(status: RunStatus) -> bool:
    """None of its items may end any more. What a replay that stopped for want of money, or at its fuse, did not send
    has no letter but the one that is in its file. (Such a base run has sent no letter's item again.)"""
    undone = ("interrupted", "cancelled", "failed", "handed_over")
    return is_over(status) and (status.state == "done" or (MARK not in status.run_id and status.state not in undone))


def _last_words(history: History, base: str, earlier: list[str]) -> Iterator[bytes]:
    """Letters whose item was not sent again by a later replay."""
    sent_by = [sent_ids(history, run_id) for run_id in earlier]
    for at, run_id in enumerate([base, *earlier]):
        later = sent_by[at:]
        outputs = Outputs(history.spec(run_id), history.status_or_starting(run_id))
        for line in outputs.records("dead_letters"):
            item = bytes.fromhex(_item(line))
            if not any(item in ids for ids in later):
                yield line


class _Id(msgspec.Struct, frozen=True):
    item_id: str


_id = msgspec.json.Decoder(_Id)


def _item(line: bytes) -> str:
    return _id.decode(line).item_id


def sent_ids(history: History, run_id: str) -> frozenset[bytes]:
    file = letter_files.of(history.spec(run_id).source)
    try:
        return frozenset(bytes.fromhex(_item(line)) for line in letter_files.read(file))
    except (OSError, SpecError) as error:
        gone = f"the letters that {run_id} sent are gone ({letter_files.where(file)})"
        raise SpecError(f"{gone}; what it sent can't be told") from error


def _wanted(chosen: Chosen, lines: Iterable[bytes], wants: Wanted, source: SourceSettings) -> Iterator[bytes]:
    """Those to send; what is told of all is counted on the way."""
    for line, letter in ((line, next(told.letters([line]))) for line in lines):
        if not wants(letter):
            chosen.left[letter.reason] += 1
        elif not letter.is_whole:
            chosen.cut.append(letter.item_id)
        else:
            chosen.sent += 1
            chosen.generation = max(chosen.generation, letter.generation)
            chosen.batch = chosen.batch or is_batch(source, letter.bytes)
            yield line


def _as_rows(source: SourceSettings, lines: Iterable[bytes]) -> Iterator[bytes]:
    """The letters, with the rows that their originals stand for where only a registry's schema can read these."""
    match source:
        case KafkaSource(format="avro" | "json-schema" | "protobuf" as format):
            from penstock.connectors.kafka.registry_rows import rows_of  # late: a Kafka client comes with it

            with rows_of(source, format) as to_row:
                for line in lines:
                    yield _with_original(line, to_row(next(told.letters([line])).bytes))
        case _:
            yield from lines


def _with_original(line: bytes, original: bytes) -> bytes:
    text, encoding = readable(original)
    letter = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    return msgspec.json.encode(
        {**letter, "original": text, "original_encoding": encoding, "original_length": len(original)}
    )


class _BatchLine(msgspec.Struct, frozen=True):
    custom_id: str
    body: dict[str, msgspec.Raw]


def is_batch(source: SourceSettings, original: bytes) -> bool:
    """Whether a record of that source is an openai-batch line. Rows may have such columns: mails have a body too."""
    if not isinstance(source, MemorySource) and source.format is not None:
        return input_shape(source.format) == "openai-batch"
    if resolve.is_table(source):
        return False
    try:
        msgspec.json.decode(original, type=_BatchLine)
    except msgspec.DecodeError:
        return False
    return True


def _nothing(base: str, chosen: Chosen) -> str:
    if chosen.left:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in chosen.left.most_common())
        return f"no dead letter of {base} that sending again may help; left: {reasons} (--all or --reason takes them)"
    if chosen.cut:
        return f"{len(chosen.cut):,} dead letters of {base} were kept only in part (too large) and can't be sent again"
    return f"{base} has no dead letters to send again"
