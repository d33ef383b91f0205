"""A real S3 server over a folder: versitygw, built once with Go."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from penstock.jobs.dev.fetch import Say, fetched, need_tool, quiet, run_tool
from penstock.jobs.dev.ports import LOOPBACK, free_port
from penstock.jobs.dev.server import Server

if TYPE_CHECKING:
    from botocore.client import BaseClient

VERSION = "v1.8.0"
REGION = "us-east-1"
_MODULE = "github.com/versity/versitygw/cmd/versitygw"
_GO_HELP = (
    "Go builds the S3 server once (https://go.dev/doc/install; Debian: apt install golang; macOS: brew install go)"
)
_ANSWER_S = 2.0


def binary(say: Say = quiet) -> Path:
    """The server's program, built the first time. Raises `MissingTool` and `Temporary`."""

    def fill(folder: Path) -> None:
        go = need_tool("go", _GO_HELP)
        say(f"building the S3 server versitygw {VERSION} with Go (about a minute, only this once)")
        environment = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0"}
        run_tool("building versitygw", [go, "install", f"{_MODULE}@{VERSION}"], environment)

    return fetched(f"versitygw-{VERSION}", fill) / "versitygw"


class Keys:
    """Credentials of an S3 server; the text of this object does not show the secret."""

    def __init__(self, access_key: str, secret_key: str) -> None:
        self.access_key = access_key
        self.secret_key = secret_key

    @staticmethod
    def new() -> Keys:
        return Keys(f"penstock-{secrets.token_hex(6)}", secrets.token_urlsafe(30))

    @property
    def environment(self) -> dict[str, str]:
        """What the AWS chain reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }


class S3Server(Server):
    """An S3 server over `folder`/data, where each folder is a bucket. `port` 0: a free one; `keys` None: new ones."""

    title: ClassVar[str] = "the S3 server"

    def __init__(
        self, folder: Path, port: int = 0, keys: Keys | None = None, *, bound: bool = True, say: Say = quiet
    ) -> None:
        self.port = port or free_port()
        self.keys = keys or Keys.new()
        super().__init__(folder, (self.port,), bound=bound)
        self._say = say

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def address(self) -> str:
        return self.endpoint

    def command(self) -> Sequence[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        return [str(binary(self._say)), "--port", f"{LOOPBACK}:{self.port}", "--region", REGION, "posix", str(data)]

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "ROOT_ACCESS_KEY": self.keys.access_key, "ROOT_SECRET_KEY": self.keys.secret_key}

    def answers(self) -> bool:
        """Whether it lists its buckets for our keys: another server on the port would not."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client(self.endpoint, self.keys, timeout_s=_ANSWER_S).list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    def client(self) -> BaseClient:
        """A boto3 client for it."""
        return client(self.endpoint, self.keys)


def client(endpoint: str, keys: Keys, timeout_s: float = 60.0) -> BaseClient:
    """A boto3 client; it tries once, so that a test sees what the server did."""
    import boto3
    from botocore.config import Config

    settings = Config(connect_timeout=timeout_s, read_timeout=timeout_s, retries={"total_max_attempts": 1})
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name=REGION, aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key, config=settings,
    )  # fmt: skip
