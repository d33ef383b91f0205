"""Dead letters: list them, send them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, get_args

import click

from penstock.engine.errors import SpecError
from penstock.engine.results import DeadLetterReason
from penstock.jobs import exits
from penstock.jobs.commands import sending, shared
from penstock.jobs.commands.look import outputs_at

if TYPE_CHECKING:
    from penstock.jobs.look.reading import Outputs
    from penstock.jobs.look.told import LetterTold
    from penstock.jobs.replay import Chosen
    from penstock.workers.runspec import RunSpec

REASONS: tuple[str, ...] = get_args(DeadLetterReason)
MESSAGE_SHOWN = 60

reason_option = click.option(
    "--reason", "reasons", multiple=True, type=click.Choice(REASONS), metavar="REASON", help="Only these; repeatable."
)


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Items that ended without a result: list them, send them again."""


@dead_letters.command(name="list", short_help="Items without a result, and why")
@shared.run_argument
@shared.state_option
@shared.json_option
@reason_option
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Show so many.")
def list_letters(run: shared.Named, state: str | None, as_json: bool, reasons: tuple[str, ...], limit: int) -> int:
    """The dead letters of RUN (the latest by default), in input order where the run is finished and has them in one
    file or object; those of a topic come as its partitions do.

    Reasons: malformed too_large missing_field bad_field duplicate template unknown_model unknown_task
    unknown_sensitivity unsupported wall no_candidate too_long over_max_cost budget deadline refused bad_request
    invalid_output attempts_exhausted result_too_large source_lost cancelled.
    """
    from penstock.jobs.look import told

    found = shared.locate(run, state)
    outputs, again = outputs_at(found), _Again(found)
    letters = (one for one in told.letters(outputs.records("dead_letters")) if not reasons or one.reason in reasons)
    if as_json:
        shared.print_json(list(islice(letters, limit)))
        return exits.DONE
    counts = _show(map(again.see, letters), limit)
    if (words := _lacking(outputs, reasons, counts.total())) is not None:
        click.echo(words, err=True)
    if not counts:
        click.echo("no dead letters" + (f" of reason {', '.join(reasons)}" if reasons else ""))
        return exits.DONE
    shown = f"; {limit:,} shown, --limit shows more" if counts.total() > limit else ""
    click.echo(f"\n{counts.total():,} in {outputs.where('dead_letters')}{shown}")
    if again.told:
        click.echo(again.told)
    run_id = outputs.spec.run_id
    click.echo(f"next: penstock explain ID --run {run_id}")
    if again.count < counts.total():
        click.echo(f"      {_then(f'penstock dead-letters replay {run_id}', again.helped, counts)}")
    return exits.DONE


def _lacking(outputs: Outputs, reasons: tuple[str, ...], there: int) -> str | None:
    """What a topic does not hold of the letters that its run wrote; None: nothing is known to be missing."""
    from penstock.connectors.settings import KafkaSink
    from penstock.jobs.wording import NOT_THERE

    sink, told = outputs.spec.sinks["dead_letters"], outputs.status.tally.dead_letters
    written = sum(count for reason, count in told.items() if not reasons or reason in reasons)
    if not isinstance(sink, KafkaSink) or there >= written:
        return None
    return f"the topic {sink.topic} holds {there:,} of the {written:,} that the run wrote: {NOT_THERE}"


def _then(replay: str, helped: bool, counts: Counter[str]) -> str:
    """Without --reason only those are sent that sending again may help."""
    if helped:
        return replay
    return f"mend the job or its input, then {replay} --reason {counts.most_common(1)[0][0]}"


