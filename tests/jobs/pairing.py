"""A job from one kind of place to others, run as people run it, and read back by means that are none of ours."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow.parquet as pq

from penstock.jobs.look.committed import Outputs, read_outputs
from penstock.jobs.look.verify import Report, check, journal_of
from tests.crash.streams import kafka_lines
from tests.crash.streams.kafka_lines import Offered
from tests.crash.streams.outputs import as_file, kafka_values

Where = Literal["files", "s3", "kafka"]
SINKS = ("results", "costs", "quality", "dead_letters")
ROWS, PARTS = 30, 2
"""Rows of a job, and the files, objects or partitions that they stand in."""
MALFORMED, LACKING = (7, 20), (12, 29)
"""Rows that are no JSON, and rows whose prompt can't be made."""


class Pairing(msgspec.Struct, frozen=True):
    """name: of the results in files or on S3. others: sinks that stand elsewhere, and their names there."""

    source: Where
    results: Where
    name: str = ""
    shape: Literal["rows", "openai-batch"] = "rows"
    format: Literal["jsonl", "parquet"] = "jsonl"
    others: Mapping[str, tuple[Where, str]] = {}

    def where(self, sink: str) -> Where:
        return self.others.get(sink, (self.results, ""))[0]

    def __str__(self) -> str:
        more = "".join(f", {sink} {where}" for sink, (where, _) in self.others.items())
        return f"{self.source} to {self.results} {self.name}{more}".replace(" ,", ",").strip()


class Servers(msgspec.Struct, frozen=True):
    """`s3`: a boto3 client for `endpoint`. `journal`: of the pretend provider that all jobs share."""

    bootstrap: str
    endpoint: str
    s3: Any
    sandbox: str
    journal: Path


