"""An evaluation that is asked for again under its name: it goes on, says why it can't, or starts over."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from penstock.connectors.ledger import LedgerClient
from penstock.connectors.state import open_state
from penstock.engine.budget import budget_keys
from penstock.engine.errors import SpecError, Temporary
from penstock.engine.flow.till import Wish
from penstock.engine.measure.evaluation import Row
from penstock.jobs.evals import derived, going, running, view
from penstock.jobs.evals.asked import Asked, Variant, models_of
from penstock.jobs.evals.going import Watch
from penstock.jobs.evals.records import Seen
from penstock.jobs.evals.running import Prepared
from penstock.jobs.history import open_history
from penstock.jobs.look.reading import Outputs
from penstock.jobs.progress import Silent
from penstock.jobs.run import Session
from penstock.jobs.spec import load
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunState, RunStatus, Tally
from tests.jobs.test_cli_run import Heard, ScriptedCluster, ScriptedRun

JOB = """\
name: sort
source: rows.jsonl
row: {attributes: {sensitivity: "{{ class }}"}}
prompt: "Which? {{ text }}"
output: {choices: [billing, other]}
scorers: [{type: exact, expected: "{{ label }}"}]
walls: {public: {}, health: {sample: never}}
accounts: {sandbox: {regions: [us]}}
models:
  - {name: a, account: sandbox, model: m, price: {input_per_million: 1, output_per_million: 5}}
  - {name: b, account: sandbox, live: v1, versions: [{id: v1, model: m1}, {id: v2, model: m2}], price: {input_per_million: 1, output_per_million: 5}}
sinks: out.jsonl
"""  # noqa: E501 - as people write it


NOTHING = Seen((), 0, 0, 0, 0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    write_rows(20)
    return tmp_path


def write_rows(n: int, *odd: dict[str, str | None]) -> None:
    same = {"class": "public", "label": "billing"}
    rows = [*odd, *({"text": f"text {i}", **same} for i in range(n))]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepared(*, fresh: bool = False, aside: Path | None = None) -> Prepared:
    base = load("job.yaml")
    asked = Asked(base.name, "default", models_of(base.catalog, ("a", "b@v2")), {"": Variant()}, "exact")
    return running.prepare("one", base, asked, None, fresh=fresh, aside=aside)


def begun() -> Prepared:
    """As a command leaves it that asked some rows, and had told of its run."""
    made = prepared()
    history = open_history(made.spec.state)
    history.save_spec(made.spec)
    history.save_status(RunStatus(made.spec.run_id, made.spec.name, "interrupted", started_at=1.0))
    return made


def edit(before: str, after: str) -> None:
    assert before in JOB
    Path("job.yaml").write_text(JOB.replace(before, after))


CHANGES = [
    ("Which? {{", "Which one? {{", "task default: prompt has changed"),
    ("model: m2}", "model: m3}", "model b has changed"),
    ("choices: [billing, other]", "choices: [billing, delivery]", "task default: output has changed"),
]


@pytest.mark.parametrize(("before", "after", "told"), CHANGES)
def test_it_says_what_changed_in_the_job_and_the_two_ways_on(before: str, after: str, told: str) -> None:
    """Old answers would be shown as those of the new prompt, model or output; a finished one asks nobody."""
    begun()
    edit(before, after)
    with pytest.raises(SpecError, match=f"{told}.*--fresh, or give this one another name"):
        prepared()
    assert prepared(fresh=True).anew


def test_scores_by_another_scorer_of_the_same_name_are_not_mixed() -> None:
    edit('{type: exact, expected: "{{ label }}"}', '{type: numeric, tolerance: 0.5, expected: "{{ label }}"}')
    base = load("job.yaml")
    asked = Asked(base.name, "default", models_of(base.catalog, ("a",)), {"": Variant()}, "numeric")
    made = running.prepare("one", base, asked, None)
    open_history(base.state).save_spec(made.spec)
    edit('{type: exact, expected: "{{ label }}"}', '{type: numeric, tolerance: 5.0, expected: "{{ label }}"}')
    with pytest.raises(SpecError, match="task default: scorers has changed"):
        running.prepare("one", load("job.yaml"), asked, None)


def test_what_is_no_part_of_its_answers_may_change() -> None:
    """A price, a sink, tiers and models that it does not ask."""
    begun()
    Path("job.yaml").write_text(JOB.replace("output_per_million: 5", "output_per_million: 6") + "tiers: {1: [a]}\n")
    again = prepared()
    assert (again.anew, again.note) == (False, "")


def test_a_price_that_was_looked_at_binds_to_nothing() -> None:
    """Nobody was asked yet: the job is edited, and asked for as it is now."""
    prepared()
    edit("Which? {{", "Which one? {{")
    write_rows(30)
    again = prepared()
    assert (again.made.rows, again.anew, again.note) == (30, False, "")


@pytest.mark.parametrize("fresh", [True, False])
def test_a_price_changes_nothing(tmp_path: Path, fresh: bool) -> None:
    """What a fresh start would throw away can be shown until it begins."""
    before = begun()
    had = {path.name: path.read_bytes() for path in before.place.iterdir()}
    write_rows(30)
    told = prepared(fresh=fresh, aside=tmp_path / "aside")
    assert running.price(told, None)[1].run_id == before.spec.run_id
    assert told.made.rows == (30 if fresh else 20)
    assert {path.name: path.read_bytes() for path in before.place.iterdir()} == had


def test_it_keeps_its_rows_and_says_that_those_of_the_job_have_changed() -> None:
    begun()
    write_rows(40)
    again = prepared()
    assert again.made.rows == 20
    assert any(
        "have changed since it was begun, and it keeps those of then: --fresh" in w for w in view.rows_words(again)
    )
    Path("rows.jsonl").unlink()
    assert "can't be told now" in prepared().note
    write_rows(40)
    assert prepared(fresh=True).made.rows == 40


def test_a_fresh_start_that_was_killed_before_its_run_began_still_begins_anew() -> None:
    """The results that stand there are of other rows: they are neither shown nor gone on with."""
    made = begun()
    write_rows(40)
    prepared(fresh=True)
    again = prepared()
    assert (again.made.rows, again.anew) == (40, True)
    with pytest.raises(SpecError, match="was not run yet as it is now"):
        running.find(running.remembered("one", made.spec.state), open_history(made.spec.state))
    history = open_history(made.spec.state)
    history.save_spec(again.spec)  # its run has begun
    history.save_status(RunStatus(again.spec.run_id, again.spec.name, "running", started_at=2.0))
    assert not prepared().anew


def test_the_same_rows_with_another_scorer_begin_anew_too_after_a_kill() -> None:
    begun()
    edit('"{{ label }}"}]', '"{{ label }}"}, {type: regex, pattern: x}]')
    prepared(fresh=True)
    assert prepared().anew


def test_what_it_found_stays_to_be_seen_when_penstock_or_the_job_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only going on with it would mix scores; that is refused with what changed."""
    made = begun()
    state, history = made.spec.state, open_history(made.spec.state)
    monkeypatch.setattr(derived, "scorer_version", lambda _: "of the next release")
    assert running.find(running.remembered("one", state), history).prepared.made == made.made
    with pytest.raises(SpecError, match=r"scorers has changed.*eval show"):
        prepared()


