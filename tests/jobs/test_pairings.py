"""Every place works with every other: jobs between files, S3 and Kafka, and sinks in several places at once."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import penstock as ps
from penstock.jobs.cli import call
from penstock.jobs.sandbox import Settings, running_sandbox
from tests.conftest import ray_of_a_file
from tests.jobs.pairing import LACKING, MALFORMED, ROWS, Pairing, PairingRun, Servers

if TYPE_CHECKING:
    from penstock.jobs.dev.kafka import KafkaServer
    from penstock.jobs.dev.s3 import S3Server
    from tests.conftest import KafkaAt, S3At

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.s3]

GOOD = ROWS - len(MALFORMED) - len(LACKING)
BATCH = "openai-batch"
PAIRINGS = (
    Pairing("files", "files", "results.jsonl"),
    Pairing("files", "s3", "out/results/", format="parquet"),
    Pairing("files", "kafka", shape=BATCH),
    Pairing("s3", "files", "results.parquet", format="parquet"),
    Pairing("s3", "s3", "out/results.jsonl", BATCH),
    Pairing("s3", "kafka"),
    Pairing("kafka", "files", "results.jsonl", BATCH),
    Pairing("kafka", "s3", "out/results/"),
    Pairing("kafka", "kafka", shape=BATCH),
    Pairing("files", "files", "results.jsonl", others={"costs": ("kafka", "")}),
)
FOLLOWED = (  # One act commits to the results' store; the others follow by its outbox.
    Pairing(
        "kafka", "kafka", format="parquet",
        others={"costs": ("s3", "out/costs/"), "dead_letters": ("files", "dead.jsonl")},
    ),
    Pairing("s3", "s3", "out/results/", BATCH, "parquet", others={"dead_letters": ("kafka", "")}),
)  # fmt: skip


@pytest.fixture(scope="module")
def servers(
    kafka_server: KafkaServer | KafkaAt, s3_server: S3Server | S3At, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """One Ray and one pretend provider for this file; Ray's workers find S3's keys in the environment."""
    journal = tmp_path_factory.mktemp("pairings") / "journal.jsonl"
    settings = Settings(journal=str(journal))
    with ray_of_a_file(s3_server.keys.environment), running_sandbox(settings, process=True) as sandbox:
        yield Servers(kafka_server.bootstrap, s3_server.endpoint, s3_server.client(), sandbox, journal)


@pytest.mark.parametrize(
    "pairing", [*PAIRINGS, *(pytest.param(each, marks=pytest.mark.long) for each in FOLLOWED)], ids=str
)
def test_every_row_ends_once_and_every_command_reads_it(
    pairing: Pairing, servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row is a result or a dead letter once, each call is billed once; the same again has nothing to do; what the
    commands tell is what readers see; the dead letters that were mended live in their next generation."""
    job = PairingRun(pairing, servers, tmp_path)
    assert call(["run", str(job.path)]) == 0, capsys.readouterr()
    outputs = job.read_back()
    malformed = undecodable(job)
    report = job.check(outputs, malformed)
    assert (report.results, report.dead_letters) == (GOOD, ROWS - GOOD)
    if not pairing.name.endswith("/") and pairing.results != "kafka":
        assert labels(job) == [str(n) for n in range(ROWS) if n not in (*MALFORMED, *LACKING)]

    again = ps.run(str(job.path))
    assert again.nothing_to_do
    assert again.to_arrow().num_rows == GOOD
    assert job.read_back() == outputs

    told = commands(job, outputs.results[0].item_id, capsys)
    assert told["status"]["request_counts"] == {"total": ROWS, "completed": GOOD, "failed": ROWS - GOOD}
    assert round(sum(one["usd"] for one in told["costs"]) * 1e9) == report.cost_nano
    assert {one["item_id"] for one in told["dead-letters"]} == {one.item_id for one in outputs.dead_letters}
    assert told["explain"][0]["penstock"]["item_id"] == outputs.results[0].item_id

    if pairing.source == pairing.results:  # a replay reads a file whatever the run read: once for each kind of store
        job.write_job(mended=True)
        assert call(["dead-letters", "replay", str(job.path), "--all", "--yes"]) == 0, capsys.readouterr()
        after = job.read_back(".replay-1")
        report = job.check(after, malformed)
        assert (report.results, report.dead_letters) == (GOOD + len(LACKING), ROWS - GOOD + len(MALFORMED))
        assert {one.key for one in after.results if one.generation == 1} == {str(n) for n in LACKING}


def undecodable(job: PairingRun) -> list[str]:
    """Item ids of the rows that are no JSON: their letters hold the untouched bytes."""
    letters = [json.loads(line) for line in job.values("dead_letters")]
    found = {original(one): one["item_id"] for one in letters if one["reason"] == "malformed"}
    assert found.keys() == {job.lines[number] for number in MALFORMED}
    return list(found.values())


def original(letter: dict[str, str]) -> bytes:
    text = letter["original"]
    return base64.b64decode(text) if letter["original_encoding"] == "base64" else text.encode()


def labels(job: PairingRun) -> list[str]:
    """Of the results, in their order."""
    name = "custom_id" if job.pairing.shape == BATCH else "n"
    return [json.loads(line)[name] for line in job.values("results")]


def commands(job: PairingRun, item: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What each command says as JSON; each also speaks to people."""
    run = str(job.path)
    told = {}
    for words in (
        ["status", run],
        ["costs", run],
        ["dead-letters", "list", run],
        ["report", run],
        ["explain", item, "--run", run],
    ):
        capsys.readouterr()
        assert call(words) == 0, words
        assert capsys.readouterr().out.strip(), words
        assert call([*words, "--json"]) == 0, words
        told[words[0]] = json.loads(capsys.readouterr().out)
    return told
