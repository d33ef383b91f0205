"""The audit log from the command line: what is listed, how a tampering is told, what an auditor can do alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.connectors.audit import open_audit
from penstock.connectors.settings import FilesSource, Row
from penstock.engine.audit import KINDS, Draft
from penstock.engine.catalog import Catalog
from penstock.engine.policy import Policy
from penstock.jobs.cli import call
from penstock.jobs.history import open_history
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunState, RunStatus

DAY = 86_400.0
AT = 1_795_525_200.0
"""2026-11-24 13:00:00 UTC."""


def known(state: str, run_id: str, told: RunState) -> None:
    history = open_history(state)
    catalog, policy = Catalog(accounts={}, models={}, tiers={}), Policy(tasks={})
    history.save_spec(RunSpec(run_id, "label", {}, FilesSource("x"), None, Row(), catalog, policy, {}, state=state))
    history.save_status(RunStatus(run_id, "label", told, started_at=1.0))


def test_help_names_every_kind_of_entry(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that `--kind` takes; a new one can't be forgotten."""
    assert call(["audit", "list", "--help"]) == 0
    assert set(KINDS) <= set(capsys.readouterr().out.replace(".", " ").split())


@pytest.fixture
def state(tmp_path: Path) -> str:
    """A state whose log has three days of two jobs."""
    url = str(tmp_path / "state")
    log = open_audit(url)
    for day, (kind, job) in enumerate([("run_started", "label"), ("budget_stop", "label"), ("run_started", "other")]):
        log.append(Draft(AT + day * DAY, "ann@host/penstock run", kind, job, f"{job}-1", {"day": day}))  # type: ignore[arg-type]
    return url


def listed(capsys: pytest.CaptureFixture[str], state: str, *args: str) -> list[int]:
    assert call(["audit", "list", "--state", state, "--json", *args]) == 0
    return [entry["seq"] for entry in json.loads(capsys.readouterr().out)]


