"""Alert rules and board speak of metrics that exist, and every alert leads to its page of the runbook."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.workers.metrics import API, DRIVER, ENGINE, LANE

ROOT = Path(__file__).parents[2]
RULES = ROOT / "infra/prometheus/alerts.yaml"
BOARD = ROOT / "infra/grafana/penstock.json"
DECLARED = {**LANE, **DRIVER, **API, **ENGINE}
SUFFIX = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
METRIC = re.compile(r"ray_penstock_([a-z_]+)")


def prometheus_program(name: str) -> str:
    program = shutil.which(name)
    if program is None:
        if os.environ.get("PENSTOCK_CI"):
            pytest.fail(f"{name} is not installed (Debian: prometheus)")
        pytest.skip(f"{name} is not installed (Debian: prometheus)")
    return program


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = prometheus_program("promtool")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def exported() -> set[str]:
    return {f"{name}{suffix}" for name, what in DECLARED.items() for suffix in SUFFIX[what.kind]}


def alerts() -> list[dict[str, object]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Of the board, without the headings of its rows."""
    return [panel for panel in json.loads(BOARD.read_text())["panels"] if panel["type"] != "row"]


def test_the_rules_are_sound_and_speak_when_they_should() -> None:
    """`promtool` runs each alert over a series that must raise it and one that must not."""
    checked = promtool("check", "rules", RULES)
    assert checked.returncode == 0, checked.stderr
    tested = promtool("test", "rules", RULES.with_name("alerts_test.yaml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_tested_and_has_its_heading_in_the_runbook() -> None:
    """Whoever is woken up finds what to do."""
    headings = set(re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE))
    tests = RULES.with_name("alerts_test.yaml").read_text()
    for rule in alerts():
        name = str(rule["alert"])
        assert name in headings
        assert f"alertname: {name}" in tests
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"  # type: ignore[index]
    assert headings == {str(rule["alert"]) for rule in alerts()}


@pytest.mark.parametrize("file", [RULES, BOARD], ids=["alerts", "board"])
def test_only_metrics_that_are_exported_are_asked_for(file: Path) -> None:
    """A renamed metric would leave an alert silent for ever."""
    asked = set(METRIC.findall(file.read_text()))
    assert asked
    assert asked <= exported()


def test_every_panel_of_the_board_has_a_query_and_says_what_it_shows() -> None:
    """The board loads as it stands: unique ids, no panel without a source."""
    made = panels()
    assert len({panel["id"] for panel in made}) == len(made) > 15
    for panel in made:
        assert panel["description"]
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize(
    ("title", "metric"),
    [
        ("Dead letters, last hour", "ray_penstock_dead_letters_total"),
        ("Second payments, last hour", "ray_penstock_second_payments_total"),
    ],
)
def test_what_a_new_process_counts_at_once_is_on_the_board(title: str, metric: str, tmp_path: Path) -> None:
    """A process exports a counter when it first has something to count: all of a burst may be in its first sample, and
    `increase` takes that for where it began. What was counted hours ago is not shown."""
    (panel,) = (panel for panel in panels() if panel["title"] == title)
    query = panel["targets"][0]["expr"]
    sees = [(20, 0), (40, 7), (60, 9), (200, 0)]
    case = {
        "interval": "1m",
        "input_series": [
            {"series": f'{metric}{{WorkerId="a"}}', "values": "_x29 7x20 9x160"},
            {"series": f'{metric}{{WorkerId="b"}}', "values": "0x20 0x200"},
        ],
        "promql_expr_test": [
            {"expr": query, "eval_time": f"{at}m", "exp_samples": [{"labels": "{}", "value": n}]} for at, n in sees
        ],
    }
    file = tmp_path / "board_test.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [case]}))
    tested = promtool("test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr
