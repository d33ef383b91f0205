"""The audit log: list, verify, export."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from penstock.engine.audit import KINDS, Entry, Verdict, kept
from penstock.engine.errors import SpecError, Temporary
from penstock.jobs import exits
from penstock.jobs.commands import shared

if TYPE_CHECKING:
    from penstock.connectors.audit import AuditLog

_SPANS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
FACTS_SHOWN = 300
"""Characters of an entry's facts that the table shows."""

head_option = click.option(
    "--head", metavar="COUNT:HASH", help="A head that you kept: also what was made wholly anew since is found."
)


@click.group()
def audit() -> None:
    """What was decided and by whom: runs begun and ended, policies, refusals by walls, budget stops, deletions,
    rollouts and their stages, rollbacks, calibrations, labels, feedback, other models than were asked for.

    Each entry holds the hash of the one before it, so that the past can't be changed unseen. `verify` reads the
    whole log, calls nobody, and names the first entry that was altered, removed, moved or cut off.

    \b
      penstock audit list --kind take_over --since 7d
      penstock audit verify              prints the head: keep it elsewhere, and
      penstock audit verify --head 128:9f2c…     finds even a log made wholly anew
      penstock audit export log.jsonl && penstock audit verify --file log.jsonl
    """


@audit.command(name="list", epilog=f"Kinds: {' '.join(KINDS)}.")
@shared.state_option
@shared.json_option
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(KINDS), metavar="KIND", help="Only these; repeatable."
)
@click.option("--run", metavar="RUN", help="Only of a run: its id, the start of one, or a job's name.")
@click.option("--since", metavar="WHEN", help="A day or time (UTC), such as 2026-11-24, or an age: 90m, 12h, 7d.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="The last N that fit.")
def list_entries(
    state: str | None, as_json: bool, kinds: tuple[str, ...], run: str | None, since: str | None, limit: int
) -> int:
    """The entries, the latest last. Whether they are true, `penstock audit verify` says."""
    log, start = _log(state), "" if since is None else _start(since, time.time())
    fits = (e for e in log.entries() if e.at >= start and (not kinds or e.kind in kinds) and _is_of(e, run))
    shown = list(deque(fits, maxlen=limit))
    if as_json:
        shared.print_json(shown)
    elif shown:
        _table(shown)
    else:
        click.echo(f"no such entry in the audit log of {shared.state_url(state)}")
    return exits.DONE


def _is_of(entry: Entry, run: str | None) -> bool:
    return run is None or entry.job == run or entry.run.startswith(run)


def _start(text: str, now: float) -> str:
    """As entries write their time. Raises `SpecError`."""
    try:
        if text[-1:] in _SPANS:
            at = datetime.fromtimestamp(now, UTC) - timedelta(**{_SPANS[text[-1]]: float(text[:-1])})
        else:
            at = datetime.fromisoformat(text)
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise SpecError(
            f"--since {text!r}: expected a day or time, such as 2026-11-24, or an age: 90m, 12h, 7d"
        ) from error
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]


def _table(entries: list[Entry]) -> None:
    from rich.text import Text

    out = shared.console()
    for entry in entries:
        facts = bytes(entry.facts).decode()
        more = "…" if len(facts) > FACTS_SHOWN else ""
        what = f"{entry.seq:>6}  {entry.at}  {entry.kind}  {entry.run or entry.job}"
        out.print(Text(what), Text(f"        {entry.actor}  {facts[:FACTS_SHOWN]}{more}", style="dim"), sep="\n")


@audit.command(short_help="Whether nobody changed the log")
@shared.state_option
@shared.json_option
@head_option
@click.option("--file", type=click.Path(exists=True, dir_okay=False), help="An exported log instead of the state's.")
def verify(state: str | None, as_json: bool, head: str | None, file: str | None) -> int:
    """Read the whole log and say whether it holds, or the first place where it doesn't (exit code 6).

    Found: entries altered, removed, repeated, moved, cut off at the end. Whoever can write the state could make the
    whole log anew, or put an old copy back: only a head that was kept where they can't write finds that (--head).
    """
    from penstock.connectors.audit import verify_lines

    mine = None if head is None else kept(head)
    if file is None:
        log = _there(state) if mine is None else _log(state)
        return _tell(log.verify(mine), as_json)
    with _opened(file) as lines:
        return _tell(verify_lines(file, lines, mine), as_json)


@audit.command(short_help="Write the log into a file")
@click.argument("file", metavar="FILE.jsonl")
@shared.state_option
@shared.json_option
@head_option
def export(file: str, state: str | None, as_json: bool, head: str | None) -> int:
    """Write the log into FILE.jsonl, an entry a line and its head at the end; then verify what was written.

    A line's last field is its hash: blake2b-256 of the bytes before `,"hash":"`. So it can be checked without
    Penstock. FILE.jsonl must not be there yet. A log that is broken is written as it is (exit code 6).
    """
    from penstock.connectors.audit import verify_lines

    mine = None if head is None else kept(head)
    _write(Path(file), _there(state).export())
    with _opened(file) as lines:
        return _tell(verify_lines(file, lines, mine), as_json)


def _write(path: Path, lines: Iterator[bytes]) -> None:
    """Readable by its owner only, as the state may be."""
    first = next(lines)  # a state that can't be read leaves no empty file
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(first)
            out.writelines(lines)
    except FileExistsError as error:
        raise SpecError(f"{path} is already there; export never overwrites: give it another name") from error
    except OSError as error:
        raise Temporary(f"can't write {path}: {error.strerror}") from error


def _opened(path: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise SpecError(f"can't read {path}: {error.strerror}") from error


def _tell(verdict: Verdict, as_json: bool) -> int:
    code = exits.DONE if verdict.broken is None else exits.BROKEN
    if as_json:
        told = {"holds": verdict.broken is None, "entries": verdict.entries, "head": str(verdict.head)}
        shared.print_json({**told, "broken": verdict.broken})
        return code
    if verdict.broken is None:
        shared.echo(f"{verdict.entries:,} entries: nothing was altered, removed, moved or cut off")
        shared.echo(f"head {verdict.head}")
        return code
    broken = verdict.broken
    shared.echo(f"the audit log is broken: {broken.fault} at entry {broken.seq} ({broken.place})")
    shared.echo(f"  {broken.why}")
    shared.echo(f"  before it {verdict.entries:,} entries hold; compare with an exported copy or a backup")
    return code


def _log(state: str | None) -> AuditLog:
    from penstock.connectors.audit import open_audit

    return open_audit(shared.state_url(state))


def _there(state: str | None) -> AuditLog:
    """A log that is gone must not pass for one that holds. Raises `SpecError`."""
    log = _log(state)
    if log.is_absent():
        url = shared.state_url(state)
        raise SpecError(f"there is no audit log in {url}: the first run begins it; --state names another place")
    return log