def test_one_from_before_rows_knew_the_parts_of_their_job_is_shown_and_goes_on() -> None:
    made = begun()
    old = msgspec.structs.replace(made.made, parts={}, replaces=None)
    (made.place / "made.json").write_bytes(msgspec.json.encode(old))
    state, history = made.spec.state, open_history(made.spec.state)
    assert not running.find(running.remembered("one", state), history).prepared.anew
    assert not prepared().anew
    edit("Which? {{", "Which one? {{")
    with pytest.raises(SpecError, match="prompt has changed"):
        prepared()


def test_a_fresh_run_throws_away_what_was_answered_before() -> None:
    begun()
    taken: list[RunOptions] = []

    class Refusing:
        def launch(self, spec: RunSpec, options: RunOptions, asked: Callable[[], int]) -> NoReturn:
            taken.append(options)
            raise Temporary("no more of it here")

    @contextmanager
    def cluster(address: str | None) -> Iterator[Refusing]:
        yield Refusing()

    for fresh in (False, True):
        one = prepared(fresh=fresh)
        with pytest.raises(Temporary):
            running.go(one, one.spec, Session(open_cluster=cluster), Silent(), to_the_end=False)
    assert [each.fresh for each in taken] == [False, True]


@pytest.mark.parametrize(
    ("state", "code"), [("failed", 4), ("interrupted", 130), ("stopped_by_budget", 3), ("done", 0)]
)
def test_one_that_did_not_see_enough_exits_as_its_run_does(state: RunState, code: int) -> None:
    """A script that goes by the exit code takes half a table for none."""
    made = prepared()

    class Ending(ScriptedRun):
        def status(self) -> RunStatus:
            return msgspec.structs.replace(super().status(), run_id=made.spec.run_id)

    session = Session(open_cluster=ScriptedCluster(Ending([state], Tally())).open)
    found = running.go(made, made.spec, session, Silent(), to_the_end=False)
    assert running.exit_code(found, to_the_end=False) == code
    seen = msgspec.structs.replace(found.seen, rows=(Row(0, ()),), ended=made.made.rows)
    assert running.exit_code(msgspec.structs.replace(found, seen=seen), to_the_end=True) == 0