def test_entries_are_chosen_by_kind_run_and_time(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By a run's id, its start, or its job; from a day, a time or an age on; the last N."""
    assert listed(capsys, state) == [1, 2, 3]
    assert listed(capsys, state, "--kind", "budget_stop", "--kind", "policy") == [2]
    assert listed(capsys, state, "--run", "label") == listed(capsys, state, "--run", "label-") == [1, 2]
    assert listed(capsys, state, "--since", "2026-11-25") == [2, 3]
    assert listed(capsys, state, "--since", "2026-11-25T15:00:00+02:00") == [2, 3]
    assert listed(capsys, state, "--since", "2026-11-25T13:00:00.001") == [3]
    assert listed(capsys, state, "--since", "9000w", "--limit", "1") == [3]


def test_a_listed_entry_says_who_did_what_when(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    """For people: two lines an entry."""
    assert call(["audit", "list", "--state", state, "--kind", "budget_stop"]) == 0
    out = capsys.readouterr().out
    assert "2  2026-11-25T13:00:00.000Z  budget_stop  label-1" in out
    assert 'ann@host/penstock run  {"day":1}' in out


@pytest.mark.parametrize("since", ["soon", "d", "2026-13-01", "1e999d", ""])
def test_a_time_that_is_none_is_told(state: str, since: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["audit", "list", "--state", state, "--since", since]) == 2
    assert "90m, 12h, 7d" in capsys.readouterr().err


def test_a_log_that_holds_gives_a_head_to_keep(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed can be given back, after the log has grown."""
    assert call(["audit", "verify", "--state", state]) == 0
    head = re.search(r"^head (3:[0-9a-f]{64})$", capsys.readouterr().out, re.MULTILINE)
    assert head is not None
    open_audit(state).append(Draft(AT, "a", "label"))
    assert call(["audit", "verify", "--state", state, "--head", head[1]]) == 0
    assert call(["audit", "verify", "--state", state, "--head", f"3:{'a' * 64}"]) == 6
    assert "forked at entry 3 (your head)" in capsys.readouterr().out


def test_a_tampering_is_told_with_its_place_and_exit_code_6(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    """To people and machines; the tampered log is exported as it is, and its copy is broken at the same place."""
    segment = Path(state) / "audit" / "000001.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b'{"day":1}', b'{"day":9}'))
    assert call(["audit", "verify", "--state", state]) == 6
    assert "altered at entry 2 (audit/000001.jsonl, line 2)" in capsys.readouterr().out
    assert call(["audit", "verify", "--state", state, "--json"]) == 6
    told = json.loads(capsys.readouterr().out)
    assert (told["holds"], told["entries"], told["broken"]["fault"], told["broken"]["seq"]) == (False, 1, "altered", 2)
    copy = f"{state}-copy.jsonl"
    assert call(["audit", "export", copy, "--state", state]) == 6
    assert call(["audit", "verify", "--file", copy]) == 6


def test_a_log_that_is_gone_does_not_pass_for_one_that_holds(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does a wrong --state. With a kept head it is known to have been cut off."""
    head = str(open_audit(state).head())
    shutil.rmtree(Path(state) / "audit")
    assert call(["audit", "verify", "--state", state]) == 2
    assert "there is no audit log" in capsys.readouterr().err
    assert call(["audit", "verify", "--state", state, "--head", head]) == 6
    assert call(["audit", "export", f"{state}.jsonl", "--state", state]) == 2


def test_an_exported_log_is_verified_without_the_state(
    state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after the state is gone; cut off, it is told. It is written for its owner's eyes and over no other file."""
    file = tmp_path / "log.jsonl"
    assert call(["audit", "export", str(file), "--state", state]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert call(["audit", "export", str(file), "--state", state]) == 2
    shutil.rmtree(state)
    assert call(["audit", "verify", "--file", str(file)]) == 0
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    capsys.readouterr()
    assert call(["audit", "verify", "--file", str(file)]) == 6
    assert "truncated at entry 4" in capsys.readouterr().out


def test_an_exported_log_can_be_checked_without_penstock(state: str, tmp_path: Path) -> None:
    """By the rule that `export --help` states."""
    file = tmp_path / "log.jsonl"
    assert call(["audit", "export", str(file), "--state", state]) == 0
    program = (
        "import hashlib, json, sys\n"
        "prev = '0' * 64\n"
        "for line in open(sys.argv[1], 'rb'):\n"
        "    told = json.loads(line)\n"
        "    if 'count' in told: assert told['hash'] == prev; continue\n"
        "    assert told['prev'] == prev\n"
        '    prev = hashlib.blake2b(line[:line.rindex(b\',"hash":"\')], digest_size=32).hexdigest()\n'
    )
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)


def test_who_cancels_pauses_and_resumes_is_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under their own command."""
    state = str(tmp_path)
    known(state, "label-1", "running")
    for command in (["pause", "--tier", "3"], ["resume"], ["cancel"]):
        assert call([command[0], "label-1", "--state", state, *command[1:]]) == 0
    entries = list(open_audit(state).entries())
    assert [(e.kind, e.job, e.run, bytes(e.facts)) for e in entries] == [
        ("pause", "label", "label-1", b'{"tiers":[3]}'),
        ("pause", "label", "label-1", b'{"tiers":[]}'),
        ("cancel", "label", "label-1", b"{}"),
    ]
    assert all("@" in entry.actor for entry in entries)


def test_a_broken_log_keeps_nobody_from_stopping_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The request stands; that it isn't in the log is said."""
    state = str(tmp_path)
    known(state, "label-1", "running")
    open_audit(state).append(Draft(AT, "a", "label"))
    (tmp_path / "audit" / "head.json").unlink()
    assert call(["cancel", "label-1", "--state", state]) == 0
    assert "not in the audit log" in capsys.readouterr().err
    assert open_history(state).cancel_asked("label-1")
