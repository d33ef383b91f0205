"""The demo's parts: right job files, its own folder only, a kill that is a kill, sums that are measured."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from penstock.engine.errors import SpecError
from penstock.engine.pricing import price_of
from penstock.engine.steering.rollout import How
from penstock.jobs import demo_data, rollouts
from penstock.jobs import spec as job_spec
from penstock.jobs.demo import commands, extra, files, play, real, rehearsal, sums, versions
from penstock.jobs.demo.stage import Stage
from penstock.jobs.history import open_history
from penstock.jobs.look.committed import Line, Outputs, Sample
from penstock.jobs.look.verify import Report
from penstock.jobs.sandbox import cases, running_sandbox
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    made.console = Console(file=io.StringIO(), width=100, highlight=False)
    return made


def _said(stage: Stage) -> str:
    assert isinstance(stage.console.file, io.StringIO)
    return stage.console.file.getvalue()


def _spec(folder: Path, catalog: str, tasks: str) -> RunSpec:
    files.write_rows(folder / "packages.jsonl", demo_data.rows(demo_data.installed()))
    files.write(folder, {"catalog.yaml": catalog, "job.yaml": files.job("demo", tasks, 1.0)})
    return job_spec.load(folder / "job.yaml")


def test_the_rehearsals_job_is_valid_and_its_prices_are_marked_as_pretended(tmp_path: Path) -> None:
    """Three tiers at the sandbox; the planted row's sensitivity has no wall."""
    spec = _spec(tmp_path, files.rehearsal_catalog("http://127.0.0.1:1"), files.TASKS + files.SHORTEN)
    assert sums.tiers_of(spec.catalog) == {"large": 1, "medium": 2, "little": 3}
    assert {m.price.version for m in spec.catalog.models.values() if m.price} == {"pretend"}
    assert set(spec.policy.tasks) == {"topic", "rewrite", "shorten"}
    assert rehearsal.PLANTED.sensitivity not in spec.catalog.walls


@pytest.mark.parametrize("tier1", [None, "anthropic/claude-haiku-4-5", "openai/gpt-4.1-mini"])
def test_the_real_parts_job_is_valid(tmp_path: Path, tier1: str | None) -> None:
    """Tier 3 on a worker of our own; Tier 1 at the sandbox or at a known host with a price."""
    spec = _spec(tmp_path, files.real_catalog("http://127.0.0.1:1", tmp_path / "a model", tier1), files.TASKS)
    large = spec.catalog.models[spec.catalog.tiers[1][0]]
    price = price_of(large, large.live)
    assert price is not None
    assert price.output > 0
    assert "public" in spec.catalog.walls
    assert spec.catalog.models["small"].worker == "vllm"
    assert spec.catalog.models["small"].live_version.model == str(tmp_path / "a model")


def test_the_real_part_has_two_pretended_models_of_known_quality_to_compare_with(tmp_path: Path) -> None:
    """At pretended prices, and the sandbox knows the true topics of the very rows."""
    spec = _spec(tmp_path, files.real_catalog("http://127.0.0.1:1", tmp_path / "a model", None), files.TASKS)
    for name in files.PLANTED:
        price = spec.catalog.models[name].price
        assert price is not None
        assert price.version == "pretend"
    settings = real._sandbox(tmp_path / "packages.jsonl")
    planted = [settings.models[spec.catalog.models[name].live_version.model].planted for name in files.PLANTED]
    assert [plan.quality for plan in planted if plan is not None] == list(real.PLANTED)
    assert settings.truth is not None
    assert settings.truth.path == str(tmp_path / "packages.jsonl")


def _planted_spec(folder: Path) -> RunSpec:
    files.write(folder, {"catalog.yaml": files.planted_catalog("http://127.0.0.1:1"), "job.yaml": files.PLANTED_JOB})
    return job_spec.load(folder / "job.yaml")


def test_the_part_about_quality_has_a_worse_version_and_pretended_prices(tmp_path: Path) -> None:
    """Every answer is scored, each version's quality is planted, and the best candidate is the one that is named."""
    (tmp_path / "messages.jsonl").write_bytes(msgspec.json.encode(next(cases.rows(1))) + b"\n")
    spec = _planted_spec(tmp_path)
    assert {model.price.version for model in spec.catalog.models.values() if model.price} == {"pretend"}
    assert spec.policy.tasks["department"].sample == 1.0
    served = {v.model for model in spec.catalog.models.values() for v in model.versions}
    assert served == set(versions.PLANTED)
    assert versions.PLANTED["pretend-clerk-v2"] < versions.PLANTED["pretend-clerk-v1"]
    best = max((name for name in versions.PLANTED), key=versions.PLANTED.__getitem__)
    assert best == "pretend-clerk-v1"
    assert versions.BEST in versions.CANDIDATES


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ("clerk@v1", 0, "the right winner: clerk"),
        (None, 1, "the evaluation named no winner, and clerk@v1 is by far the best one"),
        ("large", 1, "the evaluation named large, and clerk@v1 is the best one"),
    ],
)
def test_a_wrong_winner_fails_the_demo_and_so_does_none(stage: Stage, found: str | None, code: int, said: str) -> None:
    """What was found stands beside what was planted."""
    assert versions.tell_winner(stage, found, versions.BEST) == code
    assert said in " ".join(_said(stage).split())


