"""A trial: the first rows of a job, as a run of its own.

`run --limit 5` is for looking at prompts and answers before the whole is paid for, and prompts are edited between two
looks. So a trial has its own run id and its own files beside the real ones (`labels.first-5.parquet`): it can't hold
up, fence or clobber the whole run, and the whole run does not have to accept the changes made since. The price is
that a trial's rows are paid for again in the whole run; the summary of a trial says so.
"""

from __future__ import annotations

import msgspec

from penstock.connectors.filestore.assembly import is_single_file
from penstock.connectors.settings import FilesSink, KafkaSink, KafkaSource, MemorySink, S3Sink, SinkSettings
from penstock.engine.errors import SpecError
from penstock.workers.runspec import RunSpec


def first(spec: RunSpec, limit: int) -> RunSpec:
    """The same job over its first `limit` rows. Raises `SpecError` where the limit is not positive."""
    if limit < 1:
        raise SpecError(f"limit {limit}: give the number of rows to try, 1 or more")
    mark, source = f"first-{limit}", spec.source
    if isinstance(source, KafkaSource):  # the group shows how far the whole run is
        source = msgspec.structs.replace(source, group=None)
    return msgspec.structs.replace(
        spec,
        run_id=f"{spec.run_id}~{mark}",
        limit=limit,
        source=source,
        sinks={name: beside(sink, mark) for name, sink in spec.sinks.items()},
    )


def beside(sink: SinkSettings, mark: str) -> SinkSettings:
    """The same kind of sink with `mark` in its name: `labels.parquet` → `labels.first-5.parquet`."""
    match sink:
        case FilesSink(path=path):
            named = path if is_single_file(sink) else f"{path.rstrip('/')}/"  # a mark would look like a suffix
            return msgspec.structs.replace(sink, path=marked(named, mark))
        case KafkaSink(topic=topic):
            # nobody has made a trial's topic beforehand; who waits for a reply waits for the whole run's
            return msgspec.structs.replace(sink, topic=f"{topic}.{mark}", create=sink.create or True, reply_to=())
        case S3Sink(prefix=prefix):
            return msgspec.structs.replace(sink, prefix=marked(prefix, mark))
        case MemorySink(name=name):
            return msgspec.structs.replace(sink, name=f"{name}.{mark}")


def marked(path: str, mark: str) -> str:
    """The mark goes before the suffixes that say what a file is (`a.jsonl.gz` → `a.<mark>.jsonl.gz`); a folder stays
    a folder."""
    bare = path.rstrip("/")
    stem, suffixes = bare, ""
    while True:
        shorter, dot, suffix = stem.rpartition(".")
        if not dot or suffix.lower() not in _SUFFIXES or not shorter or shorter.endswith("/"):
            return f"{stem}.{mark}{suffixes}{path[len(bare) :]}"
        stem, suffixes = shorter, f".{suffix}{suffixes}"


_SUFFIXES = frozenset({"jsonl", "ndjson", "json", "csv", "parquet", "gz", "zst", "costs", "quality", "dead_letters"})
