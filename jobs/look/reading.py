"""The committed records of a run, wherever they stand: in the finished outputs, or still in the store's spool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from penstock.connectors.base import SinkName
from penstock.jobs.look.told import Line
from penstock.jobs.wording import relative
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

if TYPE_CHECKING:
    from penstock.connectors.settings import SinkSettings

RecordBatch = Any
"""A `pyarrow.RecordBatch`: pyarrow is untyped."""


BATCH_ROWS = 8192
"""Rows of a record batch: a few MB, enough for pyarrow to be fast."""


class Outputs(msgspec.Struct, frozen=True):
    """One run's records, sink by sink. Iterators start anew at every call and hold one batch in memory."""

    spec: RunSpec
    status: RunStatus

    def records(self, sink: SinkName) -> Iterator[Line]:
        """Lines of nested JSON (SURFACES §3), whatever the file's format."""
        from penstock.connectors.registry import iter_committed
        from penstock.connectors.writing.records import iter_records

        paths = self.paths(sink)
        return iter_records(paths) if paths else iter_committed(self._sinks(), self.spec.run_id, sink)

    def _sinks(self) -> Mapping[SinkName, SinkSettings]:
        return cast("Mapping[SinkName, SinkSettings]", self.spec.sinks)  # the job file allows no other names

    def paths(self, sink: SinkName) -> list[str]:
        """Finished files, and objects or manifests on S3 (URLs); empty while the run goes, where it was cut off before
        they were made, and where the sink is a topic, which is read through its store."""
        return [path for path in self.status.outputs.get(sink, []) if "://" not in path or path.startswith("s3://")]

    def where(self, sink: SinkName) -> str:
        """For people: the finished files, or where they will be; the topic."""
        from penstock.connectors.registry import where
        from penstock.connectors.settings import KafkaSink

        made, settings = self.status.outputs.get(sink, []), self.spec.sinks[sink]
        if made:
            return relative(made[0]) + (f" and {len(made) - 1} more" if len(made) > 1 else "")
        place = relative(where(settings))
        return place if isinstance(settings, KafkaSink) else f"{place} (committed, not yet assembled)"


def batches(outputs: Outputs, sink: SinkName) -> Iterator[RecordBatch]:
    """The records as record batches: a Parquet file's own, flat columns; of anything else the columns of its JSON."""
    from penstock.connectors.writing.tables import are_parquet, finished_files
    from penstock.jobs.look import table

    files = [file for path in outputs.paths(sink) for file in finished_files(path)]
    if are_parquet(files):
        for file in files:
            yield from _parquet(file, BATCH_ROWS)
    else:
        yield from table.of_lines(lambda: outputs.records(sink), BATCH_ROWS)


def _parquet(path: str, rows: int) -> Iterator[RecordBatch]:
    import pyarrow.parquet as pq

    from penstock.connectors.writing.tables import opened

    with opened(path) as source, pq.ParquetFile(source) as file:
        yield from file.iter_batches(batch_size=rows)
