"""An account's limits are obeyed, whoever asks and whatever comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.catalog import Limits
from penstock.engine.limits import AccountLimits, Ask, Grant, Remaining

NOW = 1_700_000_000.0


def test_without_limits_only_concurrency_holds() -> None:
    """Nothing declared: the whole ask is granted, up to the calls in flight."""
    limits = AccountLimits(Limits(concurrency=10))
    assert limits.grant(Ask(8, 10**9, 10**9), NOW).calls == 8
    assert limits.grant(Ask(8), NOW).calls == 2
    full = limits.grant(Ask(8), NOW)
    assert (full.calls, full.wait_s > 0) == (0, True)
    limits.settle(Grant(8), Ask(8), NOW)
    assert limits.in_flight == 2


@given(
    st.integers(1, 5_000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 300)), min_size=1, max_size=60),
)
def test_no_minute_sees_more_requests_than_the_limit(rpm: int, asks: list[tuple[float, int]]) -> None:
    """Over any 60 seconds, however the asks fall, at most the limit is granted (and one call more at tiny limits)."""
    limits = AccountLimits(Limits(rpm=rpm, concurrency=10**6))
    now, sent = NOW, list[tuple[float, int]]()
    for pause, want in asks:
        now += pause
        sent.append((now, limits.grant(Ask(want), now).calls))
        window = sum(n for at, n in sent if now - at <= 60.0)
        assert window <= rpm + 1 if rpm <= 2 else window <= rpm


@given(st.integers(1_000, 10**6), st.lists(st.tuples(st.floats(0, 20), st.integers(1, 50)), max_size=60))
def test_no_minute_sees_more_tokens_than_the_limit_and_one_call(tpm: int, asks: list[tuple[float, int]]) -> None:
    """Input and output together; a call larger than the bucket goes when it is full, and the next ones wait."""
    limits = AccountLimits(Limits(tpm=tpm, concurrency=10**6))
    now, sent = NOW, list[tuple[float, int]]()
    for pause, calls in asks:
        now += pause
        grant = limits.grant(Ask(calls, 700 * calls, 300 * calls), now)
        sent.append((now, grant.input_tokens + grant.output_tokens))
        assert sum(n for at, n in sent if now - at <= 60.0) <= tpm + 1_000


@given(st.integers(1, 2_000), st.integers(1, 100_000))
def test_who_waits_as_told_gets_through(rpm: int, tokens: int) -> None:
    """`wait_s` is enough, and not for ever: even a call larger than the whole limit goes."""
    limits = AccountLimits(Limits(rpm=rpm, input_tpm=10_000))
    now = NOW
    for _ in range(3):
        wait = limits.admit(tokens, 0, now)
        assert wait <= 60.0 * (1 + tokens / 10_000) + 61
        if wait > 0:
            assert limits.admit(tokens, 0, now + wait + 1e-6) == 0.0
            now += wait + 1e-6


def test_the_bucket_learns_what_was_really_used() -> None:
    """An estimate that was too high gives tokens back; one that was too low takes them."""

    def wait(actual: int) -> float:
        limits = AccountLimits(Limits(output_tpm=61_000))
        grant = limits.grant(Ask(1, 0, 1_000), NOW)
        limits.settle(grant, Ask(1, 0, actual), NOW)
        return limits.admit(0, 1_000, NOW)

    assert wait(0) == 0.0
    assert wait(1_000) == pytest.approx(1.0)
    assert wait(3_000) == pytest.approx(3.0)


def test_unused_rights_come_back() -> None:
    """Calls that were granted and not sent leave the bucket as it was."""
    limits = AccountLimits(Limits(rpm=610, concurrency=100))
    grant = limits.grant(Ask(10), NOW)
    assert grant.calls == 10
    assert limits.grant(Ask(1), NOW).calls == 0
    limits.settle(grant, Ask(0), NOW)
    assert limits.grant(Ask(10), NOW).calls == 10


def test_the_provider_knows_better_when_less_remains() -> None:
    """Headers lower a bucket and never raise it; from nothing left it fills at the declared rate."""
    limits = AccountLimits(Limits(rpm=6_100))
    limits.observe(Remaining(requests=10**6, requests_reset_s=1.0), NOW)
    assert limits.grant(Ask(500), NOW).calls == 100
    limits = AccountLimits(Limits(rpm=6_100))
    limits.observe(Remaining(requests=3, requests_reset_s=1.0), NOW)
    assert limits.grant(Ask(500), NOW).calls == 3
    limits = AccountLimits(Limits(rpm=6_100))
    limits.observe(Remaining(requests=0, requests_reset_s=60.0), NOW)
    assert limits.admit(0, 0, NOW) == pytest.approx(0.01)


def test_headers_limit_an_account_without_declared_limits() -> None:
    """What the provider says is left is obeyed until its reset."""
    limits = AccountLimits(Limits())
    limits.observe(Remaining(input_tokens=1_000, input_tokens_reset_s=5.0), NOW)
    assert limits.grant(Ask(10, 5_000), NOW).calls == 2
    assert limits.admit(500, 0, NOW + 1) == pytest.approx(4.0)
    assert limits.admit(500, 0, NOW + 5) == 0.0


def test_a_rate_limit_stops_everybody_as_long_as_told() -> None:
    """Retry-After holds the whole account; without one the pause doubles, once for a burst."""
    limits = AccountLimits(Limits())
    limits.throttled("rate_limited", 12.5, NOW)
    assert limits.admit(1, 1, NOW) == pytest.approx(12.5)
    assert limits.admit(1, 1, NOW + 12.5) == 0.0
    limits = AccountLimits(Limits())
    for _ in range(5):
        limits.throttled("rate_limited", None, NOW)
    assert limits.admit(1, 1, NOW) == pytest.approx(1.0)
    limits.throttled("rate_limited", None, NOW + 2)
    assert limits.admit(1, 1, NOW + 2) == pytest.approx(2.0)


def test_an_overload_stops_an_account_for_a_minute_at_most() -> None:
    """It is one model's, and may ask for an hour: that is for breakers. What a rate limit asks for is obeyed."""
    limits = AccountLimits(Limits())
    limits.throttled("overloaded", 3_600.0, NOW)
    assert limits.admit(1, 1, NOW) == pytest.approx(60.0)
    limits.throttled("rate_limited", 3_600.0, NOW)
    assert limits.admit(1, 1, NOW) == pytest.approx(3_600.0)


