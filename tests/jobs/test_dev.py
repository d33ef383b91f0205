"""`penstock dev`: servers in the background that the next command finds again."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import msgspec
import pytest
import yaml
from botocore.exceptions import ClientError

from penstock.jobs.dev import kafka, s3
from penstock.jobs.dev.kafka import KafkaServer
from penstock.jobs.dev.ports import free_port, is_free

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dev(tmp_path: Path, mark: str) -> Command:
    """`dev("up", "s3")` in a folder of the test's own; what it leaves running ends with the test."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "penstock.jobs.cli", "dev", *arguments]
        return subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=400)

    return run


def needs(*programs: str) -> None:
    """At home a missing program skips; in CI a skip is a failure."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def standing(dev: Command) -> dict[str, dict[str, Any]]:
    return {each["part"]: each for each in msgspec.json.decode(dev("status", "--json").stdout)}


@pytest.mark.kafka
@pytest.mark.s3
def test_up_starts_real_servers_once_down_stops_them_and_their_data_stay_until_a_wipe(
    dev: Command, tmp_path: Path
) -> None:
    """The whole life: up, up again, work, down, up on the same ports with the same data, down and wipe."""
    needs("java", "mvn", "go")
    ports = ("--kafka-port", "0", "--s3-port", "0", "--sandbox-port", "0")
    first = dev("up", *ports)
    assert first.returncode == 0, first.stderr
    was = standing(dev)
    assert {each["state"] for each in was.values()} == {"running"}
    for each in was.values():
        assert each["address"] in first.stdout

    assert dev("up").returncode == 0
    assert {part: each["pid"] for part, each in standing(dev).items()} == {p: each["pid"] for p, each in was.items()}

    broker = KafkaServer(tmp_path / ".penstock" / "dev" / "kafka", port=int(was["kafka"]["address"].split(":")[1]))
    broker.tool(kafka.CONSOLE_PRODUCER, "--topic", "requests", stdin="one\n")
    bucket = store(tmp_path)
    bucket.put_object(Bucket="outbox", Key="kept", Body=b"kept", IfNoneMatch="*")

    assert dev("down").returncode == 0
    now = standing(dev)
    assert {each["state"] for each in now.values()} == {"stopped"}
    assert now["s3"]["data_bytes"] > 0
    assert all(is_free(int(each["address"].rpartition(":")[2])) for each in now.values())

    assert dev("up", "kafka", "s3").returncode == 0
    assert standing(dev)["kafka"]["address"] == was["kafka"]["address"]
    told = broker.tool(kafka.CONSOLE_CONSUMER, "--topic", "requests", "--from-beginning", "--max-messages", "1")
    assert told.strip() == "one"
    assert bucket.get_object(Bucket="outbox", Key="kept")["Body"].read() == b"kept"

    assert dev("down", "--wipe").returncode == 0
    assert not (tmp_path / ".penstock" / "dev").exists()
    assert "nothing was started" in dev("status").stdout


def store(folder: Path) -> Any:
    """A client with what the printed `env` says, and nothing else."""
    env = folder / ".penstock" / "dev" / "env"
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    said = dict(line.removeprefix("export ").split("=", 1) for line in env.read_text().splitlines())
    return boto3.client(
        "s3",
        endpoint_url=said["AWS_ENDPOINT_URL_S3"],
        region_name=said["AWS_DEFAULT_REGION"],
        aws_access_key_id=said["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=said["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.mark.s3
def test_the_secret_is_in_no_output_and_other_credentials_are_refused(dev: Command, tmp_path: Path) -> None:
    """It stands in one file that only its owner may read."""
    needs("go")
    up = dev("up", "s3", "--s3-port", "0")
    assert up.returncode == 0, up.stderr
    client = store(tmp_path)
    secret = client._request_signer._credentials.secret_key
    everything = up.stdout + up.stderr + dev("status").stdout + dev("down").stdout
    assert secret not in everything
    assert secret not in "".join(f.read_text() for f in (tmp_path / ".penstock" / "dev").glob("**/log.txt"))
    dev("up", "s3")
    stranger = boto3.client(
        "s3", endpoint_url=client.meta.endpoint_url, region_name=s3.REGION, aws_access_key_id="a",
        aws_secret_access_key="b",
    )  # fmt: skip
    with pytest.raises(ClientError) as refused:
        stranger.list_buckets()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 404)


def test_a_server_that_was_killed_is_stopped_in_the_status_and_up_starts_it_again(dev: Command) -> None:
    """Nobody is told of a process that isn't there; a frozen one is told as it is, and `down` ends it too."""
    assert dev("up", "sandbox", "--sandbox-port", "0").returncode == 0
    was = standing(dev)["sandbox"]
    os.kill(was["pid"], signal.SIGKILL)
    os.waitpid(was["pid"], 0)
    assert standing(dev)["sandbox"]["state"] == "stopped"
    assert dev("up", "sandbox").returncode == 0
    again = standing(dev)["sandbox"]
    assert again["address"] == was["address"]
    os.kill(again["pid"], signal.SIGSTOP)
    assert standing(dev)["sandbox"]["state"] == "no answer"
    stuck = dev("up", "sandbox")
    assert stuck.returncode == 4
    assert "does not answer" in stuck.stderr
    assert dev("down").returncode == 0
    assert standing(dev)["sandbox"]["state"] == "stopped"


def test_a_port_in_use_is_one_clear_line_and_the_others_are_told(dev: Command) -> None:
    """The command names the port; another port helps."""
    assert dev("up", "sandbox", "--sandbox-port", "0").returncode == 0
    taken = standing(dev)["sandbox"]["address"].rpartition(":")[2]
    second = dev("up", "sandbox", "--sandbox-port", taken, "--folder", "second")
    assert second.returncode == 2
    assert f"port {taken} of 127.0.0.1 is in use" in second.stderr
    other = dev("up", "sandbox", "--sandbox-port", str(free_port()))
    assert other.returncode == 2
    assert "already" in other.stderr


def test_a_folder_with_other_things_is_left_alone(dev: Command, tmp_path: Path) -> None:
    """`down --wipe` removes a folder, so `up` takes none that isn't its own."""
    theirs = tmp_path / "theirs" / "kafka"
    theirs.mkdir(parents=True)
    up = dev("up", "sandbox", "--folder", "theirs")
    assert up.returncode == 2
    assert "holds other things" in up.stderr
    assert dev("down", "--wipe", "--folder", "theirs").returncode == 0
    assert theirs.exists()


def test_the_compose_file_runs_the_same_versions_on_the_loopback_interface() -> None:
    """What containers run is what `penstock dev` runs, and nobody else on the network reaches it."""
    services = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())["services"]
    assert services["kafka"]["image"] == f"apache/kafka:{kafka.VERSION}"
    assert services["s3"]["image"] == f"versity/versitygw:{s3.VERSION}"
    for name, service in services.items():
        assert not service["image"].endswith(":latest"), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "ports" in service or "127.0.0.1" in str([service.get("command"), service.get("environment")]), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / "infra" / source).exists(), source
