"""The state: documents with compare-and-swap, and the budget ledger on them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from penstock.connectors.ledger import LedgerClient, document
from penstock.connectors.s3.client import client
from penstock.connectors.state import ABSENT, Conflict, FolderState, open_state
from penstock.engine.budget import Budget, NeedLease, budget_keys
from penstock.engine.errors import Corrupt, PenstockError, SpecError
from penstock.engine.flow.till import Wish

if TYPE_CHECKING:
    from conftest import S3At

    from penstock.jobs.dev.s3 import S3Server


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A state of each kind."""
    if request.param == "folder":
        return str(tmp_path)
    request.getfixturevalue("s3_keys")
    bucket = request.getfixturevalue("new_bucket")("state")
    return f"s3://{bucket}/team/a?endpoint={request.getfixturevalue('s3_server').endpoint}"


def test_a_value_is_written_only_over_what_was_read(url: str) -> None:
    """`put` with a stale tag, or ABSENT where the key is, raises `Conflict` and changes nothing."""
    state = open_state(url)
    assert state.get("a/b") is None
    first = state.put("a/b", b"1", ABSENT)
    assert state.get("a/b") == (b"1", first)
    second = state.put("a/b", b"2", first)
    for stale in (first, ABSENT):
        with pytest.raises(Conflict):
            state.put("a/b", b"3", stale)
    assert state.get("a/b") == (b"2", second)
    state.put("a/b", b"4", None)
    assert state.list("a/") == ["a/b"]
    assert state.list("b") == []


@pytest.mark.s3
def test_a_state_on_s3_is_encrypted_as_its_url_says(
    s3_server: S3Server | S3At, s3_keys: None, new_bucket: Callable[..., str]
) -> None:
    """Every put of it, the probe of a store's conditions too."""
    asked: list[tuple[str | None, str | None]] = []

    def seen(params: dict[str, Any], **_: object) -> None:
        sse = "x-amz-server-side-encryption"
        asked.append((params["headers"].get(sse), params["headers"].get(f"{sse}-aws-kms-key-id")))

    events = client(s3_server.endpoint)._client.meta.events  # pyright: ignore[reportPrivateUsage] - what is sent is ours
    events.register("before-call.s3.PutObject", seen)
    try:
        state = open_state(f"s3://{new_bucket('state')}/x?endpoint={s3_server.endpoint}&sse=aws:kms&sse_kms_key_id=k")
        with contextlib.suppress(PenstockError):  # a store may know no such key
            state.put("a", b"1", None)
        with contextlib.suppress(PenstockError):
            state.put("b", b"1", ABSENT)
    finally:
        events.unregister("before-call.s3.PutObject", seen)
    assert len(asked) > 1
    assert set(asked) == {("aws:kms", "k")}


def test_of_many_writers_each_counts_once(url: str) -> None:
    """Threads and processes that increment one number lose no increment."""
    code = (
        "import sys; from penstock.connectors.state import *\n"
        "s = open_state(sys.argv[1])\n"
        "n = 0\n"
        "while n < 50:\n"
        "    v, tag = s.get('n')\n"
        "    try: s.put('n', b'%d' % (int(v) + 1), tag); n += 1\n"
        "    except Conflict: pass\n"
    )
    open_state(url).put("n", b"0", ABSENT)
    others = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
    assert [p.wait(timeout=60) for p in others] == [0, 0, 0]
    found = open_state(url).get("n")
    assert found is not None
    assert found[0] == b"150"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../b", ".locks/00", "a//b", "a b", "a\x00", "x" * 201, "a/"])
def test_a_key_cannot_leave_the_state(tmp_path: Path, key: str) -> None:
    """Keys with other than safe characters, or parts that start with a dot, are refused."""
    for url in (str(tmp_path), "s3://bucket/prefix"):
        with pytest.raises(SpecError):
            open_state(url).put(key, b"", None)


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3://", "s3://bucket/x?endpint=http://h"])
def test_a_state_that_cannot_be_is_a_clear_error(url: str) -> None:
    """An unknown kind, no bucket, an option misspelt."""
    with pytest.raises(SpecError):
        open_state(url)


