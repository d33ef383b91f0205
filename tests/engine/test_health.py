"""A target that fails is left alone, probed, and taken back; an account without a key or money is not asked again."""

import pytest

from penstock.engine.health import Health, HealthSettings
from penstock.engine.items import Failure, FailureKind

NOW = 1_700_000_000.0
FAULT = Failure("server_error", "500")


def health() -> Health:
    return Health({"opus": "anthropic", "haiku": "anthropic", "small": None}, HealthSettings(faults=3, cool_s=5.0))


def broken() -> Health:
    h = health()
    for _ in range(3):
        h.record("opus", FAULT, NOW)
    return h


def test_faults_in_a_row_open_it_and_a_success_between_does_not() -> None:
    """Three in a row; the account's other models are not touched."""
    h = health()
    for failure in (FAULT, FAULT, None, FAULT, FAULT):
        h.record("opus", failure, NOW)
    assert h.is_up("opus")
    h.record("opus", FAULT, NOW)
    assert h.is_open("opus", NOW)
    assert not h.is_up("opus")
    assert h.allow("haiku", NOW)
    assert h.opened(NOW) == [("anthropic", "opus")]
    assert h.answering() == [("anthropic", "*")], "of those that never answered nobody knows"


def test_faults_far_apart_are_no_row() -> None:
    """Two old faults and a new one are one fault."""
    h = health()
    for at in (NOW, NOW + 1, NOW + 120, NOW + 121):
        h.record("opus", FAULT, at)
    assert h.is_up("opus")


def test_after_the_cool_down_one_probe_goes() -> None:
    """One call, not all that wait; its success closes the breaker, for everybody."""
    h = broken()
    assert not h.allow("opus", NOW + 4.9)
    assert h.next_probe_at("opus", NOW) == NOW + 5
    assert not h.is_open("opus", NOW + 5)
    assert h.allow("opus", NOW + 5)
    assert not h.allow("opus", NOW + 5)
    assert h.is_open("opus", NOW + 5)
    assert NOW + 5 < h.next_probe_at("opus", NOW + 5) <= NOW + 6
    h.record("opus", None, NOW + 6)
    assert h.is_up("opus")
    assert h.allow("opus", NOW + 6)


def test_a_clock_that_is_set_back_keeps_nobody_waiting_for_longer() -> None:
    """By an hour: the probe goes when it would have gone; one without an answer is still taken for lost in time."""
    h, back = broken(), NOW - 3_600
    h.set_back(3_600)
    assert not h.allow("opus", back + 4.9)
    assert h.allow("opus", back + 5)
    h.set_back(3_600)
    assert not h.allow("opus", back - 3_600 + 60)
    assert h.allow("opus", back - 3_600 + 66)


def test_a_failed_probe_waits_twice_as_long() -> None:
    """5, 10, 20 … seconds, up to two minutes."""
    h, at, cool = broken(), NOW, 5.0
    for _ in range(8):
        assert not h.allow("opus", at + cool - 0.1)
        at += cool
        assert h.allow("opus", at)
        h.record("opus", FAULT, at)
        cool = min(120.0, 2 * cool)
    assert h.next_probe_at("opus", at) == at + 120.0


@pytest.mark.parametrize("kind", ["not_sent", "cancelled", "worker_lost"])
def test_a_probe_that_was_never_made_is_made_by_another(kind: FailureKind) -> None:
    """What says nothing of the target neither opens nor closes it."""
    h = broken()
    assert h.allow("opus", NOW + 5)
    h.record("opus", Failure(kind, ""), NOW + 5)
    assert not h.is_up("opus")
    assert h.allow("opus", NOW + 5)


def test_a_lost_probe_is_replaced() -> None:
    """No answer for a minute: another may go."""
    h = broken()
    assert h.allow("opus", NOW + 5)
    assert not h.allow("opus", NOW + 64)
    assert h.allow("opus", NOW + 65)


@pytest.mark.parametrize("kind", ["bad_request", "refused", "rate_limited", "too_long"])
def test_a_target_that_says_no_is_alive(kind: FailureKind) -> None:
    """Refusals of a request break no target, and as a probe's answer they close the breaker."""
    h = health()
    for _ in range(20):
        h.record("opus", Failure(kind, ""), NOW)
    assert h.is_up("opus")
    h = broken()
    assert h.allow("opus", NOW + 5)
    h.record("opus", Failure(kind, ""), NOW + 5)
    assert h.is_up("opus")


