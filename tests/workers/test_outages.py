"""Who does not answer is told once; an outage is sat out; what only a person can mend stops the run soon."""

import msgspec

from penstock.workers.driving.outages import OUTAGE_S, STUCK_S, Outages
from penstock.workers.lanes.report import LaneReport
from penstock.workers.status import Tally

NOW = 1_700_000_000.0


EVERYBODY: list[tuple[str | None, str]] = [("eu", "m"), ("eu", "*"), (None, "small")]


def report(*targets: tuple[str | None, str], stuck: str | None = None, waiting: bool = True) -> list[LaneReport]:
    answering = [target for target in EVERYBODY if target not in targets]
    told = LaneReport(0, Tally(), open_breakers=list(targets), stuck=stuck, waiting=waiting, input_read=True)
    return [msgspec.structs.replace(told, answering=answering)]


def test_an_outage_and_its_end_are_told_once() -> None:
    """Not at every look."""
    outages = Outages(NOW)
    assert outages.news(report()) == []
    told = ["model m (account eu) does not answer: its items wait, or go to others"]
    assert outages.news(report(("eu", "m"))) == told
    assert outages.news(report(("eu", "m"))) == []
    assert outages.news(report((None, "small"))) == [
        "model small does not answer: its items wait, or go to others",
        "model m (account eu) is asked again",
    ]
    assert outages.news(report(("eu", "*"))) == [
        "account eu does not answer: its items wait, or go to others",
        "model small is asked again",
    ]


def test_an_input_that_is_away_and_its_return_are_told_once() -> None:
    """Else a run that waits looks like one that hangs."""
    outages = Outages(NOW)
    away = [LaneReport(1, Tally()), LaneReport(0, Tally(), input_away="the broker is away")]
    assert outages.news(away) == ["the run waits for its input, and goes on by itself: the broker is away"]
    assert outages.news(away) == []
    assert outages.news(report()) == ["its input is read again"]


def test_a_lane_that_is_opened_anew_says_nothing_of_an_outage_before_it_knows() -> None:
    """In a long one that is every two minutes, for its input, and each time its breakers are closed at first."""
    outages, fresh = Outages(NOW, endless=True), [LaneReport(0, Tally())]
    away = [LaneReport(0, Tally(), input_away="S3 does not answer", open_breakers=[("eu", "m")])]
    assert len(outages.news(away)) == 2
    for _ in range(3):
        assert [outages.news(reports) for reports in ([], fresh, away)] == [[], [], []]
    assert outages.news(fresh) == []
    assert outages.news(report()) == ["its input is read again", "model m (account eu) is asked again"]


def test_an_outage_is_over_for_a_lane_that_was_opened_anew_and_has_nothing_to_send() -> None:
    """It never asked, so the account counted as away for good, and its next outage was told by nobody."""
    outages, quiet, account = Outages(NOW), LaneReport(1, Tally()), [("eu", "*")]
    down, well = LaneReport(0, Tally(), open_breakers=account), LaneReport(0, Tally(), answering=account)
    assert len(outages.news([down, LaneReport(1, Tally(), open_breakers=account)])) == 1
    assert outages.news([well, LaneReport(1, Tally(), open_breakers=account)]) == []
    assert outages.news([down, quiet]) == []
    for _ in range(2):
        assert outages.news([well, quiet]) == ["account eu is asked again"]
        assert outages.news([down, quiet]) == ["account eu does not answer: its items wait, or go to others"]


def test_a_lane_that_is_idle_ends_no_outage_of_one_that_waits() -> None:
    """It was answered long ago; the other is opened anew every two minutes, and has no report meanwhile."""
    outages, account = Outages(NOW), [("eu", "*")]
    idle = LaneReport(1, Tally(), answering=account)
    assert outages.news([LaneReport(0, Tally()), idle]) == []
    assert len(outages.news([LaneReport(0, Tally(), open_breakers=account), idle])) == 1
    for _ in range(3):
        assert outages.news([idle]) == []
        assert outages.news([LaneReport(0, Tally()), idle]) == []
        assert outages.news([LaneReport(0, Tally(), open_breakers=account), idle]) == []
    assert outages.news([LaneReport(0, Tally(), answering=account), idle]) == ["account eu is asked again"]


