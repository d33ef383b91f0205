"""Every failure ends: again, elsewhere, or in a dead letter with the fitting reason."""

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.items import Failure, FailureKind
from penstock.engine.results import RETRYABLE_REASONS
from penstock.engine.retry import Again, History, RetryBudget, RetrySettings, Stop, Target, after, moved_to

NOW = 1_700_000_000.0
ONE, TWO = (Target(),), (Target(), Target())
KINDS: tuple[FailureKind, ...] = typing.get_args(FailureKind)


def decide(
    kind: FailureKind, history: History | None = None, targets: tuple[Target, ...] = TWO, **failure: object
) -> Again | Stop:
    return after(Failure(kind, "m", **failure), history or History(), targets, RetrySettings(), 0.5, NOW)  # type: ignore[arg-type]


def story(kind: FailureKind, targets: tuple[Target, ...]) -> list[str]:
    """What happens when every call fails in the same way."""
    told, history = list[str](), History()
    while True:
        decision = decide(kind, history, targets)
        if isinstance(decision, Stop):
            return [*told, decision.reason]
        told.append(f"{decision.role} {decision.candidate}")
        history = decision.history


@pytest.mark.parametrize(
    ("kind", "one", "two"),
    [
        ("bad_request", ["bad_request"], ["fallback 1", "bad_request"]),
        ("refused", ["refused"], ["fallback 1", "refused"]),
        ("too_long", ["too_long"], ["fallback 1", "too_long"]),
        ("invalid_output", ["retry 0", "invalid_output"], ["retry 0", "fallback 1", "retry 1", "invalid_output"]),
        (
            "server_error",
            ["retry 0"] * 5 + ["attempts_exhausted"],
            ["retry 0", "retry 0", "fallback 1", "retry 1", "retry 1", "attempts_exhausted"],
        ),
        ("engine_died", ["retry 0", "retry 0", "attempts_exhausted"], ["retry 0", "retry 0", "attempts_exhausted"]),
        ("cancelled", ["cancelled"], ["cancelled"]),
    ],
)
def test_what_follows_what(kind: FailureKind, one: list[str], two: list[str]) -> None:
    """The whole story of an item whose every call fails alike, with one target and with two."""
    assert story(kind, ONE) == one
    assert story(kind, TWO) == two


@pytest.mark.parametrize("kind", ["auth", "spend_cap", "not_found"])
def test_what_a_person_has_to_mend_ends_no_item(kind: FailureKind) -> None:
    """A wrong key, a spent account, an unknown model: the next target at once, then the item is held, uncounted."""
    moved = decide(kind)
    assert isinstance(moved, Again)
    assert (moved.candidate, moved.at, moved.history.counted) == (1, NOW, 0)
    held = decide(kind, moved.history)
    assert isinstance(held, Again)
    assert (held.candidate, held.at >= NOW + 60, held.history) == (1, True, moved.history)
    for_good = decide(kind, targets=(Target(up=False, probe_at=float("inf")),))
    assert isinstance(for_good, Again)
    assert for_good.at == float("inf")


def test_another_models_answers_are_paid_for_a_few_times_at_most() -> None:
    """Where everybody answers as another the item is held until a person mends it; each look is paid, and counts."""
    down, history, looks = (Target(up=False, probe_at=NOW + 300),), History(), 0
    while isinstance(decision := decide("other_model", history, down), Again):
        assert decision.at == NOW + 300
        history, looks = decision.history, looks + 1
    assert (looks, decision.reason) == (5, "attempts_exhausted")
    assert story("other_model", TWO) == ["fallback 1", "attempts_exhausted"]


def test_retry_after_is_obeyed_and_a_long_one_moves_on() -> None:
    """Never earlier than told; above the patience the next target is tried at once; alone, it waits even an hour."""
    short = decide("rate_limited", retry_after_s=5.0)
    assert isinstance(short, Again)
    assert (short.candidate, short.at >= NOW + 5, short.at < NOW + 6) == (0, True, True)
    assert short.history.counted == 0
    long = decide("rate_limited", retry_after_s=3_600.0)
    assert isinstance(long, Again)
    assert (long.candidate, long.at, long.role) == (1, NOW, "fallback")
    again = decide("rate_limited", long.history, retry_after_s=3_600.0)
    assert isinstance(again, Again)
    assert again.at >= NOW + 3_600, "two limited targets are not asked in turns"
    alone = decide("rate_limited", targets=ONE, retry_after_s=3_600.0)
    assert isinstance(alone, Again)
    assert alone.at >= NOW + 3_600
    told = decide("server_error", retry_after_s=9.0)
    assert isinstance(told, Again)
    assert told.at >= NOW + 9


@pytest.mark.parametrize("told", [0.05, 1.0, 5.0])
def test_a_short_wait_that_is_said_again_and_again_uses_up_no_item_in_seconds(told: float) -> None:
    """Many share a limit; each is told to come back soon, and finds it spent. At first the word is taken as it is."""
    failure, history, now = Failure("rate_limited", "m", retry_after_s=told), History(), NOW
    while isinstance(decision := after(failure, history, ONE, RetrySettings(), 0.5, now), Again):
        assert decision.at >= now + told
        assert history.waits > 10 or decision.at <= now + 1.1 * told
        history, now = decision.history, decision.at
    assert (history.waits, now - NOW > 3_600) == (200, True)


