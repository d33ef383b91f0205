"""The summary and the progress lines: numbers a person can trust, in 80 columns."""

import os
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.items import NANO_PER_USD
from penstock.jobs import progress, wording
from penstock.jobs.look import report
from penstock.workers.status import ModelTally, RunState, RunStatus, Slow, Tally, TaskTally

GOLDEN = Path(__file__).parent.parent / "golden"


def finished() -> RunStatus:
    tally = Tally(
        read=3000,
        results=2994,
        dead_letters={"malformed": 4, "wall": 2},
        copied=41,
        maybe_paid=3,
        retries=12,
        fallbacks=2,
        cost_nano=454_500_000,
        forfeit_nano=400_000,
        tier1_cost_nano=4_364_000_000,
        tiers={1: 300, 3: 2694},
        models={
            "opus@x": ModelTally("opus", "x", 310, 300, 433_500_000, 41_200, 3_000, 9_100),
            "small@v1": ModelTally("small", "v1", 2702, 2694, 21_000_000, 402_000, 0, 9_100, basis="amortised"),
        },
        slowest=[Slow("0123456789abcdef" * 2, "order-17", "small", 12.3), Slow("f" * 32, None, "opus", 9.1)],
        refused={"eu-only": 10, "health": 2},
    )
    return RunStatus(
        "label-messages-3f9c2a1b",
        "label-messages",
        "done",
        started_at=1000.0,
        updated_at=1072.0,
        first_dispatch_at=1002.1,
        ended_at=1072.4,
        total_items=3000,
        cells=[
            Cell("classification", "small", "v1", scores={"exact@1": Scored(338, {1000: 338, 0: 74})}),
            Cell("rewriting", "opus", "x", scores={"judge@1": Scored(2, {1000: 2, 500: 2})}),
        ],
        tally=tally,
        budget_limit_nano=25 * NANO_PER_USD,
        budget_spent_nano=455_000_000,
        outputs={
            "results": [f"{Path.cwd()}/out/results.jsonl"],
            "costs": [f"{Path.cwd()}/out/results.costs.jsonl"],
            "dead_letters": [f"{Path.cwd()}/out/results.dead_letters.jsonl"],
        },
        resumed=True,
        notes=["lane 2 moved to another process"],
    )


def plain(status: RunStatus, width: int = 80, state: str | None = None) -> str:
    out = StringIO()
    console = Console(file=out, width=width, no_color=True, highlight=False)
    for part in report.summary(status, state=state):
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def check_golden(name: str, text: str) -> None:
    """GOLDEN=write renews the files; look at the difference before you commit it."""
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_the_headline_counts_from_the_command_on() -> None:
    """Ray's start is a part of what a person waits for; of an older run only its driver's start is known."""
    told = plain(finished())
    assert "in 1 min 12 s, first call after 2.1 s" in told
    asked = plain(msgspec.structs.replace(finished(), asked_at=996.0))
    assert "in 1 min 16 s, first call after 6.1 s" in asked


def test_the_summary_in_a_pipe_reads_as_it_always_did() -> None:
    """What stands in logs and mails does not change by accident."""
    check_golden("cli_summary.txt", plain(finished()))


def test_a_label_or_a_providers_words_move_no_cursor() -> None:
    """A label is a word of the input, and a message may repeat what a provider said."""
    told = finished()
    told.tally.slowest = [Slow("0" * 32, "order\x1b[2J-17", "small", 12.3)]
    told.notes, told.message = ["it says \x1b]52;c;aGk=\x07"], "no model can answer: \x9b2J"
    shown = plain(told)
    assert all(words in shown for words in ("order [2J-17", "it says  ]52;c;aGk=", "no model can answer:  2J"))
    assert not any(c in shown for c in "\x1b\x07\x9b")


def test_the_summary_fits_eighty_columns() -> None:
    """No line is longer than 80 columns, on a terminal as in a pipe."""
    assert max(map(len, plain(finished()).splitlines())) <= 80


@pytest.mark.parametrize("state", ["running", "interrupted", "cancelled", "handed_over"])
def test_what_comes_next_names_the_state_and_promises_no_more_than_is_kept(state: RunState) -> None:
    """Calls that were cut off, or failed with the run, may be paid for again: a line above counts them."""
    said = " ".join(plain(RunStatus("job-1", "job", state), state="s3://b/state").split())
    verb = "run" if state in ("interrupted", "cancelled") else "status"
    assert f"next penstock {verb} job-1 --state s3://b/state" in said
    assert "paid for twice" not in said


