"""The API engine against the real sandbox: what is sent, what is not, and what its end is called."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.engine.catalog import Account, Limits
from penstock.engine.errors import SpecError
from penstock.engine.items import Call, Outcome, OutputSpec
from penstock.jobs.sandbox import Behaviour, Faults, Settings, running_sandbox
from penstock.workers.clock import SystemClock
from penstock.workers.engines.api import ApiEngine
from penstock.workers.engines.base import Right, Ticket
from penstock.workers.governor import Governor

BODY = msgspec.json.encode({"messages": [{"role": "user", "content": "Where is my parcel? delivery please"}]})
FOREVER = time.time() + 3600.0


def right(until: float = FOREVER) -> Right:
    return Right("run", 0, (1, 1), until)


def ticket(n: int = 0, owner: Right | None = None, output: OutputSpec | None = None, **changes: Any) -> Ticket:
    call = Call(f"{n:032x}", 0, 1, "primary", "m", "v", "m", BODY, "t", 64, 10.0, 12, 12)
    return Ticket(msgspec.structs.replace(call, **changes), owner or right(), output)


@asynccontextmanager
async def engine(url: str, **options: Any) -> AsyncIterator[ApiEngine]:
    limits = Limits(**{"concurrency": 16, **options.pop("limits", {})})
    protocol = options.pop("protocol", "openai")
    base = f"{url}/v1" if protocol == "openai" else url
    account = Account("a", protocol, base, limits=limits, provider="sandbox", api_key=options.pop("api_key", None))
    one = ApiEngine(account, **options)
    await one.start()
    try:
        yield one
    finally:
        await one.close()


async def finish(one: ApiEngine, tickets: Sequence[Ticket], timeout: float = 20.0) -> dict[int, Outcome]:
    """Outcomes by the tickets' place; each ticket gets exactly one."""
    one.submit(tickets)
    return await collect(one, tickets, timeout)


async def collect(one: ApiEngine, tickets: Sequence[Ticket], timeout: float = 20.0) -> dict[int, Outcome]:
    places = {id(t): i for i, t in enumerate(tickets)}
    found: dict[int, Outcome] = {}
    async with asyncio.timeout(timeout):
        while len(found) < len(tickets):
            for done, outcome in await one.outcomes():
                assert places[id(done)] not in found
                found[places[id(done)]] = outcome
    return found


def kinds(found: dict[int, Outcome]) -> Counter[str]:
    return Counter("ok" if o.answer else o.failure.kind for o in found.values() if o.answer or o.failure)


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 - a look from outside
            await asyncio.sleep(0.01)


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats") as response:
        return json.load(response)


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
async def test_every_call_is_answered_once_and_paid_once(protocol: str) -> None:
    """Both protocols, many at once, with usage, request id and the choice that was asked for."""
    with running_sandbox() as url:
        async with engine(url, protocol=protocol, worker="api a #0") as one:
            spec = OutputSpec(choices=("billing", "delivery"))
            found = await finish(one, [ticket(n, output=spec) for n in range(300)])
        told = stats(url)
    assert kinds(found) == {"ok": 300}
    first = found[0]
    assert first.answer is not None
    assert first.answer.text == "delivery"
    assert first.usage is not None
    assert first.usage.input > 10
    assert first.request_id
    assert first.worker == "api a #0"
    assert (told["served"], told["items"], told["second_payments"]) == (300, 300, 0)


async def test_a_connection_that_waits_for_a_long_answer_is_kept_alive() -> None:
    """A gateway between forgets one that is quiet for minutes, and the answer would be lost."""
    with running_sandbox() as url:
        async with engine(url) as one:
            await finish(one, [ticket()])
            port = int(url.rpartition(":")[2])
            (mine,) = [each for each in gc.get_objects() if type(each) is socket.socket and leads_to(each, port)]
            assert mine.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            if sys.platform == "linux":
                options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)
                assert [mine.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [60, 30]


def leads_to(each: socket.socket, port: int) -> bool:
    try:
        return each.family == socket.AF_INET and each.getpeername()[1] == port
    except OSError:
        return False


async def test_nothing_is_sent_when_the_right_has_lapsed() -> None:
    """A lane that lost its epoch pays for nothing more."""
    with running_sandbox() as url:
        async with engine(url) as one:
            found = await finish(one, [ticket(n, right(time.time() - 1.0)) for n in range(20)])
        assert stats(url)["served"] == 0
    assert kinds(found) == {"not_sent": 20}
    assert not any(o.failure.may_be_billed for o in found.values() if o.failure)


class StoppedClock:
    """The machine's clock, ahead by what a test adds: as a process sees it that was stopped and woke up."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return time.time() + self.ahead

    def tick(self) -> float:
        return time.monotonic()


async def test_a_process_that_was_stopped_while_connecting_sends_nothing() -> None:
    """The right is looked at with the connection in hand: here it lapses between choosing the call and sending it."""
    clock = StoppedClock()
    with running_sandbox() as url:
        async with engine(url, clock=clock) as one:
            one.submit([ticket(n, right(time.time() + 5.0)) for n in range(8)])
            await asyncio.sleep(0)  # the slots have taken their calls and are connecting
            clock.ahead = 10.0
            seen = [await one.outcomes()]
            while sum(map(len, seen)) < 8:
                seen.append(await one.outcomes())
        assert stats(url)["served"] == 0
    assert {o.failure.kind for batch in seen for _, o in batch if o.failure} == {"not_sent"}


async def test_a_process_that_was_stopped_with_connections_in_hand_sends_nothing() -> None:
    """Seen once, on a busy machine: sixteen calls had passed the last look and were written after the process woke up.
    The look is right before the bytes go out, not a turn of the loop before it."""
    clock = StoppedClock()
    with running_sandbox() as url:
        async with engine(url, clock=clock) as one:
            assert kinds(await finish(one, [ticket(n) for n in range(14)])) == {"ok": 14}  # now there are connections
            tickets = [ticket(n, right(time.time() + 5.0)) for n in range(14, 28)]
            one.submit(tickets)
            await asyncio.sleep(0)  # each has its connection, and has not written
            clock.ahead = 10.0
            found = await collect(one, tickets)
            assert stats(url)["served"] == 14
            assert kinds(await finish(one, [ticket(99, right(FOREVER + 20.0))])) == {"ok": 1}
    assert kinds(found) == {"not_sent": 14}
    assert not any(o.failure.may_be_billed for o in found.values() if o.failure)


async def test_a_process_that_was_stopped_in_the_middle_of_a_body_does_not_write_the_rest() -> None:
    """What a provider has half of, it can't bill."""
    clock = StoppedClock()
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "x " * 5_000_000}]})
    arrived: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        clock.ahead = 10.0
        arrived.set_result(len(await reader.read(-1)))
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    async with server, engine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", clock=clock) as one:
        found = await finish(one, [ticket(0, right(time.time() + 5.0), body_json=body)])
        assert await arrived < len(body) // 2
    assert kinds(found) == {"not_sent": 1}


async def test_a_call_past_its_deadline_is_not_sent() -> None:
    """An answer that nobody can use is not paid for."""
    with running_sandbox() as url:
        async with engine(url) as one:
            found = await finish(one, [ticket(0, deadline=time.time() - 1.0), ticket(1, deadline=FOREVER)])
        assert stats(url)["served"] == 1
    assert kinds(found) == {"cancelled": 1, "ok": 1}
    failure = found[0].failure
    assert failure is not None
    assert "deadline" in failure.message


async def test_a_call_whose_deadline_passes_while_it_connects_is_not_sent() -> None:
    """A far host that does not answer at first, or a process that was stopped: it waits there as anywhere."""
    clock = StoppedClock()
    with running_sandbox() as url:
        async with engine(url, clock=clock) as one:
            tickets = [ticket(0, deadline=time.time() + 5.0), ticket(1, deadline=FOREVER)]
            one.submit(tickets)
            await asyncio.sleep(0)  # the slots have taken their calls and are connecting
            clock.ahead = 10.0
            found = await collect(one, tickets)
        assert stats(url)["served"] == 1
    assert kinds(found) == {"cancelled": 1, "ok": 1}
    failure = found[0].failure
    assert failure is not None
    assert ("deadline" in failure.message, failure.may_be_billed) == (True, False)