@pytest.mark.parametrize("ctrl_c", [False, True])
def test_what_ends_while_it_drains_may_make_it_doubtful_again_and_then_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, ctrl_c: bool
) -> None:
    """Seen: a winner was clear after 121 rows, and not any more with the four that were under way; the command ended as
    if somebody had interrupted it. (Somebody who does, ends it.)"""
    begun()
    made = prepared(fresh=True)
    leader = running.Enough("winner", 121, "a", ())
    shown = iter([leader])
    monkeypatch.setattr(going, "enough", lambda *_, **__: next(shown, None))
    monkeypatch.setattr(going, "LOOK_S", 0.001)
    monkeypatch.setattr(Watch, "_look", lambda _: NOTHING)
    launched: list[bool] = []

    class Going(ScriptedRun):
        """Runs until it is drained; when it was launched again it ends by itself."""

        def status(self) -> RunStatus:
            if "drain" in self.asked and len(launched) == 1:
                if ctrl_c and "cancel" not in self.asked:
                    os.kill(os.getpid(), signal.SIGINT)
                else:
                    self._script = ["interrupted"]
            elif len(launched) == 2:
                self._script = ["done"]
            return msgspec.structs.replace(super().status(), run_id=made.spec.run_id, started_at=2.0)

    class Cluster(ScriptedCluster):
        def launch(self, spec: RunSpec, options: RunOptions, asked: Callable[[], int]) -> ScriptedRun:
            launched.append(options.fresh)
            return super().launch(spec, options, asked)

    display = Heard()
    session = Session(open_cluster=Cluster(Going(["running"], Tally())).open)
    found = running.go(made, made.spec, session, display, to_the_end=False)
    assert launched == ([True] if ctrl_c else [True, False])
    assert running.exit_code(found, to_the_end=False) == (130 if ctrl_c else 0)
    assert any("it goes on" in words for words in display.said) is not ctrl_c


def test_what_was_spent_before_a_fresh_start_is_no_part_of_its_default_budget() -> None:
    made = begun()
    cost, spec = running.price(made, None)
    ((key, limit),) = budget_keys(spec.budgets[-1:], spec.run_id, None, 0.0)
    ledger = LedgerClient(open_state(spec.state), spec.run_id)
    ledger.leases(Wish(key, limit, (limit // 200,)), ["0-1"], 0, (1, 0), 0.0)
    ledger.settle(key, "0-1", limit // 200)
    _, later = running.price(prepared(fresh=True), None)
    assert later.budgets[-1].limit_nano == limit + limit // 200
    _, again = running.price(prepared(), None)  # and goes on with it
    assert again.budgets[-1].limit_nano == later.budgets[-1].limit_nano
    assert cost.cost_nano.high * running.HEADROOM <= limit


def test_nothing_is_concluded_from_what_a_fresh_run_is_about_to_throw_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks begin while Ray starts; they see the old answers until the run has begun."""
    made, history = begun(), open_history(".penstock")
    ours = running.taken(prepared(fresh=True), history)
    assert not ours()
    monkeypatch.setattr(going, "LOOK_S", 0.001)
    looked = threading.Event()
    monkeypatch.setattr(Watch, "_look", lambda _: looked.set() or NOTHING)
    outputs = Outputs(made.spec, RunStatus(made.spec.run_id, "x", "starting"))
    with Watch(outputs, made.asked, (), lambda: None, ours, to_the_end=False):
        assert not looked.wait(0.05)
        history.save_status(RunStatus(made.spec.run_id, made.spec.name, "running", started_at=2.0))
        assert looked.wait(10)


@pytest.mark.parametrize("sensitivity", ["helth", None])
def test_rows_whose_wall_is_unknown_are_not_copied_into_the_state(sensitivity: str | None) -> None:
    """As the job's own run sends them nowhere. What is copied only its owner may read."""
    write_rows(3, {"text": "SECRET", "class": sensitivity, "label": "billing"})
    made = prepared()
    assert made.made.left == {"whose sensitivity names no wall": 1}
    assert not any(b"SECRET" in file.read_bytes() for file in Path(made.spec.state).rglob("*") if file.is_file())
    assert made.place.stat().st_mode & 0o077 == 0


def test_a_fresh_start_leaves_no_row_behind_that_a_wall_hides_now() -> None:
    write_rows(3, {"text": "SECRET", "class": "public", "label": "billing"})
    made = begun()
    assert b"SECRET" in (made.place / "rows.jsonl").read_bytes()
    write_rows(3, {"text": "SECRET", "class": "health", "label": "billing"})
    prepared(fresh=True)
    assert b"SECRET" not in (made.place / "rows.jsonl").read_bytes()
