"""What came of a run: its status, its exit code, and its records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penstock.connectors.base import SinkName
from penstock.jobs import exits
from penstock.jobs.look import told
from penstock.jobs.look.reading import Outputs, RecordBatch, batches
from penstock.jobs.look.told import CostTold, LetterTold
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

Table = Any
"""A `pyarrow.Table`: pyarrow is untyped."""


class JobResult:
    """`ok`: done, with no more dead letters than the job allows. Records are read from the outputs at each call, a
    batch at a time: memory does not grow with the run unless you ask for all of it (`to_arrow`)."""

    def __init__(self, spec: RunSpec, status: RunStatus, *, was_done: bool = False) -> None:
        self._was_done = was_done
        self.spec = spec
        self.status = status
        self._outputs = Outputs(spec, status)

    @property
    def run_id(self) -> str:
        return self.status.run_id

    @property
    def exit_code(self) -> int:
        """What `penstock run` exits with (SURFACES §4)."""
        if self.nothing_to_do:
            return exits.DONE
        return exits.of_status(self.status, self.spec.max_dead_letters)

    @property
    def ok(self) -> bool:
        return self.exit_code == exits.DONE

    @property
    def nothing_to_do(self) -> bool:
        """The run was finished before; this command sent nothing."""
        status = self.status
        return self._was_done and status.state == "done" and status.first_dispatch_at is None

    def to_arrow(self) -> Table:
        """All results as one table; in input order where the sink is one file. Parquet has flat columns
        (`penstock_…`), JSON lines a struct `penstock`."""
        import pyarrow as pa

        from penstock.jobs.look import table

        parts = [pa.Table.from_batches([batch]) for batch in self.batches()]
        return table.joined(parts) if parts else pa.table({})

    def batches(self) -> Iterator[RecordBatch]:
        """The results as record batches."""
        return batches(self._outputs, "results")

    def lines(self, sink: SinkName) -> Iterator[bytes]:
        """The records of a sink as lines of nested JSON, whatever the file's format."""
        return self._outputs.records(sink)

    def dead_letters(self) -> Iterator[LetterTold]:
        """Items that ended without a result: reason, message, attempts, original."""
        return told.letters(self._outputs.records("dead_letters"))

    def costs(self) -> Iterator[CostTold]:
        """One line a settled call."""
        return told.costs(self._outputs.records("costs"))

    @property
    def summary(self) -> str:
        """The summary that `penstock run` prints, as plain text of 80 columns."""
        from io import StringIO

        from rich.console import Console

        from penstock.jobs.look import report

        out = StringIO()
        console = Console(file=out, width=80, no_color=True, highlight=False)
        for part in report.summary(self.status):
            console.print(part)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip() + "\n"

    def __repr__(self) -> str:
        tally = self.status.tally
        dead = sum(tally.dead_letters.values())
        return f"JobResult({self.run_id!r}, {self.status.state}, {tally.results:,} results, {dead:,} dead letters)"