def need(nano: int, limit: int = 1_000_000) -> NeedLease:
    return NeedLease("run/r", nano, limit)


def lease(
    client: LedgerClient,
    want: int | NeedLease,
    name: str,
    lane: int = 0,
    epoch: tuple[int, int] = (1, 1),
    now: float = 0.0,
) -> int | str | None:
    """One lease of what is wanted: its amount, or why there is none."""
    wanted = need(want) if isinstance(want, int) else want
    answer = client.leases(Wish(wanted.key, wanted.limit_nano, (wanted.nano,)), [name], lane, epoch, now)
    return answer[name] if isinstance(answer, dict) else answer


def test_a_budget_is_never_leased_twice(url: str) -> None:
    """Many lanes at once: what all of them got is at most the limit, and what is refused did not fit."""
    client = LedgerClient(open_state(url), "r")

    def grab(lane: int) -> int:
        total = 0
        for n in range(5):
            got = lease(client, 70_000, f"{lane}-{n}", lane)
            total += got if isinstance(got, int) else 0
        return total

    with ThreadPoolExecutor(8) as pool:
        got = sum(pool.map(grab, range(8)))
    assert got == 14 * 70_000
    ledger = client.read("run/r")
    assert ledger is not None
    assert ledger.leased_nano == got


def test_the_same_lease_again_is_no_second_lease_but_another_jobs_is(tmp_path: Path) -> None:
    """A lost answer may be asked for again; two jobs under one budget never share a lease by accident of its name."""
    one, two = (LedgerClient(FolderState(tmp_path), run) for run in ("r1", "r2"))
    assert lease(one, 600_000, "0-1") == 600_000
    assert lease(one, 600_000, "0-1") == 600_000
    assert lease(two, 600_000, "0-1") is None
    one.settle("run/r", "0-1", 100_000)
    one.settle("run/r", "0-1", 100_000)
    assert lease(two, 600_000, "0-1") == 600_000
    two.settle("run/r", "0-1", 600_000)
    answer = lease(two, 600_000, "0-2")
    assert isinstance(answer, str)
    assert "budget run/r" in answer


def test_a_call_that_no_lease_that_comes_back_makes_room_for_is_told_no_at_once(tmp_path: Path) -> None:
    """Else all that come after it in its lane would wait, for as long as others hold a cent."""
    one, two = (LedgerClient(FolderState(tmp_path), run) for run in ("r1", "r2"))
    assert lease(one, 300_000, "0-1") == 300_000
    one.settle("run/r", "0-1", 300_000)
    assert lease(one, 10_000, "0-2") == 10_000
    assert lease(two, 700_000, "0-1") is None, "what is out may come back whole"
    assert isinstance(lease(two, 700_001, "0-1"), str)


def test_a_lease_of_the_long_dead_is_not_waited_for(tmp_path: Path) -> None:
    """Money that another run's forgotten lease holds is gone for now: the answer is no, not "later"."""
    lease(LedgerClient(FolderState(tmp_path), "dead"), 900_000, "0-1")
    client = LedgerClient(FolderState(tmp_path), "r")
    assert lease(client, 600_000, "0-1", now=60.0) is None
    assert isinstance(lease(client, 600_000, "0-1", now=3600.0), str)


def test_a_dead_owners_lease_is_spent_but_for_what_is_proven(url: str) -> None:
    """After the fence: proven spend is settled, the rest is forfeit; a second time changes nothing."""
    client = LedgerClient(open_state(url), "r")
    lease(client, 500_000, "0-1")
    lease(client, 100_000, "1-1", 1)
    assert client.forfeit(0, (1, 2), {"0-1": 200_000}, 0.0) == 300_000
    for _ in range(2):  # a write whose answer got lost is done again
        assert client.forfeit(0, (1, 3), {"0-1": 200_000}, 0.0, told=(1, 1)) == 300_000, "its owner told nobody"
    assert client.forfeit(0, (1, 4), {}, 0.0, told=(1, 3)) == 0
    ledger = client.read("run/r")
    assert ledger is not None
    assert (ledger.settled_nano, ledger.forfeit_nano, ledger.leased_nano) == (200_000, 300_000, 100_000)
    assert client.forfeit_run(0.0) == 100_000


