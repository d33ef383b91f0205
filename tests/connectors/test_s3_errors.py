"""What S3, or what stands in front of it, answers: the error's type says whether the run waits, goes on or ends."""

from __future__ import annotations

from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from penstock.connectors.s3.client import S3
from penstock.connectors.s3.errors import Missing
from penstock.engine.errors import Away, PenstockError, Refused


class Answers(BaseHTTPRequestHandler):
    """Says one thing to everything."""

    status = 200
    body = b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Generator[S3]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield S3(f"http://127.0.0.1:{server.server_port}", "us-east-1")
    server.shutdown()
    server.server_close()
    thread.join()


def coded(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()


def get(s3: S3) -> object:
    return s3.get("b", "k")


def pages(s3: S3) -> object:
    return list(s3.pages("b"))


PLAIN, PAGE = b"404 page not found\n", b"<html><body>default backend - 404</body></html>"


@pytest.mark.parametrize(
    ("status", "body", "call", "error", "said"),
    [
        (404, coded("NoSuchKey"), get, Missing, "not there"),
        (404, PLAIN, get, Away, "not as S3 does"),
        (404, PAGE, get, Away, "not as S3 does"),
        (404, b"", get, Away, "not as S3 does"),
        (404, PLAIN, pages, Away, "not as S3 does"),
        (403, coded("InvalidObjectState"), get, Refused, "archived .*Restore it, or narrow source.pattern"),
        (400, coded("ExpiredTokenException"), get, Away, "token for the role has expired"),
        (400, coded("InvalidIdentityToken"), get, Away, "does not accept the token for the role"),
    ],
)
def test_an_answer_means(
    s3: S3,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: bytes,
    call: Callable[[S3], object],
    error: type[PenstockError],
    said: str,
) -> None:
    """A proxy whose server is down answers 404 too: the input is not deleted for that."""
    monkeypatch.setattr(Answers, "status", status)
    monkeypatch.setattr(Answers, "body", body)
    with pytest.raises(error, match=said):
        call(s3)


@pytest.mark.parametrize("body", [PLAIN, PAGE, b""])
def test_a_404_in_other_words_is_still_an_answer_where_s3_has_none_or_a_store_does_not_know_the_call(
    s3: S3, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(Answers, "status", 404)
    monkeypatch.setattr(Answers, "body", body)
    assert s3.head("b", "k") is None
    assert not s3.versioned("b")
