"""Credentials that run out while a process lives: it takes up those that were put in their place."""

from __future__ import annotations

import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from penstock.connectors.s3.client import S3
from penstock.engine.errors import Away, PenstockError, Refused

GOOD = "AKFRESH"


class Answers(BaseHTTPRequestHandler):
    """Takes one access key; says of others what `code` is. A HEAD gets no body, so no code either."""

    code = "ExpiredToken"

    def do_GET(self) -> None:
        if f"Credential={GOOD}/" in self.headers.get("Authorization", ""):
            self._answer(200, b"hello")
        else:
            self._answer(400, f"<Error><Code>{self.code}</Code></Error>".encode())

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"one"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of credentials that have run out."""
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    _write(path, "AKSTALE")
    return path


@pytest.fixture
def endpoint() -> Generator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _write(path: Path, key: str) -> None:
    path.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=s\naws_session_token=t\n")


@pytest.mark.parametrize(
    ("code", "error"), [("ExpiredToken", Away), ("TokenRefreshRequired", Away), ("InvalidAccessKeyId", Refused)]
)
def test_fresh_credentials_on_disk_are_taken_up_by_clients_that_live(
    keys: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch, code: str, error: type[PenstockError]
) -> None:
    """They were read once a process: a run of weeks ended at the first token that ran out."""
    monkeypatch.setattr(Answers, "code", code)
    s3 = S3(endpoint, "us-east-1")
    with pytest.raises(error, match=code):
        s3.get("b", "k")
    keys.unlink()  # as it is written anew
    with pytest.raises(error, match=code):
        s3.get("b", "k")
    _write(keys, GOOD)
    with pytest.raises(PenstockError):
        s3.head("b", "k")
    assert s3.get("b", "k").data == b"hello"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_a_store_that_the_environment_names_is_spoken_to_as_one_that_the_job_names(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`minio` is a host and `inbox.minio` is none; and who reads "S3 at AWS" looks in the wrong place."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    assert S3(None, "eu-central-1").where == "AWS"
    assert _url(S3(None, "eu-central-1")).startswith("https://inbox.s3.")
    monkeypatch.setenv(variable, "http://minio:9000")
    for store in (S3(None, "us-east-1"), S3("http://minio:9000", "us-east-1")):
        assert store.where == "http://minio:9000"
        assert _url(store).startswith("http://minio:9000/inbox/a.jsonl?")
        config = store._client.meta.config  # pyright: ignore[reportPrivateUsage]
        assert config.request_checksum_calculation == "when_required"


def _url(store: S3) -> str:
    made = store._client  # pyright: ignore[reportPrivateUsage]
    return made.generate_presigned_url("get_object", Params={"Bucket": "inbox", "Key": "a.jsonl"})
