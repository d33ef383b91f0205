"""What a primary folder holds besides its lanes: whose it is, the plan, and the right to be the run's one command.

Each output has a hidden folder beside it that says whose it is; in the first one the store works.

run.json                 the run that this folder belongs to
plan-<nnnn>.json         each version of the plan, created exclusively
run-<epoch>              one file a command, created exclusively; it names its holder, who holds the file's lock
"""

from __future__ import annotations

import asyncio
import glob
import os
import re
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec

from penstock.connectors.base import Holder
from penstock.connectors.filestore.disk import publish_new, sync_folder, try_lock
from penstock.connectors.settings import FilesSink
from penstock.engine.errors import Corrupt, Fenced, Held, Taken
from penstock.engine.plan import Plan

HOLD_WAIT_S = 4.0
"""A killed command's processes live on for about 2 s (measured); twice that."""
POLL_S = 0.05

MARK = "run.json"
_ASIDE = "[0-9a-f]" * 8
"""Behind the name of a working folder that was thrown away."""
_RUN = re.compile(r"run-(\d{8})")
_PLAN = re.compile(r"plan-(\d{4,})\.json")


class RunMark(msgspec.Struct, frozen=True):
    run_id: str
    format: int = 1


def home_of(output: FilesSink) -> Path:
    """The hidden folder that belongs to an output. Its name is all of the output's: `labels.csv` and `labels.jsonl`, or
    the folders `2026.11.24` and `2026.11.25`, are different runs' places."""
    path = Path(os.path.normpath(output.path))
    return path.parent / f".{path.name}.penstock"


def claim(output: FilesSink, run_id: str) -> None:
    """Make an output this run's, or see that it is already. Raises `Taken` where it is another run's."""
    home = home_of(output)
    home.mkdir(parents=True, exist_ok=True)
    fd = publish_new(home / MARK, msgspec.json.encode(RunMark(run_id))) if read_owner(output) is None else None
    if fd is None:
        refuse_another(output, read_owner(output), run_id)
        return
    os.close(fd)
    for aside in home.parent.glob(f"{glob.escape(home.name)}.{_ASIDE}"):
        shutil.rmtree(aside, ignore_errors=True)


def throw_away(output: FilesSink) -> None:
    """Moved aside at once, and deleted by whoever makes the output its own next: a folder that is deleted piece by
    piece may lose its plan before its lanes, and another plan would go on with them."""
    home = home_of(output)
    if home.exists():
        home.rename(home.with_name(f"{home.name}.{secrets.token_hex(4)}"))
        sync_folder(home.parent)


def read_owner(output: FilesSink) -> str | None:
    """The run that an output belongs to; None: no run says that it does."""
    return _owner(home_of(output))


def _owner(home: Path) -> str | None:
    try:
        return msgspec.json.decode((home / MARK).read_bytes(), type=RunMark).run_id
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{home / MARK} cannot be read ({error}). Move {home} away or start with --fresh.") from error


def refuse_another(output: FilesSink, owner: str | None, run_id: str) -> None:
    """Raises `Taken` where `owner` is another run."""
    if owner not in (None, run_id):
        raise Taken(
            f"{output.path} holds the output of another run ({owner}); this one is {run_id}. Give the sinks another "
            f"path; or start with --fresh, which throws away all that {owner} has there, finished or not."
        )


def refuse_old_names(outputs: Collection[FilesSink], run_id: str) -> None:
    """Raises `Taken` where this run was begun by a Penstock that left the ending out of a working folder's name: it
    would begin again beside all that it has, and pay again."""
    homes = [home_of(output) for output in outputs]
    moves: list[str] = []
    for output, home in zip(outputs, homes, strict=True):
        old = home.with_name(f".{Path(os.path.normpath(output.path)).stem}.penstock")
        if old not in homes and not (home / MARK).exists() and _owner(old) == run_id:
            moves.append(f"{old} to {home}")
    if moves:
        raise Taken(
            f"run {run_id} was begun when working folders were named in another way, or its sinks were: rename "
            f"{', and '.join(moves)} to go on (or start over with --fresh)"
        )


def run_epoch(home: Path) -> int:
    """The highest run epoch; 0: no command ever held the run."""
    names = os.listdir(home) if home.exists() else []
    return max((int(m[1]) for n in names if (m := _RUN.fullmatch(n))), default=0)


def marker(home: Path, epoch: int) -> Path:
    return home / f"run-{epoch:08d}"


def read_holder(path: Path) -> Holder | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Holder)
    except (OSError, msgspec.MsgspecError):
        return None


async def hold_run(
    home: Path, holder: Holder, take_over: bool, wait_s: float = HOLD_WAIT_S, above: int = 0
) -> tuple[int, int]:
    """Become the run's one command. Returns the new run epoch and the descriptor that holds its lock."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        epoch = run_epoch(home)
        before = try_lock(marker(home, epoch)) if epoch else None
        if take_over or not epoch or before is not None:
            new = max(epoch, above) + 1
            fd = publish_new(marker(home, new), msgspec.json.encode(holder))
            if before is not None:
                os.close(before)
            if fd is not None:
                return new, fd
        elif loop.time() >= deadline:
            raise Held(describe(home, epoch))
        await asyncio.sleep(POLL_S)


def describe(home: Path, epoch: int) -> str:
    """Who holds the run, in words."""
    return who_holds(read_holder(marker(home, epoch)), str(home))


def who_holds(who: Holder | None, home: str) -> str:
    """The same of a holder that is known already."""
    if who is None:
        return f"{home}: another command holds this run. Wait for it, or use --take-over."
    import datetime

    since = datetime.datetime.fromtimestamp(who.since, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    command = f" ({who.command})" if who.command else ""
    return (
        f"this run is held by {who.user}@{who.host}, process {who.pid}{command}, since {since}. "
        "Wait for it or stop it; or use --take-over, which fences it off and goes on in its place."
    )


def plan_version(home: Path) -> int:
    names = os.listdir(home) if home.exists() else []
    return max((int(m[1]) for n in names if (m := _PLAN.fullmatch(n))), default=0)


def read_plan(home: Path) -> Plan | None:
    version = plan_version(home)
    if not version:
        return None
    path = home / f"plan-{version:04d}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{path} cannot be read ({error}). Restore it from a backup, or start with --fresh.") from error


def write_plan(home: Path, plan: Plan) -> None:
    """Raises `Fenced` where `plan.version` is not the stored one + 1."""
    stored = plan_version(home)
    path = home / f"plan-{plan.version:04d}.json"
    fd = publish_new(path, msgspec.json.encode(plan)) if plan.version == stored + 1 else None
    if fd is None:
        raise Fenced(
            f"{home}: the plan is at version {max(stored, plan_version(home))} and version {plan.version} was to be "
            "written: another command changed it. Read it and start anew."
        )
    os.close(fd)
