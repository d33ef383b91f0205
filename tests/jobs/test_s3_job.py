"""Whole jobs whose results, costs and state stand on S3, as people run them, against a real S3 server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import penstock as ps
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.measured import Registry
from penstock.connectors.s3 import client as s3_client
from penstock.connectors.state import open_state
from penstock.engine.budget import run_key
from penstock.engine.errors import SpecError
from penstock.jobs.cli import call
from penstock.jobs.dev.kafka import CONSOLE_PRODUCER, CONSUMER_GROUPS
from penstock.jobs.history import open_history
from penstock.jobs.sandbox import running_sandbox
from penstock.workers.here import folder_here
from tests.conftest import ray_of_a_file
from tests.jobs.test_end_to_end import calls

if TYPE_CHECKING:
    from penstock.jobs.dev.kafka import KafkaServer
    from penstock.jobs.dev.s3 import S3Server
    from tests.conftest import S3At

pytestmark = [pytest.mark.ray, pytest.mark.s3]

JOB = """\
name: label-messages
source: in.jsonl
row: {{id: "{{{{ n }}}}", keep: [n, shop]}}
prompt: "{{{{ text }}}}"
output: {{choices: [delivery, billing]}}
params: {{max_tokens: 8}}
sample: 1.0
scorers: [{{type: regex, pattern: "."}}]
accounts: {{a: {{protocol: openai, base_url: "{sandbox}/v1"}}}}
models: [{{name: m, account: a, model: m, price: {{input_per_million: 1, output_per_million: 1}}}}]
sinks:
  results: {{type: s3, bucket: {bucket}, prefix: out/results/, format: parquet, partition_by: [date, shop], endpoint: "{s3}"}}
  costs: {{type: s3, bucket: {bucket}, prefix: out/costs.jsonl, endpoint: "{s3}"}}