def test_a_lease_that_an_owner_took_after_it_was_replaced_is_not_out_for_ever(tmp_path: Path) -> None:
    """In a month's budget that nobody used up: the run ended, and nobody ever closed it. Another lane's stays."""
    client, other = (LedgerClient(FolderState(tmp_path), run) for run in ("r", "other"))
    key = "month/1970-01"
    want = NeedLease(key, 1_000, 1_000_000)
    assert client.forfeit(0, (1, 2), {}, 0.0) == 0
    lease(client, want, "0-1.1-9")
    lease(client, want, "1-1.1-1", 1)
    lease(other, want, "0-1.1-1")
    lease(client, want, "0-1.2-1", epoch=(1, 2))
    client.settle(key, "0-1.2-1", 400)
    ledger = client.read(key)
    assert ledger is not None
    assert sorted(ledger.leases) == ["other/0-1.1-1", "r/1-1.1-1"]
    assert ledger.settled_nano == 400
    assert ledger.forfeit_nano > 0


def test_a_lease_that_an_owner_took_after_it_was_replaced_keeps_no_run_from_its_end(tmp_path: Path) -> None:
    """It was stopped while it asked, and woke up: nobody settles that lease, and the run waited for it for ever."""
    client = LedgerClient(FolderState(tmp_path), "r")
    want = need(200_000)
    for lane in range(3):
        assert client.forfeit(lane, (2, 1), {}, 0.0) == 0
    lease(client, want, "0-1.1-9")
    lease(client, want, "2-2.1-9", 2, (2, 1))
    assert client.forfeit(1, (2, 2), {}, 0.0) == 0
    lease(client, want, "1-2.1-9", 1, (2, 1))
    lease(client, want, "1-2.2-1", 1, (2, 2))
    lease(client, want, "1-2.2-2", 1, (2, 2))
    assert lease(client, want, "1-2.2-3", 1, (2, 2)) is None, "lane 2 may give something back"
    ledger = client.read("run/r")
    assert ledger is not None
    assert sorted(ledger.leases) == ["r/1-2.2-1", "r/1-2.2-2", "r/2-2.1-9"]
    assert ledger.forfeit_nano == 400_000
    for name in ("1-2.2-1", "1-2.2-2", "2-2.1-9"):
        client.settle("run/r", name, 200_000)
    assert isinstance(lease(client, want, "1-2.2-3", 1, (2, 2)), str)


class Counting(FolderState):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read: list[str] = []

    def get(self, key: str) -> tuple[bytes, str] | None:
        self.read.append(key)
        return super().get(key)


def test_a_lanes_opening_reads_no_ledger_of_other_runs_or_days_long_over(tmp_path: Path) -> None:
    """A state that has served for years holds thousands; on S3 reading them all took longer than a lane may."""
    state, now = Counting(tmp_path), 1_780_000_000.0
    day = f"day/{datetime.fromtimestamp(now, UTC):%Y-%m-%d}"
    others = ["run/job-10", "run/j", *(f"day/2020-01-{n:02d}/tenant/t" for n in range(1, 29)), "month/2020-01"]
    mine = ["run/job-1", "run/job-1/tenant/" + "t" * 200, f"{day}/tenant/t", "rollout/r"]
    for key in [*others, *mine]:
        lease(LedgerClient(state, "job-1"), NeedLease(key, 10, 1_000), "0-1", now=now)
    state.read.clear()
    client = LedgerClient(state, "job-1")
    client.check(now)
    assert sorted(state.read) == sorted(document(key) for key in mine)
    assert client.forfeit(0, (1, 2), {}, now) == 10
    assert [ledger.forfeit_nano for key in mine if (ledger := client.read(key))] == [10] * len(mine)