def test_overload_halves_what_flies_and_success_slowly_brings_it_back() -> None:
    """One decrease a second however many fail; each full window of answers adds one call."""
    limits = AccountLimits(Limits(concurrency=64))
    grant = limits.grant(Ask(64), NOW)
    for _ in range(64):
        limits.throttled("overloaded", None, NOW)
    assert limits.window == 32
    limits.settle(grant, Ask(64), NOW)
    assert limits.window == 32, "refused calls that come home amid the storm bring nothing back"
    for i in range(32):
        one = limits.grant(Ask(1), NOW + i)
        limits.settle(one, Ask(1), NOW + i)
    assert limits.window in (32, 33)
    for i in range(100_000):
        one = limits.grant(Ask(1), NOW + i)
        limits.settle(one, Ask(1), NOW + i)
    assert limits.window == 64


def test_overload_told_after_the_calls_are_home_still_means_the_calls() -> None:
    """What was too many is what flew, not what is left of it when the refusals are read."""
    limits = AccountLimits(Limits(concurrency=64))
    limits.settle(limits.grant(Ask(64), NOW), Ask(64), NOW)
    limits.throttled("overloaded", None, NOW)
    assert limits.window == 32


def test_a_lost_dispatcher_holds_no_place() -> None:
    """Its calls are forgotten; the others' are not."""
    limits = AccountLimits(Limits(concurrency=4))
    limits.grant(Ask(3), NOW, "a")
    limits.grant(Ask(1), NOW, "b")
    limits.forget("a")
    assert limits.in_flight == 1
    assert limits.grant(Ask(9), NOW, "b").calls == 3


def test_metrics_tell_how_close_the_limit_is() -> None:
    """Every bucket stands between 0 and 1."""
    limits = AccountLimits(Limits(rpm=610, concurrency=20))
    limits.grant(Ask(10), NOW)
    used = limits.used(NOW)
    assert used["requests"] == pytest.approx(1.0)
    assert used["concurrency"] == pytest.approx(0.5)
    assert used["tokens"] == 0.0


@given(st.lists(st.one_of(st.none(), st.integers(1, 100_000)), min_size=1, max_size=8), st.floats(0, 29.9))
def test_limits_learned_amid_trouble_end_neither_a_pause_nor_a_smaller_window(
    told: list[int | None], at: float
) -> None:
    """Headers of one account's several models may tell of different limits, again and again."""
    limits = AccountLimits(Limits(concurrency=100))
    assert limits.grant(Ask(80), NOW).calls == 80
    limits.throttled("rate_limited", 30.0, NOW)
    window = limits.window
    assert window < 100
    for rpm in told:
        limits.learn(Limits(rpm=rpm, concurrency=100), NOW + at)
    assert (limits.window, limits.in_flight) == (window, 80)
    assert limits.admit(1, 1, NOW + at) > 0
    limits.settle(Grant(80), Ask(80), NOW + at)
    assert limits.admit(1, 1, NOW + at) == pytest.approx(30.0 - at)


@given(st.integers(10, 10_000), st.integers(10, 10_000))
def test_a_learned_limit_gives_back_nothing_that_was_used(first: int, second: int) -> None:
    """Two limits told in turn don't fill the bucket each time."""
    limits = AccountLimits(Limits(concurrency=10**6))
    limits.learn(Limits(rpm=first, concurrency=10**6), NOW)
    sent = 0
    for turn in range(20):
        sent += limits.grant(Ask(10**6), NOW + turn * 0.1).calls
        limits.learn(Limits(rpm=(second, first)[turn % 2], concurrency=10**6), NOW + turn * 0.1)
    assert sent <= max(first, second)