def test_a_days_limit_holds_what_met_it_as_what_waits_behind_it() -> None:
    """The items that were at the provider when its day was spent are not dead beside thousands that wait for tomorrow.
    An outage of that length is none to wait out."""
    spent = (Target(up=False, probe_at=NOW + 50_000),)
    waits = decide("daily_limit", targets=spent, retry_after_s=50_000.0)
    assert isinstance(waits, Again)
    assert (waits.candidate, waits.at >= NOW + 50_000) == (0, True)
    away = decide("overloaded", targets=spent)
    assert isinstance(away, Stop)


@pytest.mark.parametrize("kind", ["overloaded", "server_error"])
def test_a_target_that_asks_for_a_long_wait_is_left_for_one_that_is_well(kind: FailureKind) -> None:
    """An item must not wait an hour beside a healthy fallback. Two that both ask for it are not asked in turns, and the
    first is tried again after the wait."""
    moved = decide(kind, retry_after_s=3_600.0)
    assert isinstance(moved, Again)
    assert (moved.candidate, moved.at, moved.role, moved.history.left) == (1, NOW, "fallback", ())
    waits = decide(kind, moved.history, retry_after_s=3_600.0)
    assert isinstance(waits, Again)
    assert (waits.candidate, waits.at >= NOW + 3_600) == (1, True)
    back = decide(kind, waits.history, retry_after_s=3_600.0)
    assert isinstance(back, Again)
    assert (back.candidate, back.at) == (0, NOW)
    down = decide(kind, targets=(Target(), Target(up=False, probe_at=NOW + 30)), retry_after_s=3_600.0)
    assert isinstance(down, Again)
    assert (down.candidate, down.at >= NOW + 3_600) == (0, True)


def test_what_was_given_back_unsent_moves_on_or_waits_as_long_as_its_account() -> None:
    """Nothing is counted, however often; two accounts that pause are not asked in turns."""
    moved = decide("not_sent", retry_after_s=60.0)
    assert isinstance(moved, Again)
    assert (moved.candidate, moved.at, moved.history.counted, moved.history.waits) == (1, NOW, 0, 0)
    waits = decide("not_sent", moved.history, retry_after_s=60.0)
    assert isinstance(waits, Again)
    assert (waits.candidate, waits.at, waits.history) == (1, NOW + 60, moved_to(History(), 1))
    short = decide("not_sent", retry_after_s=8.0)
    assert isinstance(short, Again)
    assert (short.candidate, short.at, short.history) == (0, NOW + 8, History())


@pytest.mark.parametrize("kind", ["not_sent", "rate_limited"])
def test_while_an_account_pauses_no_other_model_of_it_is_asked(kind: FailureKind) -> None:
    """It would wait as long, and then be paid at its own price: only another account's helps, also where a deadline
    comes first. A model's own overload is another matter."""
    one = (Target(account="a"), Target(account="a"))
    waits = decide(kind, targets=one, retry_after_s=60.0)
    assert isinstance(waits, Again)
    assert (waits.candidate, waits.at >= NOW + 60, waits.history.left) == (0, True, ())
    failure = Failure(kind, "m", retry_after_s=60.0)
    late = after(failure, History(), one, RetrySettings(), 0.5, NOW, NOW + 30)
    assert isinstance(late, Stop)
    two = (*one, Target(account="b"))
    for deadline in (None, NOW + 30):
        moved = after(failure, History(), two, RetrySettings(), 0.5, NOW, deadline)
        assert isinstance(moved, Again)
        assert (moved.candidate, moved.at) == (2, NOW)
    waits = decide(kind, decide(kind, targets=two, retry_after_s=60.0).history, two, retry_after_s=60.0)  # type: ignore[union-attr]
    assert isinstance(waits, Again)
    assert (waits.candidate, waits.at >= NOW + 60) == (2, True)
    busy = decide("overloaded", targets=one, retry_after_s=60.0)
    assert isinstance(busy, Again)
    assert (busy.candidate, busy.at) == (1, NOW)


def test_a_longer_context_helps_a_long_prompt_and_a_shorter_one_does_not() -> None:
    """`too_long` goes to a larger context only."""
    assert isinstance(decide("too_long", targets=(Target(8_000), Target(4_000))), Stop)
    moved = decide("too_long", targets=(Target(8_000), Target(4_000), Target(16_000)))
    assert isinstance(moved, Again)
    assert moved.candidate == 2


def test_an_outage_is_not_the_items_fault() -> None:
    """While its only target is down an item waits for the probe, uncounted; a target that is gone for good holds it."""
    down = decide("connection", targets=(Target(up=False, probe_at=NOW + 30),))
    assert isinstance(down, Again)
    assert down.history.counted == 0
    assert down.at >= NOW + 30
    elsewhere = decide("connection", targets=(Target(up=False, probe_at=NOW + 30), Target()))
    assert isinstance(elsewhere, Again)
    assert elsewhere.candidate == 1
    gone = decide("connection", targets=(Target(up=False, probe_at=float("inf")),))
    assert isinstance(gone, Again)
    assert gone.at == float("inf")


