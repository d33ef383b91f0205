"""The board and the alert rules over a job that runs: a real Prometheus finds Ray's processes as `prometheus.yaml`
says, and each panel that has something to show shows it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from penstock.jobs.dev.ports import LOOPBACK, free_port
from penstock.jobs.dev.server import Server
from tests.crash.streams.kafka_lines import Offered, publish
from tests.crash.streams.stage import stage
from tests.crash.streams.stream_bench import StreamBench, StreamShape, line, stream_bench
from tests.infra.test_alerts import ROOT, RULES, panels, prometheus_program

pytestmark = [pytest.mark.ray, pytest.mark.long]

WAIT_S = 300.0
"""Until all is shown, from before the command's start: that alone took 49 s on a busy machine."""
SCRAPE = "5s"
"""How often Prometheus asks, and how long it waits for an answer, which takes seconds where the machine is busy."""
SILENT = {"Idle GPU", "vLLM requests", "vLLM KV cache", "Breakers"}
"""Panels of what this job does not have: own engines, and a model for which nothing is sent."""
SHAPE = StreamShape(items=400, until="forever", lanes=2)
FIRST = """\
  b: {{protocol: openai, base_url: "{url}/v1", limits: {{concurrency: 8, rpm: 600}}}}
models:
  - {{name: faulty, account: b, model: faulty, price: {{input_per_million: 1, output_per_million: 2}}}}
"""
MORE = """\
budgets: [{usd: 5}, {usd: 9, per: day}]
tasks:
  default: {models: [faulty, m], sample: 0.5, scorers: [{type: regex, pattern: "."}]}
"""


def job(b: StreamBench) -> str:
    """Its first model fails now and then and has limits; there are budgets, and samples."""
    return b.job_text().replace("models:\n", FIRST.format(url=b.url), 1) + MORE


class Prometheus(Server):
    """Ours, but for where Ray writes its targets, and how often they are asked."""

    title = "Prometheus"

    def __init__(self, folder: Path, targets: Path) -> None:
        self._port = free_port()
        self._targets = targets
        super().__init__(folder, [self._port])

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    def command(self) -> Sequence[str]:
        config = yaml.safe_load((ROOT / "infra/prometheus/prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
        config["rule_files"] = [str(RULES)]
        (scrape,) = config["scrape_configs"]
        scrape["file_sd_configs"] = [{"files": [str(self._targets)], "refresh_interval": "2s"}]
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        return [
            prometheus_program("prometheus"), "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
            f"--web.listen-address={LOOPBACK}:{self._port}", "--log.level=error",
        ]  # fmt: skip

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.address}/-/ready", timeout=10).status == 200
        except OSError:
            return False


def ask(url: str, expr: str) -> list[dict[str, Any]]:
    query = urllib.parse.urlencode({"query": expr})
    with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10) as response:
        return json.load(response)["data"]["result"]


def queries(job: str) -> list[str]:
    """Of the panels that this job has something for, with that job chosen."""
    seen = (panel for panel in panels() if panel["title"] not in SILENT)
    return [target["expr"].replace("$job", job) for panel in seen for target in panel["targets"]]


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a Ray of its own writes: short, for the paths of its sockets."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder, "ray")


def test_each_panel_shows_a_job_that_runs(
    tmp_path: Path, ray_folder: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_DASHBOARD", "on")
    targets = ray_folder / "prom_metrics_service_discovery.json"
    ray_folder.mkdir()
    with stage(tmp_path / "stage") as servers, stream_bench(servers, tmp_path, SHAPE) as b:
        (b.folder / "job.yaml").write_text(job(b))
        command = b.penstock("run", "job.yaml", shared_ray=False)
        with Prometheus(tmp_path / "prometheus", targets) as server:
            url, until = server.address, time.monotonic() + WAIT_S
            while dark := [expr for expr in queries(b.name) if not ask(url, expr)]:
                asyncio.run(feed(b))
                assert time.monotonic() < until, f"nothing to see in {dark}:\n{b.log(command)}"
                assert command.poll() is None, b.log(command)
                time.sleep(1.0)
            jobs = {one["metric"].get("job") for one in ask(url, "ray_penstock_items_total")}
            assert jobs == {b.name}
            rules = json.load(urllib.request.urlopen(f"{url}/api/v1/rules", timeout=10))["data"]["groups"]
            assert all(rule["health"] == "ok" for group in rules for rule in group["rules"])
        command.send_signal(signal.SIGTERM)
        assert b.end(command) == 130, b.log(command)


async def feed(b: StreamBench) -> None:
    """Requests for whichever model, some with a deadline; and a record that is none."""
    due = datetime.now(UTC) + timedelta(minutes=10)
    deadline = (("penstock-deadline", due.isoformat().encode()),)
    lines = (line(f"more-{time.monotonic()}-{n}", b.shape) for n in range(100))
    asked = [one.replace(b'"model":"m"', b'"model":"auto"') for one in lines]
    records = [Offered(one, headers=deadline if n < 10 else ()) for n, one in enumerate(asked)]
    await publish(b.stage.kafka.bootstrap, b.topic, [*records, Offered(b"no request")])