async def test_a_call_that_takes_too_long_may_have_been_billed() -> None:
    """Its slot is free again for the next call."""
    with running_sandbox(Settings(models={"slow": Behaviour(faults=Faults(hang=1.0))})) as url:
        async with engine(url, limits={"concurrency": 2}) as one:
            hanging = [ticket(n, upstream="slow", timeout_s=0.3) for n in range(2)]
            found = await finish(one, [*hanging, ticket(9)])
            assert one.room() > 0
    assert kinds(found) == {"timeout": 2, "ok": 1}
    assert all(o.failure.may_be_billed for o in found.values() if o.failure)


async def test_aborted_calls_end_as_cancelled_whether_sent_or_not() -> None:
    """What was sent may be billed; what waited was not."""
    with running_sandbox(Settings(models={"slow": Behaviour(faults=Faults(hang=1.0))})) as url:
        async with engine(url, limits={"concurrency": 2}) as one:
            tickets = [ticket(n, upstream="slow") for n in range(5)]
            one.submit(tickets)
            await until(lambda: stats(url)["failed"].get("hang", 0) == 2)
            one.abort(tickets)
            found = await collect(one, tickets)
            after = await finish(one, [ticket(9)])
    assert kinds(found) == {"cancelled": 5}
    assert sorted(o.failure.may_be_billed for o in found.values() if o.failure) == [False, False, False, True, True]
    assert kinds(after) == {"ok": 1}


async def test_a_cut_connection_may_have_been_billed_and_is_not_sent_again() -> None:
    """No retry hides below the lane's."""
    with running_sandbox(Settings(default=Behaviour(faults=Faults(cut=1.0)))) as url:
        async with engine(url) as one:
            found = await finish(one, [ticket(n) for n in range(10)])
        assert stats(url)["failed"] == {"cut": 10}
    assert kinds(found) == {"connection": 10}
    assert all(o.failure.may_be_billed for o in found.values() if o.failure)