def test_an_outage_is_over_for_a_lane_that_was_opened_anew_where_another_was_always_answered() -> None:
    """A breaker of one lane alone: the other never began to be answered, so the next real outage was told by nobody."""
    outages, both = Outages(NOW), EVERYBODY[:2]
    busy, fresh = LaneReport(0, Tally(flying={"m": 3}), answering=both), LaneReport(1, Tally())
    assert outages.news([busy, fresh]) == []
    assert len(outages.news([busy, LaneReport(1, Tally(), open_breakers=both)])) == 2
    assert outages.news([busy, LaneReport(1, Tally(), open_breakers=both)]) == []
    assert len(outages.news([busy, fresh])) == 2, "asked again"
    assert len(outages.news([LaneReport(0, Tally(flying={"m": 1}), open_breakers=both), fresh])) == 2


def test_what_a_person_must_mend_stops_the_run_soon() -> None:
    """Ten seconds after it is known, and nothing moves; a probe that goes out or an item that ends begins them anew."""
    outages = Outages(NOW - 1_000)
    stuck = report(stuck="account eu: its key is refused")
    assert outages.verdict(stuck, 5, False, NOW) is None
    assert outages.verdict(stuck, 5, False, NOW + STUCK_S) is None
    assert outages.verdict(stuck, 6, False, NOW + STUCK_S + 1) is None
    assert outages.verdict(stuck, 6, True, NOW + STUCK_S + 5) is None
    why = outages.verdict(stuck, 6, False, NOW + 2 * STUCK_S + 6)
    assert why == "no model can answer: account eu: its key is refused"
    assert outages.verdict(report(), 6, False, NOW + 100) is None


def test_an_outage_is_sat_out_but_not_for_ever() -> None:
    """Two hours without a finished item or a call: the run stops, to be run again; before that it waits."""
    outages = Outages(NOW)
    down = report(("eu", "m"))
    outages.news(down)
    assert outages.verdict(down, 5, False, NOW) is None
    assert outages.verdict(down, 5, False, NOW + OUTAGE_S) is None
    why = outages.verdict(down, 5, False, NOW + OUTAGE_S + 1)
    assert why == "nothing has moved for 2 hours: model m (account eu) does not answer; run it again when it does"


def test_a_long_wait_without_an_outage_is_none_of_ours() -> None:
    """A model that loads for hours, a batch that is held back: nobody is down, nobody is stopped."""
    assert Outages(NOW).verdict(report(), 0, False, NOW + 10 * OUTAGE_S) is None


def test_a_breaker_that_nobody_waits_for_ends_nothing() -> None:
    """Its items finished elsewhere, or a person holds their tier back, and no more came for hours: the time begins with
    the next item."""
    outages = Outages(NOW)
    idle, busy = report(("eu", "m"), waiting=False), report(("eu", "m"))
    outages.news(idle)
    assert outages.verdict(idle, 5, False, NOW) is None
    assert outages.verdict(idle, 5, False, NOW + 10 * OUTAGE_S) is None
    assert outages.verdict(busy, 5, False, NOW + 11 * OUTAGE_S) is None
    assert outages.verdict(busy, 5, False, NOW + 11 * OUTAGE_S + 2) is not None


def test_a_run_without_an_end_says_that_nothing_moves_and_goes_on() -> None:
    """Nobody would start it again. It is told once, and again when it happens again."""
    outages = Outages(NOW, endless=True)
    stuck = report(stuck="account eu: its key is refused")
    for second in range(30):
        assert outages.verdict(stuck, 0, False, NOW + second) is None
    assert outages.standstill == "no model can answer: account eu: its key is refused"
    assert outages.news(stuck) == ["no model can answer: account eu: its key is refused"]
    assert outages.news(stuck) == []
    assert outages.verdict(report(), 1, False, NOW + 40) is None
    assert (outages.standstill, outages.news(report())) == (None, [])
    down = report(("eu", "m"))
    outages.news(down)
    assert outages.verdict(down, 1, False, NOW + 41 + OUTAGE_S) is None
    assert outages.news(down) == ["nothing has moved for 2 hours: model m (account eu) does not answer"]
