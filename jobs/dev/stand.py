"""What `penstock dev` started: servers that outlive the command, found again by what is written in a folder.

FOLDER/servers.json     port and process of each server; its presence says that the folder is ours
FOLDER/env              variables for a shell, credentials included; only its owner may read it (0600)
FOLDER/kafka/, s3/, …   data/ and log.txt of each
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, cast, get_args

import msgspec

from penstock.engine.errors import Corrupt, SpecError, Temporary
from penstock.jobs.dev.fetch import Say, locked
from penstock.jobs.dev.kafka import KafkaServer
from penstock.jobs.dev.process import Running
from penstock.jobs.dev.provider import SandboxServer
from penstock.jobs.dev.s3 import Keys, S3Server
from penstock.jobs.dev.server import Server

Part = Literal["kafka", "s3", "sandbox"]
PARTS: tuple[Part, ...] = get_args(Part)
PORTS: dict[Part, int] = {"kafka": 9092, "s3": 7070, "sandbox": 8899}
"""Kafka's and versitygw's usual ones; `sandbox/model` in a job points at the third."""
BUCKETS = ("inbox", "outbox")
"""There from the start, so that a job can name them."""
_KAFKA = {"auto.create.topics.enable": "true", "num.partitions": "3"}
"""A person's first job should not fail for want of a topic; the tests' servers make none by use."""


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One server as it is written down. `running`: its last process, which may have ended since."""

    port: int
    running: Running | None = None


class Standing(msgspec.Struct, frozen=True):
    """How one server stands."""

    part: Part
    state: Literal["started", "running", "no answer", "stopped"]
    address: str
    pid: int | None
    data_bytes: int
    """Disk that its data take; a bucket's and a topic's included."""
    log: str


class Stand:
    """The servers of one folder. Two commands at once: the second waits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.env = self.folder / "env"
        self._record = self.folder / "servers.json"

    def up(self, ports: Mapping[Part, int | None], say: Say) -> Iterator[Standing]:
        """Start what is named and doesn't run. Port None: the last one, or the usual one; 0: a free one.

        What started stays up where a later one fails. Raises as `Server.start`; `SpecError` where the folder holds
        other things, or a server runs on another port than the one asked for.
        """
        self._claim()
        with locked(self.folder / "lock"):
            for part, port in ports.items():
                yield self._up(part, port, say)

    def down(self, *, wipe: bool) -> list[Standing]:
        """Stop all that runs, the last started first; `wipe` removes data, logs and credentials as well."""
        if not self._record.exists():
            return []
        with locked(self.folder / "lock"):
            stopped = [self._down(part) for part in reversed(PARTS) if part in self._kept()]
            if wipe:
                self._wipe()
        return stopped

    def status(self) -> list[Standing]:
        """How each server stands that was ever started here; each that runs is asked."""
        return [self._standing(part, server) for part in PARTS if (server := self._found(part)) is not None]

    def _claim(self) -> None:
        """The folder is ours, or becomes so: we would remove what lies in it."""
        if not self._record.exists() and self.folder.is_dir() and any(self.folder.iterdir()):
            raise SpecError(f"{self.folder} holds other things already: give `penstock dev` a folder of its own")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".gitignore").write_text("*\n")  # credentials and data are nobody's commit
            if not self._record.exists():
                self._write({})
        except OSError as error:
            raise SpecError(f"can't write into {self.folder}: {error.strerror}") from error

    def _up(self, part: Part, port: int | None, say: Say) -> Standing:
        kept = self._kept().get(part)
        server = self._found(part, say)
        if kept is not None and server is not None and server.running:
            if port not in (None, 0, kept.port):
                raise SpecError(f"{server.title} runs on port {kept.port} already: `penstock dev down` stops it first")
            if not server.answers():
                raise Temporary(f"{server.title} (process {server.running.pid}) runs and does not answer: see "
                                f"{server.log}, or `penstock dev down` and `up` again")  # fmt: skip
            return self._standing(part, server)
        if port is None:
            port = kept.port if kept is not None else PORTS[part]
        return self._start(part, self._server(part, port, say), say)

    def _start(self, part: Part, server: KafkaServer | S3Server | SandboxServer, say: Say) -> Standing:
        say(f"starting {server.title}")
        server.start()
        self._write({**self._kept(), part: Kept(server.port, server.running)})
        if isinstance(server, S3Server):
            _make_buckets(server)
        self._write_env()
        return msgspec.structs.replace(self._standing(part, server), state="started")

    def _down(self, part: Part) -> Standing:
        server = cast("Server", self._found(part))
        server.stop()
        return self._standing(part, server)

    def _standing(self, part: Part, server: Server) -> Standing:
        running = server.running
        state = "stopped" if running is None else "running" if server.answers() else "no answer"
        size = _disk_bytes(server.folder / "data")
        return Standing(part, state, server.address, running.pid if running else None, size, str(server.log))

    def _found(self, part: Part, say: Say = lambda line: None) -> KafkaServer | S3Server | SandboxServer | None:
        """The server as it was written down, with its process where that lives."""
        kept = self._kept().get(part)
        if kept is None:
            return None
        server = self._server(part, kept.port, say)
        server.adopt(kept.running)
        return server

    def _server(self, part: Part, port: int, say: Say) -> KafkaServer | S3Server | SandboxServer:
        folder = self.folder / part
        match part:
            case "kafka":
                return KafkaServer(folder, port, _KAFKA, bound=False, say=say)
            case "s3":
                return S3Server(folder, port, self._keys(), bound=False, say=say)
            case "sandbox":
                return SandboxServer(folder, port, bound=False)

    def _kept(self) -> dict[str, Kept]:
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=dict[str, Kept])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise Corrupt(f"{self._record} can't be read ({error}): end the servers by hand and remove it") from error

    def _write(self, kept: Mapping[str, Kept]) -> None:
        _replace(self._record, msgspec.json.format(msgspec.json.encode(kept)))

    def _keys(self) -> Keys:
        """The credentials of this folder; made the first time."""
        if not self.env.exists():
            _replace(self.env, _env_text(Keys.new().environment))
        said = dict(line.removeprefix("export ").split("=", 1) for line in self.env.read_text().splitlines())
        return Keys(said["AWS_ACCESS_KEY_ID"], said["AWS_SECRET_ACCESS_KEY"])

    def _write_env(self) -> None:
        """What a shell needs for a job that reads and writes here."""
        kept = self._kept()
        variables = self._keys().environment
        if "s3" in kept:
            variables["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{kept['s3'].port}"
        if "sandbox" in kept:
            variables["PENSTOCK_SANDBOX"] = f"http://127.0.0.1:{kept['sandbox'].port}"
        _replace(self.env, _env_text(variables))

    def _wipe(self) -> None:
        for part in PARTS:
            shutil.rmtree(self.folder / part, ignore_errors=True)
        for name in ("env", "servers.json", ".gitignore", "lock"):
            (self.folder / name).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def _make_buckets(server: S3Server) -> None:
    client = server.client()
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in there:
            client.create_bucket(Bucket=name)


def _env_text(variables: Mapping[str, str]) -> bytes:
    return "".join(f"export {name}={value}\n" for name, value in variables.items()).encode()


def _replace(path: Path, data: bytes) -> None:
    """Whole or not at all, and for its owner only from the first byte on."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    os.replace(new, path)


def _disk_bytes(folder: Path) -> int:
    """Blocks that are taken: Kafka's index files are long and mostly holes."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:
                continue  # it was removed while we looked
    return total