def test_a_spent_account_is_asked_again_every_five_minutes() -> None:
    """All its models are down, whatever late answers still come; others work on. A run of weeks finds it topped up."""
    h = health()
    h.record("opus", Failure("spend_cap", "no money"), NOW)
    h.record("opus", None, NOW + 1)
    assert h.next_probe_at("haiku", NOW) == NOW + 300
    assert h.allow("small", NOW)
    assert h.opened(NOW) == [("anthropic", "*")]
    for again in (300, 600):
        assert not h.allow("haiku", NOW + again - 1)
        assert h.allow("haiku", NOW + again)
        h.record("haiku", Failure("spend_cap", "no money"), NOW + again)
    assert h.to_mend("haiku") is not None
    assert h.allow("haiku", NOW + 900)
    h.record("haiku", None, NOW + 901)
    assert h.is_up("opus")


def test_a_refused_key_stops_the_account_for_minutes() -> None:
    """One 401 is enough; a probe after five minutes finds out whether somebody mended it."""
    h = health()
    h.record("haiku", Failure("auth", "401"), NOW)
    assert h.is_open("opus", NOW + 299)
    assert h.allow("opus", NOW + 300)
    h.record("opus", None, NOW + 301)
    assert h.is_up("haiku")


def test_what_nobody_asks_any_more_is_not_told_as_down() -> None:
    """A version that a rollout took back since it broke is never asked again: its breaker was told as open, and its
    alert stood, for as long as the lane lived. One that somebody waits for is probed again and again."""
    h = broken()
    assert h.opened(NOW + 5.0 + 599.0) == [("anthropic", "opus")]
    assert h.opened(NOW + 5.0 + 600.0) == []
    assert not h.is_up("opus"), "it has to answer first, all the same"
    assert h.allow("opus", NOW + 700.0)
    assert h.opened(NOW + 700.0) == [("anthropic", "opus")]
    h.record("opus", FAULT, NOW + 701.0)
    assert h.opened(NOW + 702.0) == [("anthropic", "opus")]


def test_a_days_limit_is_obeyed() -> None:
    """The provider's own time holds where it is told."""
    h = health()
    h.record("opus", Failure("daily_limit", "", retry_after_s=7_200.0), NOW)
    assert h.next_probe_at("opus", NOW) == NOW + 7_200
    assert h.is_up("haiku")


def test_what_a_person_has_to_mend_is_named() -> None:
    """A wrong key, a spent account, an unknown model: in words, until a call succeeds. An outage is none of these."""
    h = health()
    for _ in range(3):
        h.record("opus", FAULT, NOW)
    assert not h.mends
    assert h.to_mend("opus") is None
    h.record("small", Failure("not_found", "no such model", status=404), NOW)
    assert h.mends
    assert h.to_mend("small") == "it does not know the model small (HTTP 404: no such model)"
    h.record("haiku", Failure("auth", "401 wrong key", status=401), NOW)
    assert h.to_mend("opus") == "its key is refused (HTTP 401: wrong key)"
    assert h.allow("haiku", NOW + 300)
    h.record("haiku", None, NOW + 301)
    assert h.to_mend("opus") is None


def test_an_address_that_nobody_ever_reached_is_for_a_person_to_mend() -> None:
    """Three refused connections before the account's first answer: probably a wrong `base_url`. It is still probed,
    and one answer makes all well. An account that has answered before has an outage, which may pass."""
    refused = Failure("connection", "connection refused")
    h = Health({"opus": "anthropic", "haiku": "anthropic"}, HealthSettings())
    for _ in range(3):
        h.record("opus", refused, NOW)
    assert h.to_mend("opus") == "it was never reached, is base_url right? (connection refused)"
    assert h.to_mend("haiku") is None
    assert h.allow("opus", NOW + 5)
    h.record("opus", None, NOW + 5)
    assert not h.mends
    for _ in range(10):
        h.record("haiku", refused, NOW + 6)
    assert not h.is_up("haiku")
    assert h.to_mend("haiku") is None


def test_a_few_refused_connections_of_a_known_account_open_nothing() -> None:
    """Ten in a row, as of any fault."""
    h = Health({"opus": "anthropic"}, HealthSettings())
    h.record("opus", Failure("bad_request", "it answered"), NOW)
    for _ in range(9):
        h.record("opus", Failure("connection", "reset"), NOW)
    assert h.is_up("opus")