class _Again:
    """Which of a run's letters were sent again, by which replays. They stay in its list: what became of an item is what
    its highest generation says."""

    def __init__(self, found: shared.Found) -> None:
        from penstock.jobs import replay

        self._sent: dict[str, frozenset[bytes]] = {}
        for run_id in replay.later(found.history, found.run_id):
            with suppress(SpecError):  # its letters are gone: nobody can tell
                self._sent[run_id] = replay.sent_ids(found.history, run_id)
        self.count, self._by = 0, set[str]()
        self.helped = False
        """Sending some of them again, as they are, may help."""

    def see(self, letter: LetterTold) -> LetterTold:
        by = [run_id for run_id, ids in self._sent.items() if bytes.fromhex(letter.item_id) in ids]
        self.count += bool(by)
        self.helped = self.helped or (letter.retryable and not by)
        self._by.update(by)
        return letter

    @property
    def told(self) -> str:
        if not self.count:
            return ""
        by = ", ".join(run_id for run_id in self._sent if run_id in self._by)
        were, tell = "was" if self.count == 1 else "were", "tells" if len(self._by) == 1 else "tell"
        return f"{self.count:,} of them {were} sent again: {by} {tell} what became of them"


def _show(letters: Iterable[LetterTold], limit: int) -> Counter[str]:
    """Print the first `limit` as a table; count all by reason."""
    from rich.table import Table
    from rich.text import Text

    from penstock.jobs.wording import inert

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("item", "label", "reason", "message"):
        table.add_column(name, overflow="fold", no_wrap=name in ("item", "reason"))
    counts = Counter[str]()
    for letter in letters:
        counts[letter.reason] += 1
        if counts.total() <= limit:
            message = letter.message if len(letter.message) <= MESSAGE_SHOWN else letter.message[:MESSAGE_SHOWN] + "…"
            label = Text(inert(letter.custom_id or "–"))
            table.add_row(letter.item_id[:12], label, letter.reason, Text(inert(message)))
    if counts:
        shared.console().print(table)
    return counts


@dead_letters.command(short_help="Send them again")
@shared.run_argument
@shared.state_option
@reason_option
@click.option("--all", "everything", is_flag=True, help="Also those that sending again is not likely to help.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--address", envvar="RAY_ADDRESS", help="A Ray cluster. [default: a Ray of its own; env RAY_ADDRESS]")
def replay(
    run: shared.Named, state: str | None, reasons: tuple[str, ...], everything: bool, yes: bool, address: str | None
) -> int:
    """Send the dead letters of RUN (the latest by default) again, as a new generation of their items. Says first what
    that costs, and asks.

    RUN may be a job file: then the job as it is now is used, mended prompt and all. Without --reason, those letters
    are sent that sending again may help (budget, deadline, attempts_exhausted, …). An item that an earlier replay
    sent already is not sent again, unless it died again. Results stand beside the real ones
    (results.replay-1.jsonl), in Kafka in the same topics; each record says its generation.

    Refused where RUN was interrupted, cancelled or failed, or a replay of it is not done (its items may still end
    well). A run without an end (until: forever) need not be: the letters that are committed so far are sent, while it
    goes or when it has stopped.
    """
    from penstock.jobs import replay as again

    found = shared.locate(run, state)
    base = again.base_of(found.run_id)
    now = run.job() or found.history.spec(base)
    spec, chosen = again.prepare(found.history, now, again.wanted(reasons, everything))
    shared.echo(_chosen(spec.run_id, chosen))
    if not _is_wanted(spec, chosen, yes):
        return exits.DONE
    facts = {"sent": chosen.sent, "left": chosen.left, "only_part_kept": len(chosen.cut)}
    return sending.send(found.history, spec, base, facts, address)


def _is_wanted(spec: RunSpec, chosen: Chosen, yes: bool) -> bool:
    """Says what it costs, and asks. What is not sent leaves no file."""
    from penstock.jobs import letter_files
    from penstock.jobs.forecasting import planning

    wanted, out = False, shared.console()
    try:
        for part in planning.render(planning.make_plan(spec)):
            out.print(part)
        wanted = sending.confirmed(yes)
    finally:
        if not wanted:
            letter_files.remove(chosen.file)
    return wanted


def _chosen(run_id: str, chosen: Chosen) -> str:
    from penstock.jobs.wording import counted, tallied

    text = f"{run_id}: sending {counted(chosen.sent, 'dead letter')} again"
    if chosen.left:
        text += f"; left: {tallied(dict(chosen.left))} (--all or --reason takes them)"
    if chosen.cut:
        text += f"; {len(chosen.cut):,} kept only in part (too large), not sent"
    return text
