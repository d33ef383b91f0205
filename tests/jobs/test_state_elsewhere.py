"""A state on S3, as commands of two machines see it: what all share, and what lies on one of them alone. A machine is a
folder for local files here, and the S3 server is a real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from penstock.connectors.ledger import LedgerClient
from penstock.connectors.state import open_state
from penstock.engine.budget import run_key
from penstock.engine.errors import SpecError
from penstock.engine.flow.till import Wish
from penstock.engine.items import Item
from penstock.jobs.cli import call
from penstock.jobs.evals import running
from penstock.jobs.evals.asked import Asked, Variant, models_of
from penstock.jobs.evals.running import Prepared
from penstock.jobs.history import open_history
from penstock.jobs.look.page import beside
from penstock.jobs.look.reading import Outputs
from penstock.jobs.people.labels import Label, Labels
from penstock.jobs.preview import items
from penstock.jobs.progress import Silent
from penstock.jobs.run import Session
from penstock.jobs.spec import load
from penstock.workers.here import VARIABLE
from penstock.workers.log import Log
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunState, RunStatus, Tally
from tests.jobs.test_cli_run import ScriptedCluster, ScriptedRun

if TYPE_CHECKING:
    from penstock.jobs.dev.s3 import S3Server
    from tests.conftest import S3At

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("s3_keys")]

JOB = """\
name: sort
source: rows.jsonl
prompt: "Which? {{{{ text }}}}"
output: {{choices: [billing, other]}}
scorers: [{{type: exact, expected: "{{{{ label }}}}"}}]
accounts: {{sandbox: {{regions: [us]}}}}
models:
  - {{name: a, account: sandbox, model: m, price: {{input_per_million: 1, output_per_million: 5}}}}
  - {{name: b, account: sandbox, model: n, price: {{input_per_million: 1, output_per_million: 5}}}}
sinks: out.jsonl
state: "{state}"
"""

Machine = Callable[[str], None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Become the machine of that name."""
    return lambda name: monkeypatch.setenv(VARIABLE, str(tmp_path / name))


@pytest.fixture
def state(
    s3_server: S3Server | S3At,
    new_bucket: Callable[..., str],
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """On the machine `first`, in a folder with a job that keeps its state there."""
    url = f"s3://{new_bucket('state')}/team?endpoint={s3_server.endpoint}"
    monkeypatch.chdir(tmp_path)
    machine("first")
    (tmp_path / "job.yaml").write_text(JOB.format(state=url))
    rows = [{"text": f"text {n}", "label": "billing"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return url


def prepared(*, fresh: bool = False, aside: Path | None = None) -> Prepared:
    base = load("job.yaml")
    asked = Asked(base.name, "default", models_of(base.catalog, ("a", "b")), {"": Variant()}, "exact")
    return running.prepare("one", base, asked, None, fresh=fresh, aside=aside)


def gone(made: Prepared, state: RunState = "interrupted") -> None:
    """It was run, and its run ended so."""

    class Ending(ScriptedRun):
        def status(self) -> RunStatus:
            return msgspec.structs.replace(super().status(), run_id=made.spec.run_id)

    session = Session(open_cluster=ScriptedCluster(Ending([state], Tally())).open)
    running.go(made, made.spec, session, Silent(), to_the_end=False)


def told(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    assert call(list(argv)) == code
    read = capsys.readouterr()
    return read.out, read.err


def test_the_same_command_goes_on_where_it_was_and_all_but_its_rows_is_shared(state: str, tmp_path: Path) -> None:
    """Ledger, history and what people said stand at the state URL; prompts and answers on the machine alone."""
    base = load("job.yaml")
    (first, *_) = [item for item in items(base, 20) if isinstance(item, Item)]
    Labels(open_state(state), base.run_id).add([Label(first.item_id, "ann", "2026", "other")])
    made = prepared()
    assert (made.made.rows, made.made.labelled_by_people) == (20, 1)
    gone(made)
    again = prepared()
    assert (again.before, again.anew, again.spec.run_id) == (True, False, made.spec.run_id)
    assert open_history(state).status(made.spec.run_id).state == "interrupted"
    ledger = LedgerClient(open_state(state), made.spec.run_id)
    ledger.leases(Wish(run_key(made.spec.run_id), 1_000_000, (50_000,)), ["0-1"], 0, (1, 0), 0.0)
    ledger.settle(run_key(made.spec.run_id), "0-1", 50_000)
    assert prepared(fresh=True).made.paid_nano == 50_000
    assert (tmp_path / "first").resolve() in made.place.resolve().parents
    assert not any(b"text 1" in (open_state(state).get(key) or (b"",))[0] for key in open_state(state).list(""))


def test_another_machine_is_told_where_an_evaluation_lives_and_pays_nothing(
    state: str, machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name would else be paid for anew, at the same paths even as the same run."""
    made = prepared()
    gone(made)
    machine("second")
    words = rf"was begun on .*{made.place}.*--fresh"
    for attempt in (prepared, lambda: prepared(aside=tmp_path / "aside")):
        with pytest.raises(SpecError, match=words):
            attempt()
    assert "was begun on" in told(capsys, "eval", "show", "one", "--state", state, code=2)[1]
    assert "there are one" in told(capsys, "eval", "show", "two", "--state", state, code=2)[1]


def test_a_fresh_start_elsewhere_is_another_run_and_the_first_machine_is_told(state: str, machine: Machine) -> None:
    """Not before it begins: who only looks at it there takes nothing away. Two runs have each their own money."""
    before = prepared()
    gone(before)
    machine("second")
    after = prepared(fresh=True)
    assert after.spec.run_id != before.spec.run_id
    machine("first")
    assert prepared().spec.run_id == before.spec.run_id
    machine("second")
    gone(after)
    assert not prepared().anew
    machine("first")
    with pytest.raises(SpecError, match="was begun on"):
        prepared()


def test_of_two_machines_that_begin_one_name_at_once_one_pays(state: str, machine: Machine) -> None:
    both: list[Prepared] = []
    for name in ("first", "second"):
        machine(name)
        both.append(prepared())
    gone(both[1])
    with pytest.raises(SpecError, match="was begun on"):
        gone(both[0])
    assert not open_history(state).knows(both[0].spec.run_id)


def test_a_report_shows_the_evaluations_that_lie_on_its_machine(state: str, machine: Machine) -> None:
    gone(prepared())
    spec: RunSpec = load("job.yaml")
    outputs = Outputs(spec, RunStatus(spec.run_id, "sort", "done"))
    assert [found.prepared.name for found in beside.gather(outputs).evaluations] == ["one"]
    machine("second")
    assert beside.gather(outputs).evaluations == ()


def test_logs_are_read_on_their_machine_and_missed_in_words_elsewhere(
    state: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each says of how much it can tell."""
    run_id = "job-1"
    history = open_history(state)
    history.save_spec(msgspec.structs.replace(load("job.yaml"), run_id=run_id))
    Log(state, run_id, "lane-0")("warning", "lane fenced", lane=0)
    out, err = told(capsys, "logs", run_id, "--state", state)
    assert "lane fenced" in out
    assert "logged on this machine, in" in err
    machine("second")
    out, err = told(capsys, "logs", run_id, "--state", state)
    assert out == ""
    assert "each machine keeps the logs of its own processes: this one has no" in err
