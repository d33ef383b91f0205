"""One governor, several dispatchers: together they stay within the account's limits, whoever is lost."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import urllib.request
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.catalog import Account, Limits
from penstock.engine.items import Call, Failure, Outcome, Usage
from penstock.engine.limits import Remaining
from penstock.jobs.sandbox import Behaviour, Settings, running_sandbox
from penstock.workers.engines import gates
from penstock.workers.engines.api import ApiEngine
from penstock.workers.engines.base import Right, Ticket
from penstock.workers.engines.gates import GovernedGate, OwnGate
from penstock.workers.governor import LEASE_S, LOST_S, Governor, Lease, Told, Use, Want
from penstock.workers.wire import Bucket, LimitHeaders

BODY = msgspec.json.encode({"messages": [{"role": "user", "content": "hello"}]})


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    def tick(self) -> float:
        return self.at


def account(**limits: Any) -> Account:
    return Account("a", "openai", "http://127.0.0.1:1/v1", limits=Limits(**limits))


def governor(clock: Hand, restarted: bool = False, **limits: Any) -> Governor:
    return Governor(msgspec.json.encode(account(**limits)), restarted=restarted, clock=clock)


async def lease(one: Governor, want: Want) -> Lease:
    return msgspec.msgpack.decode(await one.lease(msgspec.msgpack.encode(want)), type=Lease)


def call(n: int = 0) -> Call:
    return Call(f"{n:032x}", 0, 1, "primary", "m", "v", "m", BODY, "t", 64, 10.0, 12, 12)


async def test_an_account_without_rates_needs_no_rights() -> None:
    """Only the concurrency is shared."""
    one = governor(Hand(), concurrency=100)
    first = await lease(one, Want("d1", Use()))
    assert (first.open, first.concurrency) == (True, 100)
    assert (await lease(one, Want("d2", Use()))).concurrency == 50
    assert (await lease(one, Want("d1", Use()))).concurrency == 50


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 3.0), st.integers(1, 100)), min_size=5, max_size=60))
@settings(max_examples=60, deadline=None)
def test_together_they_never_pass_the_rate(steps: list[tuple[int, float, int]]) -> None:
    """In any minute at most `rpm` rights, whoever asks and whenever."""

    async def run() -> None:
        clock = Hand()
        one = governor(clock, rpm=60, concurrency=10_000)
        granted: list[tuple[float, int]] = []
        for who, wait_s, calls in steps:
            clock.at += wait_s
            got = await lease(one, Want(f"d{who}", Use(), calls))
            granted.append((clock.at, got.calls))
        for at, _ in granted:
            assert sum(n for t, n in granted if at <= t < at + 60.0) <= 60

    asyncio.run(run())


async def test_one_dispatchers_refusal_holds_all() -> None:
    """Deployments that share an upstream share its Retry-After (litellm#34399)."""
    clock = Hand()
    one = governor(clock, concurrency=100)
    assert (await lease(one, Want("d2", Use(), 10))).open
    await lease(one, Want("d1", Use(), refusals=[("rate_limited", 7.0)], flew=50))
    held = await lease(one, Want("d2", Use(), 10))
    assert (held.open, held.calls, held.wait_s) == (False, 0, pytest.approx(7.0))
    clock.at += 7.01
    assert (await lease(one, Want("d2", Use(), 10))).calls == 10


async def test_headers_that_tell_of_scarcity_close_the_account() -> None:
    """And the limit that they tell is kept from then on, though nobody declared it."""
    clock = Hand()
    one = governor(clock, concurrency=100)
    await lease(
        one, Want("d1", Use(), told=Told(Remaining(requests=2, requests_reset_s=1.0), Limits(rpm=60, concurrency=100)))
    )
    got = [await lease(one, Want("d1", Use(), 50)) for _ in range(3)]
    assert not got[0].open
    assert sum(g.calls for g in got) <= 2


async def test_scarcity_told_with_or_after_a_refusal_does_not_end_its_pause() -> None:
    """At one dispatcher alone and at the governor; other limits of the account's next model don't either."""
    refused = Failure("rate_limited", "slow down", 429, 30.0)
    gate, tick = OwnGate(account()), 0.0
    assert gate.admit(call(), tick) == 0.0
    gate.settle(call(), True, None, refused, tick)
    gate.told(LimitHeaders(requests=Bucket(500, 0, 60.0)), tick)
    assert gate.admit(call(1), 29.0) > 0

    clock = Hand()
    one = governor(clock, concurrency=100)
    told = Told(Remaining(requests=0, requests_reset_s=1.0), Limits(rpm=500, concurrency=100))
    await lease(one, Want("d1", Use(flying=1), 10, refusals=[("rate_limited", 30.0)], told=told))
    clock.at += 20.0
    other = Told(Remaining(tokens=500, tokens_reset_s=0.1), Limits(tpm=100_000, concurrency=100))
    assert (await lease(one, Want("d1", Use(), 10, told=other))).calls == 0
    clock.at += 11.0
    assert (await lease(one, Want("d1", Use(), 10))).calls > 0


async def test_a_pause_outlives_later_trouble_that_asks_for_less() -> None:
    """An account without rates is watched as long as its longest Retry-After."""
    gate = OwnGate(account(concurrency=1))
    assert [gate.admit(call(n), 0.0) for n in range(3)] == [0.0] * 3
    gate.settle(call(0), True, None, Failure("rate_limited", "slow down", 429, 100.0), 0.0)
    gate.settle(call(1), True, None, Failure("overloaded", "busy", 503), 1.0)
    gate.settle(call(2), True, Usage(1, output=1), None, 62.0)
    assert gate.admit(call(3), 62.0) == pytest.approx(38.0)
    assert gate.paused(62.0) == pytest.approx(38.0)


async def test_dispatchers_hear_of_a_pause_that_another_met() -> None:
    """They give back what waits for it."""
    clock = Hand()
    one = governor(clock, concurrency=100)
    gate, woken = GovernedGate(account(concurrency=100), one.lease, "d2", clock), asyncio.Event()
    task = asyncio.create_task(gate.run(woken.set))
    await woken.wait()
    assert gate.paused(clock.tick()) == 0.0
    await lease(one, Want("d1", Use(), refusals=[("rate_limited", 90.0)], flew=50))
    woken.clear()
    await woken.wait()
    assert gate.paused(clock.tick()) == pytest.approx(90.0)
    assert gate.admit(call(), clock.tick()) > 0.0
    task.cancel()


async def test_a_restarted_governor_waits_until_former_leases_have_lapsed() -> None:
    """Whether it was told of the restart, or sees a dispatcher that already has a past."""
    for restarted, use in ((True, Use()), (False, Use(est_calls=5, calls=5, flying=3))):
        clock = Hand()
        one = governor(clock, restarted=restarted, rpm=600)
        assert (await lease(one, Want("d1", use, 4))).calls == 0
        assert (await lease(one, Want("new", Use(), 4))).calls == 0
        clock.at += LEASE_S + 0.01
        assert (await lease(one, Want("d1", use, 4))).calls > 0


async def test_a_lost_report_is_made_good_by_the_next() -> None:
    """Use is cumulative: rights that were not used come back even when their own report never arrived."""
    clock = Hand()
    one = governor(clock, input_tpm=61_000, concurrency=100)
    assert (await lease(one, Want("d1", Use(), 1, 1000, 1))).calls == 1
    assert (await lease(one, Want("d1", Use(flying=1), 1, 1000, 1))).calls == 0
    # Two reports were due, only the second comes: the call really used 10 of its 1,000 tokens.
    assert (await lease(one, Want("d1", Use(1, 1000, 1, 1, 10, 1), 1, 900, 1))).calls == 1


async def test_a_silent_dispatchers_share_goes_to_the_others() -> None:
    """A killed dispatcher must not hold half of the account for ever."""
    clock = Hand()
    one = governor(clock, rpm=6000, concurrency=10)
    got = await lease(one, Want("dead", Use(), 10))
    assert got.calls == 10
    assert (await lease(one, Want("d1", Use(), 10))).calls == 0
    clock.at += LOST_S + 1.0
    assert (await lease(one, Want("d1", Use(), 10))).calls == 10
    assert (await one.state())["dispatchers"] == 1.0


async def test_the_gate_sends_nothing_on_lapsed_rights() -> None:
    """When its governor is gone, an account with rates stands still after a second."""
    clock = Hand()
    one = governor(clock, rpm=600)
    alive = True

    async def ask(data: bytes) -> bytes:
        if not alive:
            raise ConnectionError("the actor is restarting")
        return await one.lease(data)

    gate = GovernedGate(account(rpm=600), ask, "d1", clock)
    woken = asyncio.Event()
    assert gate.admit(call(), clock.tick()) > 0.0
    task = asyncio.create_task(gate.run(woken.set))
    await woken.wait()
    assert gate.admit(call(), clock.tick()) == 0.0
    alive = False
    clock.at += LEASE_S
    assert gate.admit(call(), clock.tick()) > 0.0
    task.cancel()


async def test_the_gate_passes_refusals_on_and_holds_at_once() -> None:
    """Before the governor has even heard of it, nothing more goes from here."""
    clock = Hand()
    one = governor(clock, concurrency=10)
    gate = GovernedGate(account(concurrency=10), one.lease, "d1", clock)
    woken = asyncio.Event()
    task = asyncio.create_task(gate.run(woken.set))
    await woken.wait()
    mine = call()
    assert gate.admit(mine, clock.tick()) == 0.0
    gate.settle(mine, True, None, Failure("rate_limited", "x", 429, 3.0), clock.tick())
    assert gate.admit(call(), clock.tick()) == pytest.approx(3.0)
    woken.clear()
    await woken.wait()
    assert not (await lease(one, Want("d2", Use(), 1))).open
    task.cancel()


async def test_the_gate_tells_the_governor_what_headers_say() -> None:
    """The share of limits used is known before any refusal."""
    clock = Hand()
    one = governor(clock, concurrency=10)
    gate = GovernedGate(account(concurrency=10), one.lease, "d1", clock)
    woken = asyncio.Event()
    task = asyncio.create_task(gate.run(woken.set))
    await woken.wait()
    mine = call()
    gate.admit(mine, clock.tick())
    gate.told(LimitHeaders(requests=Bucket(60, 1, 59.0)), clock.tick())
    gate.settle(mine, True, Usage(1, output=1), None, clock.tick())
    woken.clear()
    await woken.wait()
    assert (await one.state())["open"] == 0.0
    task.cancel()


async def run_all(engines: list[ApiEngine], n: int) -> list[str]:
    right = Right("r", 0, (1, 1), time.time() + 600)
    ids = itertools.count()
    for one in engines:
        await one.start()
    for one in engines:
        one.submit([Ticket(call(next(ids)), right, None) for _ in range(n)])

    async def drain(one: ApiEngine) -> list[str]:
        found: list[str] = []
        while len(found) < n:
            found += [o.failure.kind if o.failure else "ok" for _, o in await one.outcomes()]
        return found

    async with asyncio.timeout(40):
        both = await asyncio.gather(*map(drain, engines))
    for one in engines:
        await one.close()
    return [kind for part in both for kind in part]


def failed(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/stats") as response:
        return json.load(response)["failed"]


async def test_two_engines_keep_one_accounts_rate() -> None:
    """Against a provider that counts: it never has to refuse, and nothing is left over."""
    limits = Limits(rpm=1200, concurrency=16)
    with running_sandbox(Settings(default=Behaviour(rpm=1200))) as url:
        shared = Account("a", "openai", f"{url}/v1", limits=limits, provider="sandbox")
        one = Governor(msgspec.json.encode(shared))
        engines = [ApiEngine(shared, governor=one.lease, worker=f"d{n}") for n in range(2)]
        began = time.monotonic()
        kinds = await run_all(engines, 30)
        took_s = time.monotonic() - began
        assert failed(url) == {}
    assert kinds == ["ok"] * 60
    assert took_s > 1.5  # 60 calls at 20 a second, 20 of them at once


async def test_engines_outlive_their_governor() -> None:
    """It dies and comes back empty in the middle: they wait, ask again, and every call is answered once."""
    limits = Limits(rpm=2400, concurrency=8)
    with running_sandbox(Settings(default=Behaviour(rpm=2400))) as url:
        shared = Account("a", "openai", f"{url}/v1", limits=limits, provider="sandbox")
        data = msgspec.json.encode(shared)
        lives = [Governor(data)]
        asked = 0

        async def ask(want: bytes) -> bytes:
            nonlocal asked
            asked += 1
            if asked == 12:
                lives.append(Governor(data, restarted=True))
            if 8 <= asked < 12:
                raise ConnectionError("the actor is restarting")
            return await lives[-1].lease(want)

        kinds = await run_all([ApiEngine(shared, governor=ask, worker=f"d{n}") for n in range(2)], 60)
        assert failed(url) == {}
    assert asked > 12
    assert kinds == ["ok"] * 120


async def test_a_lease_whose_reply_gets_lost_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides live: without another question nothing would ever be sent again."""
    monkeypatch.setattr(gates, "LEASE_LOST_S", 0.1)
    limits = Limits(rpm=6000, concurrency=8)
    with running_sandbox() as url:
        shared = Account("a", "openai", f"{url}/v1", limits=limits, provider="sandbox")
        one = Governor(msgspec.json.encode(shared))
        asked = 0

        async def ask(want: bytes) -> bytes:
            nonlocal asked
            asked += 1
            answer = await one.lease(want)
            if asked == 2:
                await asyncio.Event().wait()
            return answer

        assert await run_all([ApiEngine(shared, governor=ask)], 60) == ["ok"] * 60
    assert asked > 2


async def test_a_pause_goes_on_for_all_when_a_lone_dispatcher_gets_company() -> None:
    """Its Retry-After holds for itself, and through the governor for those that come."""
    clock = Hand()
    one, alone = governor(clock, concurrency=10), OwnGate(account(concurrency=10))
    assert alone.admit(call(), clock.tick()) == 0.0
    alone.settle(call(), True, None, Failure("rate_limited", "x", 429, 40.0), clock.tick())
    clock.at += 10.0
    gate, woken = GovernedGate(account(concurrency=10), one.lease, "d1", clock, alone=alone), asyncio.Event()
    assert gate.admit(call(), clock.tick()) == pytest.approx(30.0)
    task = asyncio.create_task(gate.run(woken.set))
    await woken.wait()
    held = await lease(one, Want("d2", Use(), 1))
    assert (held.calls, held.paused_s) == (0, pytest.approx(30.0))
    task.cancel()


@pytest.mark.parametrize("limits", [Limits(concurrency=2), Limits(rpm=60_000, concurrency=2)])
async def test_a_dispatcher_at_its_full_share_does_not_ask_all_the_time(limits: Limits) -> None:
    """Its heartbeat tells of a larger share; a call that ends lets the next go at once."""
    clock, asked = Hand(), 0
    shared = Account("a", "openai", "http://127.0.0.1:1/v1", limits=limits)
    one = Governor(msgspec.json.encode(shared), clock=clock)

    async def ask(want: bytes) -> bytes:
        nonlocal asked
        asked += 1
        return await one.lease(want)

    gate = GovernedGate(shared, ask, "d1", clock)
    flying: list[Call] = []

    def go() -> None:
        """As slots do, whenever they are woken."""
        while gate.admit(mine := call(), clock.tick()) == 0.0:
            flying.append(mine)

    task = asyncio.create_task(gate.run(go))
    async with asyncio.timeout(5):
        while len(flying) < 2:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    asked = 0
    for _ in range(50):
        await asyncio.sleep(0.02)
        go()
    assert asked <= 4
    gate.settle(flying.pop(), True, Usage(1, output=1), None, clock.tick())
    go()
    async with asyncio.timeout(0.4):
        while len(flying) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()


async def test_a_dispatcher_that_was_alone_shares_the_account_once_another_comes() -> None:
    """Its calls in flight count at once, and end as any; then each of the two has its half."""
    with running_sandbox(Settings(default=Behaviour(latency_ms=300.0))) as url:
        shared = Account("a", "openai", f"{url}/v1", limits=Limits(concurrency=16), provider="sandbox")
        one, right = Governor(msgspec.json.encode(shared)), Right("r", 0, (1, 1), time.time() + 600)
        first = ApiEngine(shared, worker="first")
        await first.start()
        first.submit([Ticket(call(n), right, None) for n in range(14)])
        async with asyncio.timeout(5):
            while first.gauges()["running"] < 14:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.001)
        await first.govern(one.lease)
        assert (await one.state())["in_flight"] == 14
        assert (await lease(one, Want("second", Use()))).concurrency == 8
        found: list[Outcome] = []
        async with asyncio.timeout(20):
            while len(found) < 14:
                found += [outcome for _, outcome in await first.outcomes()]
        assert [outcome.failure for outcome in found] == [None] * 14
        async with asyncio.timeout(20):  # told by the next heartbeat
            while (await one.state())["in_flight"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await first.close()


async def test_an_open_account_is_as_fast_with_a_governor() -> None:
    """The hot path asks nobody: a few heartbeats, however many calls."""
    with running_sandbox() as url:
        shared = Account("a", "openai", f"{url}/v1", limits=Limits(concurrency=32), provider="sandbox")
        one = Governor(msgspec.json.encode(shared))
        asked = 0

        async def ask(want: bytes) -> bytes:
            nonlocal asked
            asked += 1
            return await one.lease(want)

        kinds = await run_all([ApiEngine(shared, governor=ask)], 1500)
    assert kinds == ["ok"] * 1500
    assert asked < 100