def test_a_rollback_is_told_with_the_share_that_saw_the_bad_version(tmp_path: Path, stage: Stage) -> None:
    """From the decisions and from the committed samples; a worse version that stayed fails the demo."""
    (tmp_path / "messages.jsonl").write_bytes(msgspec.json.encode(next(cases.rows(1))) + b"\n")
    history = open_history(str(tmp_path / ".penstock"))
    history.save_spec(_planted_spec(tmp_path))
    history.save_status(RunStatus("demo-quality-1", "demo-quality", "running", started_at=1.0))
    state = str(tmp_path / ".penstock")
    ask = rollouts.Ask("clerk", "v2", (0.1, 0.5), ("quality",), how=How(unit="item"))
    going = rollouts.start(state, ask, rollouts.Job(_planted_spec(tmp_path).catalog, None)).rollout
    lines = [(f"i{n}", "v2" if n < 4 else "v1", n not in (0, 1, 4)) for n in range(40)]
    (tmp_path / "results.quality.jsonl").write_bytes(
        b"".join(
            msgspec.json.encode({"item_id": item, "model_version": version, "scorer": "exact", "passed": passed})
            + b"\n"
            for item, version, passed in lines
        )
    )
    seen = versions.sides(tmp_path)
    assert seen == {"v1": versions.Side(36, 35), "v2": versions.Side(4, 2)}
    assert versions.tell_change(stage, going, seen) == 1
    assert "v2 was not taken back" in _said(stage)
    back = rollouts.speak(state, "clerk", "rollback", "it [swears]").rollout
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as job:
        versions.watch(stage, state, job)
    assert "it [swears] the job runs on; what it sends from now on goes to v1" in " ".join(_said(stage).split())
    assert versions.tell_change(stage, back, seen) == 0
    shown = " ".join(_said(stage).split())
    assert "4 of 40 items (10 %) saw the worse version" in shown
    assert "v1: 35 of 36 right, 97 %; planted 92 %" in shown
    assert "v2: 2 of 4 right, 50 %; planted 70 %" in shown


@pytest.mark.parametrize("quick", [True, False])
def test_what_comes_next_fits_eighty_columns(stage: Stage, quick: bool) -> None:
    """One line each, and the short demo says what the long one has more."""
    play._next(stage, Path("demo"), quick)
    lines = [line for line in _said(stage).splitlines() if line.startswith("  ")]
    assert all(len(line) <= 80 and "#" in line for line in lines)
    assert ("make demo" in _said(stage)) == quick


def test_only_a_folder_of_the_demo_is_emptied(tmp_path: Path) -> None:
    """A folder of that name with somebody's files in it is refused; our own is used again, and an act starts empty."""
    theirs = tmp_path / "demo"
    theirs.mkdir()
    (theirs / "thesis.txt").touch()
    with pytest.raises(SpecError, match="isn't the demo's"):
        files.act(theirs, "sandbox")
    assert (theirs / "thesis.txt").exists()
    ours = files.claim(tmp_path / "ours")
    (files.act(ours, "sandbox") / "old").touch()
    (ours / "install.log").touch()
    assert list(files.act(ours, "sandbox").iterdir()) == []
    assert (ours / "install.log").exists()


def test_the_kill_is_a_kill_and_comes_when_calls_were_answered() -> None:
    """SIGKILL once the sandbox has answered enough; a command that ends by itself isn't killed."""
    asks = (
        "import json, sys, time, urllib.request as r\n"
        "body = json.dumps({'model': 'm', 'messages': [{'role': 'user', 'content': 'hello'}]}).encode()\n"
        "for _ in range(3): r.urlopen(r.Request(sys.argv[1] + '/v1/chat/completions', body)).read()\n"
        "time.sleep(float(sys.argv[2]))\n"
    )
    with running_sandbox() as url:
        assert commands.served(url) == 0
        process = subprocess.Popen([sys.executable, "-c", asks, url, "60"])
        assert commands.kill_when_served(process, url, 3, 30.0) == 3
        assert process.returncode == -9
        ends = subprocess.Popen([sys.executable, "-c", asks, url, "0"])
        assert commands.kill_when_served(ends, url, 1000, 30.0) is None
        assert ends.wait() == 0
    assert commands.served("http://127.0.0.1:9") == 0


