"""What the store holds besides its lanes: whose it is, the plan, and the right to be the run's one command.

<base>run.json               the run, and its present life: `--fresh` swaps it for a new one
<base><life>/hold            who holds the run; swapped
<base><life>/plan/<version>  each version of the plan, made once
<base><life>/alive/<id>      signs of life (`beacon`)

Each output has a base of its own, which says whose it is; in the first one's the store works.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import TypeVar

import msgspec

from penstock.connectors.base import Holder
from penstock.connectors.filestore.run import who_holds
from penstock.connectors.s3 import fence
from penstock.connectors.s3.client import S3, Got, Stored
from penstock.connectors.s3.fence import Lost
from penstock.connectors.s3.store.beacon import is_alive
from penstock.connectors.s3.store.home import Home
from penstock.engine.errors import Corrupt, Fenced, Held, Taken
from penstock.engine.plan import Plan

T = TypeVar("T")

HOLD = "hold"
PLANS = "plan/"


class Base(msgspec.Struct, frozen=True):
    """Where a store's working prefix is. root: with its last slash."""

    s3: S3
    bucket: str
    root: str
    stored: Stored

    @property
    def key(self) -> str:
        return f"{self.root}run.json"

    def home(self, life: str) -> Home:
        return Home(self.s3, self.bucket, f"{self.root}{life}/", self.stored)

    def at(self, prefix: str) -> Base:
        """The base of another output in this bucket."""
        return msgspec.structs.replace(self, root=root_of(prefix))


def root_of(prefix: str) -> str:
    """The working prefix beside an output; readers of data sets pass over names that start with a dot. Its name is all
    of the output's: `labels.csv` and `labels.jsonl` are different runs' places."""
    folder, _, name = prefix.rpartition("/")
    inside = f"{folder}/" if folder else ""
    return f"{inside}.{name}.penstock/" if name else f"{inside}.penstock/"


class Life(msgspec.Struct, frozen=True):
    """One run's present life in a place (see `RunMark`)."""

    base: Base
    run_id: str
    name: str

    @property
    def home(self) -> Home:
        return self.base.home(self.name)

    def check(self) -> None:
        """Raises `Fenced` where the run was begun anew. Blocking."""
        mark = read_mark(self.base)
        if mark is None or mark[0].life != self.name:
            raise Fenced(f"s3://{self.base.bucket}/{self.base.root}: another command began this run anew. Stop.")

    def owner(self, prefix: str) -> str | None:
        """The run that an output in this bucket belongs to; None: no run says that it does. Blocking."""
        mark = read_mark(self.base.at(prefix))
        return mark[0].run_id if mark is not None else None


class RunMark(msgspec.Struct, frozen=True):
    """life: names the folder that counts. An owner of an earlier one can't reach what came after."""

    run_id: str
    life: str
    format: int = 1


class Hold(msgspec.Struct, frozen=True):
    """beat: the holder's beacon; "" once it has let go."""

    token: str
    epoch: int
    beat: str
    holder: Holder


class _StoredPlan(msgspec.Struct, frozen=True):
    token: str
    plan: Plan


# whose it is


def read_mark(base: Base) -> tuple[RunMark, str] | None:
    """The mark and its ETag. Raises `Corrupt`. Blocking, as all of this part."""
    found = fence.read(base.s3, base.bucket, base.key)
    if found is None:
        return None
    try:
        return msgspec.json.decode(found.data, type=RunMark), found.etag
    except msgspec.MsgspecError as error:
        raise Corrupt(f"s3://{base.bucket}/{base.key} cannot be read ({error}). Delete what lies below it.") from error


def claim(base: Base, run_id: str, seen: RunMark | None = None) -> Life:
    """Make an output this run's, or see that it is already. `seen`: the mark that was just read there. Raises `Taken`
    where it is another run's."""
    if seen is None:
        try:
            mark = _new_mark(run_id)
            fence.swap(base.s3, base.bucket, base.key, msgspec.json.encode(mark), None, base.stored)
            return Life(base, run_id, mark.life)
        except Lost:
            found = read_mark(base)
            return claim(base, run_id, found[0] if found is not None else None)
    refuse_another(base, base.root, seen.run_id, run_id)
    return Life(base, run_id, seen.life)