def test_a_target_without_retry_budget_is_left_or_slowed() -> None:
    """In a storm the item goes to its next target, or comes back much later."""
    moved = decide("overloaded", targets=(Target(may_retry=False), Target()))
    assert isinstance(moved, Again)
    assert moved.candidate == 1
    slow = decide("overloaded", targets=(Target(may_retry=False),))
    assert isinstance(slow, Again)
    assert slow.at >= NOW + 15


def test_nothing_is_tried_after_the_deadline() -> None:
    """A retry that would come too late is a dead letter now."""
    late = after(Failure("rate_limited", "m", retry_after_s=60.0), History(), ONE, RetrySettings(), 0.5, NOW, NOW + 59)
    assert isinstance(late, Stop)
    assert late.reason == "deadline"
    over = after(Failure("engine_died", "m"), History(), TWO, RetrySettings(), 0.5, NOW, NOW)
    assert isinstance(over, Stop)
    assert over.reason == "deadline"


@pytest.mark.parametrize(
    ("failure", "left_s"),
    [
        (Failure("overloaded", "m", 503, 90.0), 60.0),
        (Failure("rate_limited", "m", 429, 10.0), 5.0),
        (Failure("server_error", "m", 500), 0.2),
    ],
)
def test_a_wait_that_passes_the_deadline_sends_an_item_to_its_next_target(failure: Failure, left_s: float) -> None:
    """It is a dead letter only where nobody is left to ask in time; a target that is down is not asked."""

    def decided(history: History, *targets: Target) -> Again | Stop:
        return after(failure, history, targets, RetrySettings(), 0.5, NOW, NOW + left_s)

    moved = decided(History(), *TWO)
    assert isinstance(moved, Again)
    assert (moved.candidate, moved.at, moved.role) == (1, NOW, "fallback")
    down = decided(History(), Target(), Target(up=False, probe_at=NOW + 1_000))
    assert isinstance(down, Stop)
    history = moved.history
    for _ in TWO:
        again = decided(history, *TWO)
        if isinstance(again, Stop):
            assert again.reason == "deadline"
            return
        history = again.history
    pytest.fail("two targets without time for it are asked in turns")


def test_the_message_tells_the_last_failure() -> None:
    """A dead letter says what the provider said."""
    stop = decide("bad_request", targets=ONE, status=400)
    assert isinstance(stop, Stop)
    assert stop.message == "after 1 attempt: bad_request (HTTP 400): m"


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.none() | st.floats(0, 100), st.floats(0, 1)), max_size=400))
def test_every_item_ends_within_bounds(failures: list[tuple[FailureKind, float | None, float]]) -> None:
    """Whatever fails in whatever order: never into the past, never past the attempts, always a closed reason."""
    history, now, settings = History(), NOW, RetrySettings()
    targets = (Target(1_000), Target(None), Target(2_000))
    for kind, told, chance in failures:
        decision = after(Failure(kind, "m", retry_after_s=told), history, targets, settings, chance, now)
        if isinstance(decision, Stop):
            assert decision.reason in RETRYABLE_REASONS | {"bad_request", "refused", "too_long", "invalid_output"}
            return
        assert decision.at >= now
        assert decision.history.counted <= settings.max_attempts
        assert 0 <= decision.candidate < 3
        assert decision.candidate == decision.history.candidate
        assert (decision.role == "fallback") == (decision.candidate != history.candidate)
        history, now = decision.history, decision.at


def test_retries_are_a_share_of_calls_and_a_floor() -> None:
    """1,000 calls earn 200 retries at most 100 at once; an empty budget refills by one a second."""
    budget = RetryBudget()
    budget.has_room(NOW)
    spent = 0
    while budget.has_room(NOW):
        budget.retried(NOW)
        spent += 1
    assert spent == 100
    budget.called(50)
    assert budget.has_room(NOW)
    for _ in range(10):
        budget.retried(NOW)
    assert not budget.has_room(NOW)
    assert budget.has_room(NOW + 1.0)


def test_a_storm_dies_out() -> None:
    """With everything failing, a target sees its calls, a fifth more, and the floor: no more."""
    budget, retries = RetryBudget(), 0
    for _ in range(10_000):
        budget.called()
        decision = decide("server_error", targets=(Target(may_retry=budget.has_room(NOW)), Target()))
        if isinstance(decision, Again) and decision.role == "retry":
            budget.retried(NOW)
            retries += 1
    assert 2_000 <= retries <= 2_000 + 100


def test_a_diverted_items_faults_count_where_it_went() -> None:
    """An item that was sent elsewhere because its target was down starts there afresh."""
    moved = decide("server_error", moved_to(History(here=2, counted=2), 1))
    assert isinstance(moved, Again)
    assert (moved.candidate, moved.role, moved.history.here) == (1, "retry", 1)