def test_the_command_line_is_found_without_a_path(tmp_path: Path) -> None:
    """`penstock` is started by this Python, wherever its script lies."""
    assert commands.run(["--version"], tmp_path) == 0
    assert commands.run(["no-such-command"], tmp_path) == 2


def test_the_bill_shows_what_all_tier_1_would_have_cost(tmp_path: Path, stage: Stage) -> None:
    """The same tokens at Tier 1's price, model by model, from the costs file."""
    catalog = _spec(tmp_path, files.rehearsal_catalog("http://127.0.0.1:1"), files.TASKS + files.SHORTEN).catalog
    lines = [
        Line("a", "i1", 1, "primary", 7_500_000, "metered", 1_000, 100, "large"),
        Line("b", "i2", 1, "primary", 48_000, "metered", 2_000, 200, "little"),
    ]
    bills = sums.bills(lines, catalog, "large")
    assert [(b.model, b.nano, b.as_tier1_nano) for b in bills] == [
        ("large", 7_500_000, 7_500_000),
        ("little", 48_000, 15_000_000),
    ]
    sums.cost_table(stage, bills, sums.tiers_of(catalog), "pretended")
    assert "saved against all-Tier-1: $0.0150 (66 %); pretended" in _said(stage)


@pytest.mark.parametrize(
    ("right", "said"),
    [(36, "the model is better than that"), (24, "is not shown to be better"), (8, "the model is worse than that")],
)
def test_accuracy_is_said_with_its_interval_and_beside_the_commonest_label(stage: Stage, right: int, said: str) -> None:
    """A few dozen labels are not known to the percent, and beating an even guess among uneven labels is no feat."""
    quality = tuple(Sample(f"i{n}", "exact", passed=n < right) for n in range(40))
    sums.accuracy(stage, Outputs((), quality=quality), ["web"] * 20 + ["text"] * 12 + ["science"] * 8)
    shown = " ".join(_said(stage).split())
    assert f"{right} of 40" in shown
    assert "95 % interval" in shown
    assert "always saying 'web' would be right in 50 %" in shown
    assert said in shown


def test_a_loss_would_be_shown(stage: Stage) -> None:
    """The sentence is measured: a fault fails the demo."""
    fine = Report((), 10, 9, 1, 0, 0, 2, 2, 5)
    assert sums.check(stage, fine, killed_after=4)
    assert "0 lost, 0 twice, 2 repeated" in _said(stage)
    bad = msgspec.structs.replace(fine, lost=1, violations=(_violation(),))
    assert not sums.check(stage, bad, killed_after=4)
    assert "lost: row-1" in _said(stage)


def _violation() -> object:
    from penstock.jobs.look.verify import Violation

    return Violation("lost", "row-1", "offered 1 times, found 0 times")


def test_a_python_that_has_vllm_is_used_as_it_is(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed where it is there already."""
    monkeypatch.setenv("PENSTOCK_VLLM_PYTHON", sys.executable)
    install = extra.begin(stage, tmp_path)
    assert install is not None
    assert install.wait(stage)
    assert not (tmp_path / "install.log").exists()


def test_too_small_a_disk_is_said_and_nothing_starts(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 GB are not begun where they don't fit."""
    monkeypatch.setattr(extra, "NEED_GB", 1e9)
    assert extra._start(stage, tmp_path, "uv-that-does-not-exist", tmp_path) is None
    assert "The real part is left out" in _said(stage)


def test_what_make_installed_is_installed_and_what_is_older_than_the_lock_is_not(tmp_path: Path) -> None:
    """The demo and `make test` share an environment: neither does the other's work again, nor trusts an old one."""
    for name in ("pyproject.toml", "uv.lock"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (100, 100))
    assert not extra._is_done(tmp_path)
    mark = tmp_path / extra.ENVIRONMENT / extra.DONE
    mark.parent.mkdir()
    mark.touch()
    assert extra._is_done(tmp_path)
    os.utime(tmp_path / "uv.lock", (1e10, 1e10))
    assert not extra._is_done(tmp_path)
    assert f"{extra.ENVIRONMENT}/{extra.DONE}" in (extra.checkout() or tmp_path).joinpath("Makefile").read_text()