def refuse_another(base: Base, output: str, owner: str | None, run_id: str) -> None:
    """Raises `Taken` where `owner` is another run. output: a prefix or an object."""
    if owner not in (None, run_id):
        raise Taken(
            f"s3://{base.bucket}/{output} holds the output of another run ({owner}); this one is {run_id}. Give the "
            f"sinks another prefix; or start with --fresh, which throws away all that {owner} has there, finished or "
            "not."
        )


def refuse_old_names(base: Base, prefixes: Collection[str], run_id: str) -> None:
    """Raises `Taken` where this run was begun by a Penstock that left an object's ending out of its working prefix:
    it would begin again beside all that it has, and pay again. prefixes: of the run's outputs in this bucket."""
    roots = {root_of(prefix) for prefix in prefixes}
    for prefix in prefixes:
        old = base.at(prefix.removesuffix(PurePosixPath(prefix).suffix))
        if old.root in roots or read_mark(base.at(prefix)) is not None:
            continue
        found = read_mark(old)
        if found is not None and found[0].run_id == run_id:
            raise Taken(
                f"run {run_id} is where working prefixes were named before, at s3://{old.bucket}/{old.root}: "
                "finish it with the version of Penstock that began it, or start over with --fresh"
            )


def begin_anew(base: Base, run_id: str) -> str | None:
    """Make an output this run's, with a new, empty life; returns the old one (None: there was none)."""
    found = read_mark(base)
    etag = found[1] if found is not None else None
    try:
        fence.swap(base.s3, base.bucket, base.key, msgspec.json.encode(_new_mark(run_id)), etag, base.stored)
    except Lost as error:
        raise Held(f"s3://{base.bucket}/{base.root}: another command started this run meanwhile.") from error
    return found[0].life if found is not None else None


def _new_mark(run_id: str) -> RunMark:
    return RunMark(run_id, secrets.token_hex(4))


# who holds it


async def read_hold(home: Home) -> tuple[Hold, str] | None:
    found = await home.read(HOLD)
    return (_decoded(home, found, Hold, HOLD), found.etag) if found is not None else None


async def take_hold(home: Home, holder: Holder, beat: str, beat_s: float, *, take_over: bool, above: int = 0) -> Hold:
    """Become the run's one command. Raises `Held`."""
    while True:
        found = await read_hold(home)
        if found is not None and not take_over:
            await refuse_live(home, found[0], beat_s)
        epoch = max(found[0].epoch if found else 0, above) + 1
        new = Hold(secrets.token_hex(8), epoch, beat, holder)
        try:
            await home.swap(HOLD, msgspec.json.encode(new), found[1] if found else None)
        except Lost:
            continue
        return new


async def refuse_live(home: Home, hold: Hold, beat_s: float) -> None:
    """Raises `Held` where the holder shows that it lives."""
    if await is_alive(home, hold.beat, beat_s):
        raise Held(who_holds(hold.holder, str(home)))


async def leave_hold(home: Home, ours: Hold) -> None:
    """Say that the run is free, unless another command has it."""
    found = await read_hold(home)
    if found is not None and found[0].epoch == ours.epoch:
        left = msgspec.structs.replace(ours, token=secrets.token_hex(8), beat="")
        try:
            await home.swap(HOLD, msgspec.json.encode(left), found[1])
        except Lost:
            return


# the plan


async def plan_version(home: Home) -> int:
    names = await home.names(PLANS)
    return max((int(name.removeprefix(PLANS)) for name in names), default=0)


async def read_plan(home: Home) -> Plan | None:
    version = await plan_version(home)
    found = await home.read(f"{PLANS}{version:06d}") if version else None
    return _decoded(home, found, _StoredPlan, PLANS).plan if found is not None else None


async def write_plan(home: Home, plan: Plan) -> None:
    """Raises `Fenced` where `plan.version` is not the stored one + 1."""
    stored = await plan_version(home)
    data = msgspec.json.encode(_StoredPlan(secrets.token_hex(8), plan))
    try:
        if plan.version == stored + 1:
            await home.create(f"{PLANS}{plan.version:06d}", data)
            return
    except Lost:
        stored = plan.version
    raise Fenced(
        f"{home}: the plan is at version {stored} and version {plan.version} was to be written: another command "
        "changed it. Read it and start anew."
    )


def _decoded(home: Home, found: Got, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(found.data, type=kind)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{home}{name} cannot be read ({error}). Restore it, or start with --fresh.") from error