budgets: [{{usd: 5}}]
state: "s3://{bucket}/state?endpoint={s3}"
"""  # noqa: E501 - a job file stands here as people write it


@pytest.fixture(scope="module")
def ray_and_keys(s3_server: S3Server | S3At) -> Iterator[None]:
    """One Ray for this file; its workers find the credentials in the environment, as on a machine of AWS."""
    with ray_of_a_file(s3_server.keys.environment):
        yield


@pytest.fixture(scope="module")
def sandbox() -> Iterator[str]:
    with running_sandbox(process=True) as url:
        yield url


def test_results_costs_and_state_on_s3(
    ray_and_keys: None,
    sandbox: str,
    s3_server: S3Server | S3At,
    new_bucket: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each row ends once; the bill is the sum of the costs; the same command again has nothing to do; `costs`,
    `explain` and Python's result read what stands on S3; readers see Hive folders and no working files."""
    bucket = new_bucket("job")
    rows = [{"n": n, "shop": f"s{n % 2}", "text": f"message {n}"} for n in range(60)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(sandbox=sandbox, bucket=bucket, s3=s3_server.endpoint))
    result = ps.run(str(job))
    assert result.status.state == "done"
    table = result.to_arrow()
    assert sorted(table.column("n").to_pylist()) == list(range(60))
    costs = list(result.costs())
    assert result.status.tally.cost_nano == round(sum(line.usd for line in costs) * 1e9)
    assert list(result.dead_letters()) == []
    keys = [one.key for page in s3_client.client(s3_server.endpoint).pages(bucket, "out/") for one in page]
    shown = [key for key in keys if "/." not in key]
    folders = {key.rpartition("/")[0].split("/")[-1] for key in shown if key.startswith("out/results/date=")}
    assert folders == {"shop=s0", "shop=s1"}
    assert "out/costs.jsonl" in shown
    assert "out/results/_manifest.json" in shown
    capsys.readouterr()
    assert call(["run", str(job)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    item = table.column("penstock_item_id")[0].as_py()
    state = f"s3://{bucket}/state?endpoint={s3_server.endpoint}"
    for command in (["explain", item], ["costs"], ["report"], ["status"]):
        assert call([*command, "--run", result.spec.run_id, "--state", state]) == 0, command
    assert item[:12] in capsys.readouterr().out
    assert call(["logs", "--run", result.spec.run_id, "--state", state, "--json"]) == 0
    logged = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["process"].partition("-")[0] for line in logged} == {"driver", "lane", "worker"}
    assert "lane closed" in [line["event"] for line in logged]


@pytest.mark.long
def test_dead_letters_are_sent_again_where_the_state_is_on_s3(
    ray_and_keys: None,
    sandbox: str,
    s3_server: S3Server | S3At,
    new_bucket: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the mended job. No disk of this machine holds them; the results stand beside the real ones."""
    bucket = new_bucket("job")
    rows = [{"n": n, "shop": "s", **({} if n % 10 == 3 else {"text": f"message {n}"})} for n in range(30)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = tmp_path / "job.yaml"
    written = JOB.format(sandbox=sandbox, bucket=bucket, s3=s3_server.endpoint)
    job.write_text(written)
    assert call(["run", str(job)]) == 5
    job.write_text(written.replace("{{ text }}", "{{ text | default('nothing') }}"))
    replay = ["dead-letters", "replay", str(job), "--all", "--yes"]
    assert call(replay) == 0
    assert "sending 3 dead letters again" in capsys.readouterr().out
    keys = [one.key for page in s3_client.client(s3_server.endpoint).pages(bucket) for one in page]
    assert [key for key in keys if key.startswith("out/results.replay-1/date=")]
    assert len([key for key in keys if key.startswith("state/replays/")]) == 1
    assert call(replay) == 2
    assert "has no dead letters to send again" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/replays"))


def test_a_table_in_memory_with_its_state_on_s3_is_paid_for_once(
    ray_and_keys: None, sandbox: str, new_bucket: Callable[..., str], s3_server: S3Server | S3At, tmp_path: Path
) -> None:
    """The same call sends nothing. Money and history stand on S3; rows and answers on this machine alone."""
    state = f"s3://{new_bucket('state')}/team?endpoint={s3_server.endpoint}"
    price = {"input_per_million": 1, "output_per_million": 1}
    model = {"name": "m", "base_url": f"{sandbox}/v1", "model": "m", "price": price}

    def mapped() -> list[dict[str, Any]]:
        rows = [{"text": f"message {n}"} for n in range(20)]
        return ps.map(rows, prompt="{{ text }}", models=[model], budget_usd=1, state=state, progress=False)

    done = mapped()
    assert [row["text"] for row in done if row["answer"]] == [f"message {n}" for n in range(20)]
    paid = calls(sandbox).total()
    assert mapped() == done
    assert calls(sandbox).total() == paid
    there = open_state(state)
    (ledger,) = [key for key in there.list("ledger/") if key.startswith("ledger/run~map-")]
    settled = json.loads((there.get(ledger) or (b"",))[0])["settled_nano"]
    assert settled == round(sum(row["cost_usd"] for row in done) * 1e9)
    assert len(list((folder_here(state) / "maps").glob("*.jsonl"))) == 1
    assert not any(b"message 1" in (there.get(key) or (b"",))[0] for key in there.list(""))
    (folder_here(state) / "maps").rename(tmp_path / "elsewhere")  # as another machine sees it
    with pytest.raises(SpecError, match="was made before"):
        mapped()
    assert calls(sandbox).total() == paid


EVALUATED = """\
name: sort
source: rows.jsonl
prompt: "Which department? {{{{ text }}}}"
output: {{choices: [billing, delivery, other, product]}}
params: {{max_tokens: 8, temperature: 0}}
scorers: [{{type: exact, expected: "{{{{ label }}}}"}}]
accounts: {{s: {{protocol: openai, base_url: "{sandbox}/v1"}}}}
models:
  - {{name: good, account: s, model: "planted:0.60", price: {{input_per_million: 1, output_per_million: 2}}}}
  - {{name: best, account: s, model: "planted:0.95:best", price: {{input_per_million: 1, output_per_million: 2}}}}
sinks: out.jsonl
state: "{state}"
"""


@pytest.mark.long
def test_an_evaluation_with_its_state_on_s3_tells_the_registry_that_jobs_share(
    ray_and_keys: None,
    sandbox: str,
    s3_server: S3Server | S3At,
    new_bucket: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The winner is named; asked again it calls nobody; budget, history and measured quality stand at the state URL."""
    state = f"s3://{new_bucket('state')}/team?endpoint={s3_server.endpoint}"
    monkeypatch.chdir(tmp_path)
    assert call(["sandbox", "rows", "300", "-o", "rows.jsonl"]) == 0
    (tmp_path / "job.yaml").write_text(EVALUATED.format(sandbox=sandbox, state=state))
    told = evaluated(capsys, "--name", "shared")
    assert told["winner"].startswith("best@")
    again = evaluated(capsys, "--name", "shared")
    assert (again["spent_usd"], again["rows"]) == (told["spent_usd"], told["rows"])
    assert call(["eval", "show", "shared", "--state", state]) == 0
    assert "the winner is best" in capsys.readouterr().out
    shared = Registry(open_state(state)).read()
    assert {cell.model for cell in shared.cells if cell.scores} == {"good", "best"}
    assert open_history(state).status(told["run_id"]).state in ("done", "interrupted")
    ledger = LedgerClient(open_state(state), told["run_id"]).read(run_key(told["run_id"]))
    assert ledger is not None
    assert ledger.settled_nano == round(told["spent_usd"] * 1e9)


def evaluated(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert call(["eval", "job.yaml", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


TOPIC_JOB = """\
name: topic-to-bucket
source: {{type: kafka, topics: [{topic}], bootstrap: "{kafka}", until: end, group: {topic}-group}}
row: {{id: "{{{{ n }}}}", keep: [n]}}
prompt: "{{{{ text }}}}"
params: {{max_tokens: 8}}
accounts: {{a: {{protocol: openai, base_url: "{sandbox}/v1"}}}}
models: [{{name: m, account: a, model: m, price: {{input_per_million: 1, output_per_million: 1}}}}]
sinks: {{results: {{type: s3, bucket: {bucket}, prefix: out/results/, endpoint: "{s3}"}}}}
budgets: [{{usd: 5}}]
state: "{state}"
"""


@pytest.mark.kafka
def test_lag_tools_see_a_job_from_a_topic_to_a_bucket(
    ray_and_keys: None,
    sandbox: str,
    kafka_server: KafkaServer,
    s3_server: S3Server | S3At,
    new_topic: Callable[..., Awaitable[str]],
    new_bucket: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Kafka's own tool shows the group's lag at zero once the job has ended, though no result is in Kafka."""
    topic = asyncio.run(new_topic("requests", partitions=2))
    rows = "".join(json.dumps({"n": n, "text": f"message {n}"}) + "\n" for n in range(40))
    kafka_server.tool(CONSOLE_PRODUCER, "--topic", topic, stdin=rows)
    job = tmp_path / "job.yaml"
    told = {"topic": topic, "kafka": kafka_server.bootstrap, "sandbox": sandbox, "bucket": new_bucket("job")}
    job.write_text(TOPIC_JOB.format(**told, s3=s3_server.endpoint, state=tmp_path / "state"))
    result = ps.run(str(job))
    assert (result.status.state, result.status.tally.results) == ("done", 40)
    told = kafka_server.tool(CONSUMER_GROUPS, "--describe", "--group", f"{topic}-group")
    lines = [line.split() for line in told.splitlines() if topic in line]
    header = next(line.split() for line in told.splitlines() if "LAG" in line)
    assert [line[header.index("LAG")] for line in lines] == ["0", "0"], told
