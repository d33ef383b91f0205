"""What `penstock init` writes is right, rehearses without a key, and shows each idea once."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock.connectors.templates.template import render
from penstock.engine.pricing import price_of
from penstock.jobs import cli, spec

EXAMPLES = Path(__file__).parents[2] / "jobs" / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("job.yaml", "catalog.yaml", "messages.csv"):
        shutil.copy(EXAMPLES / name, tmp_path)
    return tmp_path


def test_the_first_job_is_valid_and_needs_no_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`init`, `sandbox`, `run`: nothing to sign up for, nothing to pay."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    made = spec.load(folder / "job.yaml")
    assert spec.missing_secrets(made) == []
    used = [made.catalog.models[name] for names in made.catalog.tiers.values() for name in names]
    assert {price.version for m in used if (price := price_of(m, m.live))} == {"sandbox-pretend"}


def test_the_samples_meet_the_first_jobs_templates_walls_and_choices(folder: Path) -> None:
    """No row of the sample becomes a dead letter for a reason of its own."""
    made = spec.load(folder / "job.yaml")
    task = made.policy.tasks["department"]
    assert task.prompt is not None
    assert task.prompt.user is not None
    assert task.output is not None
    assert task.output.choices is not None
    with (folder / "messages.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 10
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["text"] in render(task.prompt.user, row)
        assert render(made.row.attributes["sensitivity"], row) in made.catalog.walls
        assert render(made.row.attributes["expected"], row) in task.output.choices
    assert set(made.row.keep or ()) <= set(rows[0])


def test_the_real_thing_is_one_line_away(folder: Path) -> None:
    """The tier that the comment in job.yaml names exists, at a real price."""
    text = (folder / "catalog.yaml").read_text().replace("3: [pretend]", "3: [haiku]")
    (folder / "catalog.yaml").write_text(text)
    made = spec.load(folder / "job.yaml")
    assert made.catalog.tiers[3] == ("haiku",)
    assert spec.missing_secrets(made) in ([], ["env:ANTHROPIC_API_KEY"])
    haiku = made.catalog.models["haiku"]
    price = price_of(haiku, haiku.live)
    assert price is not None
    assert price.version.startswith("genai-prices ")


def test_the_commented_own_worker_reads(folder: Path) -> None:
    """Taking the comment signs away gives a model on own workers."""
    lines = (folder / "catalog.yaml").read_text().splitlines()
    own = [i for i, line in enumerate(lines) if line.startswith("  # ") and (":" in line and "install" not in line)]
    for i in own:
        lines[i] = lines[i].replace("  # ", "  ", 1)
    (folder / "catalog.yaml").write_text("\n".join(lines))
    small = spec.load(folder / "job.yaml").catalog.models["small"]
    assert (small.worker, small.hour_usd, small.context) == ("vllm", 0.10, 1024)


@pytest.mark.parametrize(
    ("flag", "source"), [("--kafka", "kafka://127.0.0.1:9092/requests"), ("--s3", "s3://inbox/messages/*.csv")]
)
def test_a_first_job_over_kafka_or_s3_is_valid_and_needs_no_key(flag: str, source: str, tmp_path: Path) -> None:
    """`init --kafka`, `init --s3`: the same question, from topic to topic or from bucket to bucket."""
    done = CliRunner().invoke(cli.cli, ["init", str(tmp_path / "first"), flag])
    assert done.exit_code == 0, done.output
    made = spec.load(tmp_path / "first" / "job.yaml")
    assert dict(spec.describe(made))["source"] == source
    assert spec.missing_secrets(made) == []
    plain = spec.load(EXAMPLES / "job.yaml")
    assert made.policy == plain.policy
    assert made.row == plain.row