class PairingRun:
    """One job of a pairing, in `folder`. What is read back holds all generations."""

    def __init__(self, pairing: Pairing, servers: Servers, folder: Path) -> None:
        self.pairing = pairing
        self.servers = servers
        self.folder = folder
        self.name = f"pair-{secrets.token_hex(4)}"
        self.path = folder / "job.yaml"
        self._paid_before = len(journal_of(servers.journal)) if servers.journal.exists() else 0
        self.lines = [self._line(number) for number in range(ROWS)]
        servers.s3.create_bucket(Bucket=self.name)
        asyncio.run(self._offer())
        self.write_job()

    # -- the input

    def _line(self, number: int) -> bytes:
        if number in MALFORMED:
            return b'{"n": %d, "text": ' % number
        if self.pairing.shape == "rows":
            text = {} if number in LACKING else {"text": f"message {number}"}
            return json.dumps({"n": str(number), "shop": f"s{number % 2}", **text}).encode()
        messages = [{"role": "user", "content": f"message {number}"}]
        body = {"model": "later" if number in LACKING else "auto", "messages": messages, "max_tokens": 8}
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line).encode()

    async def _offer(self) -> None:
        topics = {f"{self.name}.in": PARTS, **{f"{self.name}.{sink}": 1 for sink in SINKS}}
        if "kafka" in (self.pairing.source, *map(self.pairing.where, SINKS)):
            await kafka_lines.make_topics(self.servers.bootstrap, topics)
        parts = [self.lines[: ROWS // 2], self.lines[ROWS // 2 :]]
        for number, part in enumerate(parts):
            data = b"".join(line + b"\n" for line in part)
            match self.pairing.source:
                case "files":
                    as_file(self.folder / f"in-{number}.jsonl", part)
                case "s3":
                    self.servers.s3.put_object(Bucket=self.name, Key=f"in/{number}.jsonl", Body=data)
                case "kafka":
                    records = [Offered(line, b"key", partition=number) for line in part]
                    await kafka_lines.publish(self.servers.bootstrap, f"{self.name}.in", records)

    # -- the job

    def write_job(self, *, mended: bool = False) -> None:
        """`mended`: rows that lacked something are no longer bad."""
        sandbox = {"protocol": "openai", "base_url": f"{self.servers.sandbox}/v1"}
        price = {"input_per_million": 1, "output_per_million": 2}
        names = ["m", "later"] if mended else ["m"]
        job: dict[str, Any] = {
            "name": self.name,
            "source": self._source(),
            "accounts": {"a": sandbox},
            "models": [{"name": name, "account": "a", "model": name, "price": price} for name in names],
            "tiers": {tier: ["m"] for tier in (1, 2, 3)},
            "sinks": {sink: self._sink(sink) for sink in SINKS if self._says(sink)},
            "max_dead_letters": ROWS,
            "execution": {"lanes": PARTS, "lane_actors": 1, "dispatchers": 1},
        }
        if self.pairing.shape == "rows":
            job["row"] = {"id": "{{ n }}", "keep": ["n", "shop"]}
            job["prompt"] = "{{ text | default('nothing') }}" if mended else "{{ text }}"
            job |= {"params": {"max_tokens": 8}, "sample": 1.0, "scorers": [{"type": "regex", "pattern": "."}]}
        self.path.write_text(json.dumps(job))  # a JSON document is YAML

    def _source(self) -> dict[str, object]:
        match self.pairing.source:
            case "files":
                return {"type": "files", "path": "in-*.jsonl"}
            case "s3":
                return {"type": "s3", "bucket": self.name, "prefix": "in/", "endpoint": self.servers.endpoint}
            case "kafka":
                at = {"bootstrap": self.servers.bootstrap, "topics": [f"{self.name}.in"]}
                return {"type": "kafka", **at, "until": "end"}

    def _says(self, sink: str) -> bool:
        """Others than the results stand beside them unless a pairing says where."""
        return sink == "results" or sink in self.pairing.others or self.pairing.results == "kafka"

    def _sink(self, sink: str) -> dict[str, object]:
        where, name = self.pairing.others.get(sink, (self.pairing.results, self.pairing.name))
        match where:
            case "files":
                return {"type": "files", "path": name, "format": self._format(sink)}
            case "s3":
                at = {"bucket": self.name, "prefix": name, "endpoint": self.servers.endpoint}
                return {"type": "s3", **at, "format": self._format(sink)}
            case "kafka":
                return {"type": "kafka", "bootstrap": self.servers.bootstrap, "topic": f"{self.name}.{sink}"}

    # -- what came of it

    def values(self, sink: str, replay: str = "") -> list[bytes]:
        """The lines of a sink, as an outsider reads them. replay: `.replay-1`, beside the real outputs."""
        where, name = self.pairing.others.get(sink, (self.pairing.results, self._beside(sink)))
        if where == "kafka":
            records = asyncio.run(kafka_lines.read(self.servers.bootstrap, f"{self.name}.{sink}"))
            return [] if replay else kafka_values(records)
        stem, dot, ending = name.rstrip("/").partition(".")
        name = f"{stem}{replay}{dot}{ending}" + ("/" if name.endswith("/") else "")
        if where == "files":
            return self._lines(sink, (self.folder / name).read_bytes())
        return self._objects(sink, name) if name.endswith("/") else self._lines(sink, self._get(name))

    def _beside(self, sink: str) -> str:
        """The name of a sink that nobody named."""
        stem, dot, ending = self.pairing.name.rstrip("/").partition(".")
        ending = "jsonl" if dot and self._format(sink) == "jsonl" else ending
        name = stem if sink == "results" else f"{stem}.{sink}"
        return f"{name}{dot}{ending}" + ("/" if self.pairing.name.endswith("/") else "")

    def _format(self, sink: str) -> str:
        return "jsonl" if sink == "dead_letters" else self.pairing.format

    def _lines(self, sink: str, data: bytes) -> list[bytes]:
        return _table(data) if self._format(sink) == "parquet" else data.splitlines()

    def _objects(self, sink: str, prefix: str) -> list[bytes]:
        """Of exactly the objects that the manifest names, which must hold as many rows as it says."""
        manifest = json.loads(self._get(f"{prefix}_manifest.json"))
        lists = [json.loads(self._get(one["key"])) for one in manifest["lists"]]
        files: list[dict[str, Any]] = [file for one in [*lists, manifest] for file in one["files"]]
        parts = [self._lines(sink, self._get(file["key"])) for file in files]
        assert [len(part) for part in parts] == [file["rows"] for file in files]
        return [line for part in parts for line in part]

    def _get(self, key: str) -> bytes:
        return self.servers.s3.get_object(Bucket=self.name, Key=key)["Body"].read()

    def read_back(self, *replays: str) -> Outputs:
        folder = self.folder / "read-back"
        folder.mkdir(exist_ok=True)
        paths = {
            sink: [as_file(folder / f"{sink}{replay}.jsonl", self.values(sink, replay)) for replay in ("", *replays)]
            for sink in SINKS
        }
        return read_outputs(paths, "custom_id" if self.pairing.shape == "openai-batch" else "n")

    def check(self, outputs: Outputs, malformed: Sequence[str]) -> Report:
        """Every row once, each cost once and as it was paid, nothing paid twice. malformed: the rows without a label,
        as the dead letters name them."""
        labels = [str(number) for number in range(ROWS) if number not in MALFORMED]
        paid = journal_of(self.servers.journal)[self._paid_before :]
        report = check([*labels, *malformed], outputs, paid, bound=0)
        assert report.clean, str(report)
        assert report.marked == 0
        return report


def _table(data: bytes) -> list[bytes]:
    """A Parquet file's rows, nested as a JSON file would hold them, as far as they are checked."""
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return [json.dumps(_nested(row), default=_plain).encode() for row in rows]


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    ours = {name.removeprefix("penstock_"): value for name, value in row.items() if name.startswith("penstock_")}
    rest = {name: value for name, value in row.items() if not name.startswith("penstock_")}
    if ours:
        return {**rest, "penstock": _joined(ours, "source")}
    return _joined(_joined(rest, "source"), "tokens")


def _joined(row: dict[str, Any], name: str) -> dict[str, Any]:
    """`tokens_input`, … as `tokens: {input, …}`."""
    inner = {key.removeprefix(f"{name}_"): value for key, value in row.items() if key.startswith(f"{name}_")}
    return {**{key: value for key, value in row.items() if not key.startswith(f"{name}_")}, name: inner}


def _plain(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else str(value)