async def test_a_refused_connection_is_not_billed() -> None:
    """Nobody was there to bill it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        async with engine(f"http://127.0.0.1:{taken.getsockname()[1]}") as one:
            found = await finish(one, [ticket()])
    failure = found[0].failure
    assert failure is not None
    assert (failure.kind, failure.may_be_billed) == ("connection", False)


async def test_half_an_answer_is_billed_and_names_its_request() -> None:
    """The provider did the work; the request id is how support finds it."""
    with running_sandbox(Settings(default=Behaviour(faults=Faults(invalid_json=1.0)))) as url:
        async with engine(url) as one:
            found = await finish(one, [ticket()])
    failure = found[0].failure
    assert failure is not None
    assert (failure.kind, failure.may_be_billed) == ("invalid_response", True)
    assert found[0].request_id


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("rate_limit", "rate_limited"),
        ("server_error", "server_error"),
        ("overloaded", "overloaded"),
        ("spend_cap", "spend_cap"),
        ("refuse", "refused"),
    ],
)
async def test_the_sandboxs_faults_come_back_as_what_they_are(protocol: str, fault: str, kind: str) -> None:
    """Wire formats of two sides that were written apart."""
    with running_sandbox(Settings(default=Behaviour(faults=Faults(**{fault: 1.0})))) as url:
        async with engine(url, protocol=protocol) as one:
            found = await finish(one, [ticket()])
    assert kinds(found) == {kind: 1}


async def test_after_a_refusal_for_its_rate_the_whole_account_waits_as_told() -> None:
    """Retry-After holds for every call of the account, not for the one that met it: two refusals at most, here."""
    limits = Behaviour(rpm=120)  # a minute's worth, then two a second
    with running_sandbox(Settings(default=limits)) as url:
        async with engine(url, limits={"concurrency": 1}) as one:
            found = await finish(one, [ticket(n) for n in range(124)], timeout=30)
        refused = stats(url)["failed"].get("rate_limit", 0)
    assert kinds(found)["ok"] + refused == 124
    assert refused <= 2


async def test_rates_of_the_account_are_kept_without_a_refusal() -> None:
    """The provider allows 1,200 a minute; so do we, and it never has to say no."""
    with running_sandbox(Settings(default=Behaviour(rpm=1200))) as url:
        async with engine(url, limits={"rpm": 1200, "concurrency": 8}) as one:
            began = time.monotonic()
            found = await finish(one, [ticket(n) for n in range(50)])
            took_s = time.monotonic() - began
        assert stats(url)["failed"] == {}
    assert kinds(found) == {"ok": 50}
    assert took_s > 1.0  # 20 at once, then 20 a second


async def test_realtime_calls_pass_those_that_wait() -> None:
    """One slot in eight is kept free of bulk."""
    with running_sandbox(Settings(models={"slow": Behaviour(latency_ms=400.0)})) as url:
        async with engine(url, limits={"concurrency": 8}) as one:
            bulk = [ticket(n, upstream="slow") for n in range(30)]
            one.submit(bulk)
            await until(lambda: one.gauges()["running"] == 7)
            assert one.gauges()["running"] == 7
            urgent = ticket(99, realtime=True)
            one.submit([urgent])
            first = (await one.outcomes())[0][0]
            assert first is urgent


async def test_redirects_are_not_followed(tmp_path: Path) -> None:
    """A key must not travel to where a redirect points."""
    seen: list[bytes] = []

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:9/steal\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    (tmp_path / "key").write_text("sk-secret")
    server = await asyncio.start_server(redirect, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with engine(f"http://127.0.0.1:{port}", api_key=f"file:{tmp_path / 'key'}") as one:
            found = await finish(one, [ticket()])
    assert kinds(found) == {"not_found": 1}
    assert len(seen) == 1
    assert b"Bearer sk-secret" in seen[0]
    assert "sk-secret" not in repr(found[0])


async def test_a_key_that_a_host_repeats_does_not_reach_the_record(tmp_path: Path) -> None:
    """Some gateways say in a 401 which key they refused."""

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        key = head.partition(b"Bearer ")[2].partition(b"\r")[0]
        body = b'{"error": {"message": "the key %s is not known here", "type": "auth"}}' % key
        writer.write(b"HTTP/1.1 401 X\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    (tmp_path / "key").write_text("sk-secret")
    server = await asyncio.start_server(tell, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with engine(f"http://127.0.0.1:{port}", api_key=f"file:{tmp_path / 'key'}") as one:
            found = await finish(one, [ticket()])
    assert kinds(found) == {"auth": 1}
    assert "the key *** is not known here" in repr(found[0])
    assert "sk-secret" not in repr(found[0])


async def test_a_request_that_cannot_be_said_is_the_items_failure() -> None:
    """Nothing is sent and nothing billed."""
    with running_sandbox() as url:
        async with engine(url, protocol="anthropic") as one:
            found = await finish(one, [ticket(body_json=b'{"messages":[]}'), ticket(1, body_json=b"[]"), ticket(2)])
        assert stats(url)["served"] == 1
    assert kinds(found) == {"bad_request": 2, "ok": 1}


class Ahead(SystemClock):
    """Time passes at a word."""

    by_s = 0.0

    def tick(self) -> float:
        return super().tick() + self.by_s


async def test_a_key_in_a_file_that_is_mended_is_taken_up(tmp_path: Path) -> None:
    """It was read once a process: an endless run was refused for ever, and so was the next job of a cluster."""
    key, clock = tmp_path / "key", Ahead()
    key.write_text("wrong")
    with running_sandbox(Settings(token="right")) as url:
        async with engine(url, api_key=f"file:{key}", clock=clock) as one:
            assert kinds(await finish(one, [ticket()])) == {"auth": 1}
            key.write_text("right")
            assert kinds(await finish(one, [ticket()])) == {"auth": 1}
            clock.by_s += 60.0
            assert kinds(await finish(one, [ticket()])) == {"ok": 1}
            key.unlink()
            clock.by_s += 60.0
            assert kinds(await finish(one, [ticket()])) == {"ok": 1}


async def test_a_wrong_key_is_told_apart(tmp_path: Path) -> None:
    """401 means that no call of this account can succeed."""
    (tmp_path / "key").write_text("right")
    with running_sandbox(Settings(token="right")) as url:
        async with engine(url) as one:
            assert kinds(await finish(one, [ticket()])) == {"auth": 1}
        async with engine(url, api_key=f"file:{tmp_path / 'key'}") as one:
            assert kinds(await finish(one, [ticket()])) == {"ok": 1}


async def test_a_large_body_goes_through() -> None:
    """Images make bodies of megabytes."""
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "x " * 1_500_000}]})
    with running_sandbox() as url:
        async with engine(url) as one:
            assert kinds(await finish(one, [ticket(body_json=body)])) == {"ok": 1}


async def test_an_answer_larger_than_is_read_is_a_failure() -> None:
    """Bounded, whether the provider tells the length or sends chunks."""

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        try:
            for _ in range(64):
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    async with server, engine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as one:
        found = await finish(one, [ticket()])
    assert kinds(found) == {"invalid_response": 1}


def test_an_address_that_is_none_is_a_spec_error() -> None:
    """Found at the start, not at the first call."""
    with pytest.raises(SpecError):
        ApiEngine(Account("a", "openai", "ftp://x"))


@pytest.mark.parametrize("governed", [False, True])
async def test_what_waits_for_a_long_pause_goes_back_to_its_lane(governed: bool) -> None:
    """Unsent and unpaid, with the time to wait, so that it may go elsewhere. Nothing more is taken meanwhile."""
    with running_sandbox(Settings(default=Behaviour(rpm=1, latency_ms=200.0))) as url:
        governor = Governor(msgspec.json.encode(Account("a", "openai", url, limits=Limits(concurrency=2))))
        async with engine(url, limits={"concurrency": 2}, governor=governor.lease if governed else None) as one:
            room = one.room()
            found = await finish(one, [*(ticket(n) for n in range(4)), ticket(4, realtime=True)])
            assert (room > 0, one.room()) == (True, 0)
    assert kinds(found) == {"ok": 1, "rate_limited": 1, "not_sent": 3}
    for outcome in found.values():
        if outcome.failure is not None:
            assert outcome.failure.retry_after_s is not None
            assert 30.0 < outcome.failure.retry_after_s <= 61.0
            assert not outcome.failure.may_be_billed


async def test_what_waits_behind_a_provider_that_hangs_goes_back_to_its_lane() -> None:
    """Unsent: each would wait for its whole timeout. What other models are asked is sent."""
    hangs = Behaviour(faults=Faults(hang=1.0))
    with running_sandbox(Settings(default=Behaviour(latency_ms=1.0), models={"hung": hangs})) as url:
        async with engine(url, limits={"concurrency": 5}) as one:
            hung = [ticket(n, upstream="hung", timeout_s=0.5, realtime=n == 19) for n in range(20)]
            found = await finish(one, [*hung, *(ticket(n) for n in range(20, 24))])
            count = kinds(found)
            assert (count["ok"], count["timeout"] + count["not_sent"]) == (4, 20)
            assert 10 <= count["timeout"] < 15
            assert not any(
                o.failure.may_be_billed for o in found.values() if o.failure and o.failure.kind == "not_sent"
            )


async def test_after_an_overload_fewer_calls_fly() -> None:
    """A 503 means slow down; no call is lost by it."""
    with running_sandbox(
        Settings(default=Behaviour(latency_ms=20.0), models={"busy": Behaviour(faults=Faults(overloaded=1.0))})
    ) as url:
        async with engine(url, limits={"concurrency": 16}) as one:
            assert kinds(await finish(one, [ticket(0, upstream="busy")])) == {"overloaded": 1}
            one.submit([ticket(n) for n in range(60)])
            most, done = 0.0, 0
            while done < 60:
                most = max(most, one.gauges()["running"])
                done += len(await one.outcomes())
    assert most < 16
