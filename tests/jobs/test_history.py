"""History: what a state folder remembers of runs, and how a person names one."""

from pathlib import Path

import pytest

from penstock.connectors.settings import FilesSource, KafkaSink, KafkaSource, Row
from penstock.engine.catalog import Catalog
from penstock.engine.errors import Corrupt, SpecError
from penstock.engine.policy import Policy
from penstock.jobs.history import History, open_history
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus, Tally


@pytest.fixture
def history(tmp_path: Path) -> History:
    return open_history(str(tmp_path))


def ran(history: History, run_id: str, name: str, at: float) -> None:
    catalog, policy = Catalog(accounts={}, models={}, tiers={}), Policy(tasks={})
    history.save_spec(RunSpec(run_id, name, {}, FilesSource("x"), None, Row(), catalog, policy, {}))
    history.save_status(RunStatus(run_id, name, "done", started_at=at, tally=Tally(tiers={3: 1})))


def test_the_latest_run_comes_first_and_is_meant_when_nothing_is_said(history: History) -> None:
    """`penstock status` alone is about the run one just made."""
    ran(history, "a-1", "a", 1.0)
    ran(history, "b-1", "b", 2.0)
    assert [run.run_id for run in history.runs()] == ["b-1", "a-1"]
    assert history.find(None) == "b-1"


def test_a_run_is_named_by_id_by_its_start_or_by_its_job(history: History) -> None:
    """A name means that job's latest run."""
    ran(history, "label-11", "label", 1.0)
    ran(history, "label-22", "label", 2.0)
    assert history.find("label-11") == "label-11"
    assert history.find("label-2") == "label-22"
    assert history.find("label") == "label-22"


def test_a_wrong_or_vague_name_is_answered_with_names(history: History) -> None:
    """Nearest name, or all that fit."""
    ran(history, "label-11", "label", 1.0)
    ran(history, "label-12", "other", 2.0)
    with pytest.raises(SpecError, match="did you mean 'label-11'"):
        history.find("labl-11")
    with pytest.raises(SpecError, match="fits 2 runs"):
        history.find("label-1")


def test_a_run_that_never_told_its_status_is_starting(history: History) -> None:
    """The command may have died right after it wrote the spec."""
    catalog, policy = Catalog(accounts={}, models={}, tiers={}), Policy(tasks={})
    history.save_spec(RunSpec("a-1", "a", {}, FilesSource("x"), None, Row(), catalog, policy, {}))
    assert [(run.run_id, run.state) for run in history.runs()] == [("a-1", "starting")]


def test_a_damaged_status_is_not_guessed_around(history: History, tmp_path: Path) -> None:
    """It is named, with the folder it is in."""
    ran(history, "a-1", "a", 1.0)
    (tmp_path / "runs/a-1/status.json").write_text("{")
    with pytest.raises(Corrupt, match=r"runs/a-1/status\.json"):
        history.status("a-1")


def test_a_request_to_cancel_is_there_until_it_is_taken_back(history: History) -> None:
    """Twice taken back is no error."""
    history.ask_cancel("a-1", "ann")
    assert history.cancel_asked("a-1")
    history.forget_cancel("a-1")
    history.forget_cancel("a-1")
    assert not history.cancel_asked("a-1")


def test_a_kind_of_state_that_is_not_there_is_said_so() -> None:
    """Not a traceback from deep inside."""
    with pytest.raises(SpecError, match="Give a folder"):
        open_history("kafka://broker:9092/state")


def test_a_run_stored_before_results_knew_of_replies_still_replies_where_its_records_ask(history: History) -> None:
    """Else going on with it would put replies into the results' topic, and hide those that were given."""
    source = KafkaSource(("requests",), bootstrap="k:1", reply_to=("inbox",))
    catalog, policy = Catalog(accounts={}, models={}, tiers={}), Policy(tasks={})
    before = RunSpec("a-1", "a", {}, source, None, Row(), catalog, policy, {"results": KafkaSink("r", bootstrap="k:1")})
    history.save_spec(before)
    assert history.spec("a-1").sinks == {"results": KafkaSink("r", bootstrap="k:1", reply_to=("inbox",))}


def test_a_run_that_is_named_whole_waits_for_no_other_that_cannot_be_read(history: History, tmp_path: Path) -> None:
    """Anything less might mean that one."""
    ran(history, "a-1", "a", 1.0)
    ran(history, "b-1", "b", 2.0)
    (tmp_path / "runs" / "b-1" / "status.json").write_text("{")
    assert history.find("a-1") == "a-1"
    for wanted in ("a", "a-", None):
        with pytest.raises(Corrupt, match="b-1"):
            history.find(wanted)
