"""How long a lane that fails is opened once more."""

from penstock.engine.errors import Away, Temporary
from penstock.workers.lanes.patience import MAX_REOPENINGS, WINDOW_S, Patience

NOW = 1_700_000_000.0
AWAY = Away("the broker is away")


def patience(outage_s: float | None = 600.0) -> tuple[Patience, list[str]]:
    told: list[str] = []
    return Patience(outage_s, told.append), told


def test_a_lane_that_fails_while_it_works_is_tried_a_few_times() -> None:
    """Each time may repeat what was paid. Failures of an hour ago don't count."""
    one, _ = patience()
    assert all(one.may_reopen(0, None, "its commit is uncertain", NOW + n) for n in range(MAX_REOPENINGS))
    assert one.may_reopen(1, None, "another lane", NOW)
    assert not one.may_reopen(0, Temporary("disk full"), "disk full", NOW + 100)
    assert one.may_reopen(0, None, "again", NOW + 100 + WINDOW_S)


def test_a_server_that_is_away_is_waited_for_as_long_as_the_job_says() -> None:
    """Whatever the number of tries; told once, however many lanes wait."""
    one, told = patience()
    for second in range(0, 601, 3):
        assert one.may_reopen(0, AWAY, "the broker is away", NOW + second)
        assert one.may_reopen(1, AWAY, "the broker is away", NOW + second)
    assert len(told) == 1
    assert not one.may_reopen(0, AWAY, "the broker is away", NOW + 601)


def test_an_opening_that_takes_too_long_is_an_outage_too() -> None:
    """At a minute a try there were never enough of them to end the run, and nobody was told."""
    one, told = patience()
    assert all(one.may_reopen(0, TimeoutError(), "TimeoutError()", NOW + n * 62) for n in range(10))
    assert [note for note in told if "lane 0 did not open in time" in note] == told != []
    assert not one.may_reopen(0, TimeoutError(), "TimeoutError()", NOW + 620)


def test_the_next_outage_has_its_own_time() -> None:
    """Whether the lane was opened in between, or only nobody tried."""
    one, told = patience()
    assert one.may_reopen(0, AWAY, "away", NOW)
    one.opened(0)
    assert one.may_reopen(0, AWAY, "away", NOW + 700)
    assert len(told) == 3
    assert one.may_reopen(0, AWAY, "away", NOW + 10_000)


def test_a_run_without_an_end_waits_for_ever_and_one_that_is_to_stop_does_not() -> None:
    one, told = patience(None)
    assert all(one.may_reopen(0, AWAY, "away", NOW + minute * 60) for minute in range(1_000))
    assert "for up to" not in told[0]
    one.hurry(30.0)
    assert not one.may_reopen(0, AWAY, "away", NOW + 1_000 * 60)