def test_a_run_that_did_nothing_has_a_summary() -> None:
    """No division by zero, no empty table."""
    text = plain(RunStatus("job-1", "job", "starting"))
    assert "0: 0 results" in text
    assert "model" not in text


def test_money_that_nobody_can_account_for_is_named_by_its_cause() -> None:
    """A call that timed out is no lease lost in a crash; without a budget there are no leases, and nothing counts."""
    tally = Tally(forfeit_nano=3_000_000, unknown_nano=3_000_000)
    text = " ".join(plain(RunStatus("job-1", "job", "done", tally=tally)).split())
    assert "up to $0.003000 more may be billed for calls whose end is not known" in text
    assert "forfeit" not in text
    assert "counted" not in text
    tally.forfeit_nano += 1_000_000
    text = " ".join(plain(RunStatus("job-1", "job", "done", tally=tally, budget_limit_nano=NANO_PER_USD)).split())
    assert "up to $0.003000 more may be billed for calls whose end is not known, counted as spent" in text
    assert "$0.001000 forfeit (leases lost in a crash, counted as spent)" in text
    assert "ledger" not in plain(RunStatus("job-1", "job", "done"))


def test_steps_and_cascades_are_told_with_what_was_left_out() -> None:
    """Nothing is said of them where there were none."""
    tally = Tally(
        steps={"judge": 1200},
        steps_nano={"judge": 3_000_000},
        steps_failed={"judge|wall": 2, "judge|invalid_output": 5, "shadow|budget": 9},
        climbed={"small|mid": 40, "mid|top": 8},
    )
    text = plain(RunStatus("job-1", "job", "done", tally=tally), 120)
    assert "judges: 1,200 answers, $0.003000; left out: 5 invalid_output, 2 wall" in text
    assert "shadows: 0 answers, $0; left out: 9 budget" in text
    assert "doubtful answers sent up: mid to top 8, small to mid 40" in text
    assert "steps" not in plain(finished())


def test_names_with_brackets_are_shown_as_they_are() -> None:
    """What a user calls things is never read as markup."""
    status = RunStatus("job-1", "[red]job[/red]", "failed", message="disk [/dev/sda] is full")
    text = plain(status)
    assert "[red]job[/red]" in text
    assert "disk [/dev/sda] is full" in text


def test_a_mean_of_scores_has_students_interval_and_a_share_has_wilsons() -> None:
    """Scores of 0 and 1 are a proportion; anything between makes a mean."""
    share = report.interval(TaskTally("t", "m", 10, 8.0, 8.0, 8))
    mean = report.interval(TaskTally("t", "m", 10, 8.0, 7.0, 8))
    assert share is not None
    assert mean is not None
    assert (round(share.low, 2), round(share.high, 2)) == (0.49, 0.94)
    assert share.low != mean.low


def running(results: int, at: float) -> RunStatus:
    model = ModelTally("small", "v1", results, results, results * 1000, results * 20, 0, results * 5)
    tally = Tally(results=results, cost_nano=results * 1000, tiers={3: results}, in_flight={3: 64}, models={"s": model})
    return RunStatus("job-1", "job", "running", started_at=0.0, updated_at=at, total_items=1000, tally=tally)


def test_rates_forecast_and_eta_come_from_what_was_seen() -> None:
    """100 items in ten seconds: 10 items/s, 250 tokens/s, 80 s to go for 800 more, five times the cost at the end."""
    meter = progress.Meter()
    meter.see(running(100, 10.0), 10.0)
    view = meter.see(running(200, 20.0), 20.0)
    assert (view.items_per_s, view.tokens_per_s, view.eta_s) == (10.0, 250.0, 80.0)
    assert view.forecast_nano == 1_000_000


def test_a_plain_line_says_everything_that_matters() -> None:
    """One line for a log: time, state, items, rates, money, in flight, dead letters, ETA."""
    meter = progress.Meter()
    meter.see(running(100, 10.0), 10.0)
    line = progress.plain_line(meter.see(running(200, 20.0), 20.0)).strip()
    expected = (
        "20 s  running  200 of 1,000 items (20 %)  10 items/s  250 tokens/s  $0.000200 of about $0.001000  "
        "64 in flight (tier 3: 64)  ETA 1 min 20 s"
    )
    assert line == expected


