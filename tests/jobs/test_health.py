"""Probes: what they are answered while a run starts, works, hangs and drains."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import pytest

from penstock.engine.errors import SpecError
from penstock.jobs.dev.ports import free_port
from penstock.jobs.health import alive, probed, ready
from penstock.jobs.progress import Meter, Silent
from penstock.workers.status import RunState, RunStatus, Tally

NOW = 1_000_000.0


def status(state: RunState, **more: object) -> RunStatus:
    given = {"updated_at": NOW, "epoch": 1, "lanes": 4, **more}
    return RunStatus("secret-run", "secret name", state, **given)  # type: ignore[arg-type]


def test_it_is_alive_while_its_driver_answers() -> None:
    """And while it is started: listing a large input takes minutes."""
    assert alive(None, NOW).ok
    assert alive(status("starting", epoch=0), NOW + 300).ok
    assert alive(status("running"), NOW + 9).ok
    assert not alive(status("running"), NOW + 11).ok
    assert not alive(status("starting"), NOW + 11).ok


def test_it_is_ready_while_its_lanes_commit() -> None:
    """Not while it starts or drains, nor while its store takes no commits."""
    assert ready(status("running"), NOW).ok
    for told in (None, status("starting"), status("draining"), status("running", commit_age_s=61.0)):
        assert not ready(told, NOW).ok
    assert not ready(status("running"), NOW + 11).ok


def ask(port: int, path: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_probes_are_answered_with_numbers_only() -> None:
    """No name, no path, no text of anybody."""
    port = free_port()
    with probed(Silent(), "127.0.0.1", port) as display:
        assert ask(port, "healthz")[0] == 200
        assert ask(port, "readyz")[0] == 503
        tally = Tally(results=5, dead_letters={"deadline": 2}, in_flight={3: 7})
        running = status("running", updated_at=time.time(), tally=tally, lag={"topic": 9}, message="a secret")
        display.show(Meter().see(running, time.time()))
        code, told = ask(port, "readyz")
        assert code == 200
        assert (told["items"], told["dead_letters"], told["in_flight"], told["lag"]) == (7, 2, 7, 9)
        assert told["state"] == "running"
        assert "secret" not in json.dumps(told)
        with pytest.raises(SpecError, match="can't be listened on"), probed(Silent(), "127.0.0.1", port):
            pass
    with pytest.raises(urllib.error.URLError):
        ask(port, "healthz")
