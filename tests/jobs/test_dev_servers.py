"""Real servers on this machine: what `penstock dev` and the fault tests rely on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from botocore.exceptions import ClientError

from penstock.engine.errors import SpecError, Temporary
from penstock.jobs.dev import kafka
from penstock.jobs.dev.fetch import MissingTool, fetched
from penstock.jobs.dev.kafka import KafkaServer
from penstock.jobs.dev.s3 import S3Server


@pytest.mark.kafka
async def test_kafka_killed_and_started_again_is_at_the_same_port_with_the_same_data(
    start_kafka: Callable[..., KafkaServer], new_topic: Callable[..., Awaitable[str]]
) -> None:
    """What was acknowledged before a `kill -9` is read after it, by Kafka's own consumer."""
    server = start_kafka()
    topic = await new_topic("kept", on=server)
    server.tool(kafka.CONSOLE_PRODUCER, "--topic", topic, stdin="one\ntwo\n")
    before = server.bootstrap
    server.kill()
    assert not server.answers()
    server.start()
    assert server.bootstrap == before
    assert _read(server, topic, 2) == ["one", "two"]
    _frozen_kafka_answers_after_its_thaw(server)


def _frozen_kafka_answers_after_its_thaw(server: KafkaServer) -> None:
    server.freeze()
    assert server.running
    assert not server.answers()
    server.thaw()
    assert server.answers()


def _read(server: KafkaServer, topic: str, count: int) -> list[str]:
    number = str(count)
    told = server.tool(kafka.CONSOLE_CONSUMER, "--topic", topic, "--from-beginning", "--max-messages", number)
    return told.split()


@pytest.mark.s3
def test_s3_killed_and_started_again_has_the_same_objects_and_still_refuses_a_second_conditional_put(
    start_s3: Callable[[], S3Server], new_bucket: Callable[..., str]
) -> None:
    """What a fence was before a `kill -9`, it is after it."""
    server = start_s3()
    bucket, before = new_bucket("kept", on=server), server.endpoint
    server.client().put_object(Bucket=bucket, Key="a/b", Body=b"one", IfNoneMatch="*")
    server.kill()
    server.start()
    assert server.endpoint == before
    with pytest.raises(ClientError, match="PreconditionFailed"):
        server.client().put_object(Bucket=bucket, Key="a/b", Body=b"two", IfNoneMatch="*")
    assert server.client().get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"one"
    server.freeze()
    assert not server.answers()
    server.thaw()
    assert server.answers()


@pytest.mark.s3
def test_the_shared_servers_are_there_for_every_test(
    s3_keys: None, new_bucket: Callable[..., str], s3_server: S3Server
) -> None:
    """The AWS chain finds the credentials; each test has a bucket of its own."""
    import boto3

    bucket = new_bucket("own")
    told = boto3.client("s3", endpoint_url=s3_server.endpoint).list_buckets()
    assert bucket in [each["Name"] for each in told["Buckets"]]


@pytest.mark.s3
def test_a_port_in_use_is_a_clear_error_and_starts_nothing(start_s3: Callable[[], S3Server], tmp_path: Path) -> None:
    """It names the port, and the server that has it goes on."""
    first = start_s3()
    second = S3Server(tmp_path / "second", port=first.port)
    with pytest.raises(SpecError, match=rf"port {first.port} .* is in use by another process"):
        second.start()
    assert second.running is None
    assert first.answers()


@pytest.mark.kafka
def test_a_server_that_does_not_come_up_shows_the_end_of_its_log(tmp_path: Path) -> None:
    """What Kafka says of a wrong setting is in the error, and no process stays."""
    server = KafkaServer(tmp_path, properties={"num.io.threads": "none"})
    try:
        with pytest.raises(Temporary, match=r"(?s)num\.io\.threads"):
            server.start()
    except MissingTool as error:
        pytest.skip(str(error))
    assert server.running is None


@pytest.mark.s3
def test_a_server_ends_with_the_process_that_started_it_even_when_that_is_killed(
    start_s3: Callable[[], S3Server], tmp_path: Path
) -> None:
    """A test run that is shot leaves no server behind."""
    start_s3().stop()  # skips where Go is missing
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom penstock.jobs.dev.s3 import S3Server\n"
        "server = S3Server(Path(sys.argv[1]))\nserver.start()\nprint(server.running.pid, flush=True)\ntime.sleep(600)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "orphan")], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    server = psutil.Process(int(starter.stdout.readline()))
    starter.kill()
    starter.communicate()
    psutil.wait_procs([server], timeout=30)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_no_cluster_id_begins_with_a_dash() -> None:
    """One in 64 did: the format tool took it for an option, and Kafka did not start."""
    ids = {kafka.new_cluster_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert not [each for each in ids if each.startswith("-") or len(each) != 22]


def test_a_missing_program_says_what_to_install_and_the_other_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody has to guess what Kafka needs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match=r"`java` is not installed.*17.*infra/compose\.yaml"):
        KafkaServer(tmp_path).start()


def test_what_was_cut_short_while_it_was_fetched_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A half-filled folder never looks whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def cut(folder: Path) -> None:
        (folder / "half").write_text("")
        raise Temporary("the line is down")

    with pytest.raises(Temporary):
        fetched("thing", cut)
    folder = fetched("thing", lambda folder: (folder / "whole").touch())
    assert [each.name for each in folder.iterdir()] == ["whole"]
    assert fetched("thing", cut) == folder


def test_two_processes_that_fetch_at_once_fetch_once(tmp_path: Path) -> None:
    """The second waits for the first and finds the folder."""
    program = (
        "import os\nfrom pathlib import Path\nfrom penstock.jobs.dev.fetch import fetched\n"
        "print((fetched('thing', lambda folder: (folder / 'who').write_text(str(os.getpid()))) / 'who').read_text())"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = {process.communicate()[0] for process in both}
    assert len(told) == 1
    assert told != {""}