def test_calls_that_do_not_come_back_are_told_after_a_minute() -> None:
    """A provider that hangs looked as if all were well: "28 in flight", for ten minutes."""
    meter = progress.Meter()
    meter.see(running(100, 10.0), 10.0)
    meter.see(running(200, 20.0), 20.0)
    assert "come back" not in progress.plain_line(meter.see(running(200, 79.0), 79.0))
    told = meter.see(running(200, 145.0), 145.0)
    assert "64 in flight (tier 3: 64)  no call has come back for 2 min 05 s" in progress.plain_line(told)
    assert any("no call has come back" in line for line in progress.live_lines(told))
    assert "come back" not in progress.plain_line(meter.see(running(201, 150.0), 150.0))
    idle = running(201, 400.0)
    idle.tally.in_flight = {3: 0}
    assert "come back" not in progress.plain_line(meter.see(idle, 400.0))


def test_the_live_display_fits_eighty_columns() -> None:
    """A terminal of 80 columns shows every line whole."""
    view = progress.Meter().see(finished(), 1100.0)
    console = Console(file=StringIO(), width=80, force_terminal=True)
    for line in progress.live_lines(view, "ctrl-c: finish what is in flight, commit, stop; twice: stop now"):
        assert len(console.render_str(line).plain) <= 80


def test_an_unknown_number_of_items_is_estimated_from_bytes() -> None:
    """A third of the bytes for 100 items: about 300 in all, and the line says that it is a guess."""
    status = running(100, 1.0)
    status.total_items, status.total_bytes, status.tally.position_bytes = None, 3000, 1000
    line = progress.plain_line(progress.Meter().see(status, 1.0))
    assert "100 of ~300 items" in line


def test_what_was_read_is_the_least_there_is_and_all_of_it_once_the_input_ends() -> None:
    """Six of 101 rows done, 82 at the model: not `6 of ~36`."""
    tally = Tally(read=101, results=6, in_flight={1: 2, 2: 0, 3: 80}, position_bytes=500)
    status = RunStatus("r", "r", "running", total_bytes=3000, tally=tally)
    assert "6 of ~101 items" in progress.plain_line(progress.Meter().see(status, 1.0))
    status.total_items = 101
    assert "6 of 101 items" in progress.plain_line(progress.Meter().see(status, 1.0))


def test_a_plain_display_tells_states_and_notes_once() -> None:
    """A pipe gets a line per change and one every five seconds, not one per look."""
    out = StringIO()
    display, meter = progress.PlainDisplay(Console(file=out, no_color=True, highlight=False)), progress.Meter()
    for second in range(12):
        status = running(second * 10, float(second))
        status.notes, status.noted = ["budget nearly used"], 1
        display.show(meter.see(status, float(second)))
    lines = out.getvalue().splitlines()
    assert lines.count("note: budget nearly used") == 1
    assert sum("running" in line for line in lines) == 3


@pytest.mark.parametrize(
    ("nano", "said"),
    [(0, "$0"), (1, "$0.000000001"), (15_000, "$0.000015"), (10_000_000, "$0.0100"), (-2_000_000_000, "-$2.00")],
)
def test_money_is_never_rounded_to_nothing(nano: int, said: str) -> None:
    """Something that was paid is never shown as $0.00."""
    assert wording.dollars(nano) == said


@given(st.integers(1, 10**15))
def test_money_that_was_paid_never_reads_as_nothing(nano: int) -> None:
    """For any amount there is a digit other than 0."""
    assert set(wording.dollars(nano)) & set("123456789")


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_share_is_whole_only_where_nothing_is_missing(part: int, more: int) -> None:
    """`100 %` and `0 %` are promises."""
    whole = part + more
    assert wording.share(part, whole) != "100 %"
    assert (wording.share(part, whole) == "0 %") == (part == 0)


def test_what_is_done_is_all_there_was() -> None:
    """No `12 of ~13 items` after the end, whatever the bytes of header and separators made of the estimate."""
    status = RunStatus("r", "r", "done", total_bytes=1000, tally=Tally(results=12, position_bytes=900))
    view = progress.Meter().see(status, 1.0)
    assert (view.total, view.total_is_exact) == (12, True)
    assert progress.expected_items(RunStatus("r", "r", "running", total_bytes=1000, tally=status.tally)) == 13