@pytest.mark.parametrize(
    ("keys", "told"), [(("run/r", "day/1970-01-01"), 300), (("day/1970-01-01", "month/1970-01"), 900)]
)
def test_a_dead_owners_money_is_told_once_whatever_the_budgets_it_lay_under(
    tmp_path: Path, keys: tuple[str, ...], told: int
) -> None:
    """A lease of each is out for the same calls, as large as that budget allows."""
    client = LedgerClient(FolderState(tmp_path), "r")
    for key, nano in zip(keys, (300, 900), strict=True):
        lease(client, NeedLease(key, nano, 100 * nano), key)
    assert client.forfeit(0, (1, 2), {}, 0.0) == told


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("run/r/tenant/a", "run/r/tenant/b"), 1_200),
        (("day/1970-01-01/tenant/a", "day/1970-01-02/tenant/a"), 1_200),
        (("run/r/tenant/a", "run/r/tenant/a/for/explore"), 900),
    ],
)
def test_what_lies_under_disjoint_budgets_adds_up(tmp_path: Path, keys: tuple[str, ...], told: int) -> None:
    """A call has one tenant and one day."""
    client = LedgerClient(FolderState(tmp_path), "r")
    for key, nano in zip(keys, (300, 900), strict=True):
        lease(client, NeedLease(key, nano, 100 * nano), key)
    assert client.forfeit(0, (1, 2), {}, 0.0) == told


def test_a_run_with_a_long_name_finds_its_leases_too(tmp_path: Path) -> None:
    client, key = LedgerClient(FolderState(tmp_path), "j" * 120), f"run/{'j' * 120}/tenant/{'t' * 60}"
    lease(client, NeedLease(key, 10, 1_000), "3-1", 3)
    assert client.forfeit_run(0.0) == 10


def test_a_ledger_that_cannot_be_read_stops_the_job(tmp_path: Path) -> None:
    """`Corrupt`: nothing is paid for without a ledger, and a lost one is not begun anew in the middle."""
    state = FolderState(tmp_path)
    client = LedgerClient(state, "r")
    client.check(0.0)
    lease(client, 100, "0-1")
    (tmp_path / document("run/r")).unlink()
    with pytest.raises(Corrupt):
        client.settle("run/r", "0-1", 50)
    state.put(document("run/r"), b'{"key": "run/r", "limit_nano": 5, "settled_nano": 9}', None)
    for ask in (lambda: client.check(0.0), lambda: lease(client, 100, "0-2")):
        with pytest.raises(Corrupt):
            ask()


def test_any_tenants_name_makes_a_safe_document(url: str) -> None:
    """Dots, slashes, emptiness and length in a name neither collide nor leave the state."""
    keys = ["day/2026-11-24/tenant/", "day/2026-11-24/tenant/..", "run/" + "%2F" * 200, "run/" + "%2F" * 201]
    client = LedgerClient(open_state(url), "r")
    for key in keys:
        assert lease(client, NeedLease(key, 1, 10), "a") == 1
    assert len({document(key) for key in keys}) == len(keys)


def test_no_tenant_takes_anothers_judge_for_its_own() -> None:
    """`a~for~judge` had one document with the judge's budget of `a`; names without the sign keep the ones they had."""
    judge = Budget(1, per="day", tenant="*", role="judge")
    whole = Budget(1, per="day", tenant="*")
    keys = {
        key
        for tenant in ("a", "a~for~judge", "a%7Efor%7Ejudge")
        for key, _ in budget_keys((whole, judge), "r", tenant, 0.0, "judge")
    }
    assert len(keys) == 6
    assert len({document(key) for key in keys}) == 6
    assert document("day/1970-01-01/tenant/a/for/judge") == "ledger/day~1970-01-01~tenant~a~for~judge.json"