def test_a_state_is_not_said_twice() -> None:
    """`interrupted: the same command goes on`, not `interrupted: interrupted: …`."""
    assert progress.state_told(RunStatus("r", "r", "interrupted", "interrupted: go on")) == "interrupted: go on"
    assert progress.state_told(RunStatus("r", "r", "failed", "disk full")) == "failed: disk full"


def test_a_column_that_says_nothing_is_left_out() -> None:
    """Without cached tokens a model's whole name has room in 80 columns."""
    name = "sandbox/claude-haiku-4-5"
    models = {name: ModelTally(name, "x", 12, 12, 772_000, 652, 0, 24)}
    text = plain(RunStatus("r", "r", "done", tally=Tally(results=12, models=models)))
    assert name in text
    assert "cached" not in text


def test_what_a_resumed_run_finds_done_is_no_speed() -> None:
    """300 items of an earlier command, found in the first quarter of a second, are not 1,200 items a second."""
    meter = progress.Meter()
    for state, results, at in (("starting", 0, 1.0), ("running", 300, 1.25), ("running", 310, 2.25)):
        status = RunStatus("r", "r", state, started_at=1.0, resumed=True, tally=Tally(results=results))  # type: ignore[arg-type]
        status.first_dispatch_at = 1.2 if results else None
        view = meter.see(status, at)
    assert view.items_per_s == 10.0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0, "0.0 s"), (0.017, "17 ms"), (0.099, "99 ms"), (0.1, "0.1 s"), (9.94, "9.9 s"), (42, "42 s")],
)
def test_what_took_time_is_never_told_as_nothing(seconds: float, told: str) -> None:
    """Small models answer in milliseconds: their slowest call did not take `0.0 s`."""
    assert wording.duration(seconds) == told


def test_a_run_that_goes_has_not_ended_in_some_time() -> None:
    assert "running for 1 min 12 s" in plain(msgspec.structs.replace(finished(), state="running", ended_at=None))
    assert "done in 1 min 12 s" in plain(finished())


def test_one_dead_letter_is_one() -> None:
    view = progress.Meter().see(RunStatus("a-1", "a", "running", tally=Tally(dead_letters={"wall": 1})), 1.0)
    assert progress.plain_line(view).endswith("  1 dead letter")
    assert any("1 dead letter[/] (1 wall)" in line for line in progress.live_lines(view))


def test_what_lanes_tell_before_the_first_call_is_no_speed_either() -> None:
    """A resumed run says `running` a moment before its lanes have read how far they were: 700 items in 2 s, it said."""
    meter = progress.Meter()
    status = RunStatus("r", "r", "starting", started_at=1.0, resumed=True, total_items=3000)
    meter.see(status, 1.0)
    status.state = "running"
    meter.see(status, 2.0)
    status.tally.results = 700
    assert meter.see(status, 3.0).items_per_s == 0
    status.first_dispatch_at = 3.5
    assert meter.see(status, 4.0).eta_s is None
    status.tally.results = 800
    view = meter.see(status, 8.0)
    assert (view.items_per_s, view.eta_s) == (25.0, 88.0)


def test_a_long_note_stands_under_itself() -> None:
    out = StringIO()
    console = Console(file=out, width=60, no_color=True, highlight=False)
    status = running(5, 1.0)
    status.notes = [
        "the run waits for up to 600 s, and goes on by itself, since Kafka at 127.0.0.1:9092 can't be reached"
    ]
    console.print(progress.shown(progress.live_lines(progress.Meter().see(status, 1.0), "ctrl-c: stop")))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[-3:] == [
        "  the run waits for up to 600 s, and goes on by itself,",
        "  since Kafka at 127.0.0.1:9092 can't be reached",
        "ctrl-c: stop",
    ]


def test_what_was_read_and_has_not_ended_is_behind_too() -> None:
    """A window holds thousands: with a paused tier, or at a stop, `0 behind` would say that all is done."""
    status = running(5, 1.0)
    status.endless, status.lag, status.tally.read = True, {"requests": 100}, 1_005
    view = progress.Meter().see(status, 1.0)
    assert "1,100 behind" in progress.plain_line(view)
    assert any("1,100 behind" in line for line in progress.live_lines(view))


def test_a_run_of_nothing_recommends_no_item_to_look_at() -> None:
    """An empty topic is no failure, and has no story to explain."""
    assert "penstock explain" not in plain(RunStatus("r", "r", "done", started_at=1.0, ended_at=2.0))
    assert "penstock explain ID --run r" in plain(RunStatus("r", "r", "done", tally=Tally(results=1)))
