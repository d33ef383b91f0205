"""A sink that is one object: all its records in input order, sorted on this machine's disk, put by one conditional act.
Blocking."""

from __future__ import annotations

from pathlib import Path

from penstock.connectors.filestore import assembly
from penstock.connectors.s3.client import Stored
from penstock.connectors.s3.fence import Lost
from penstock.connectors.s3.store.home import Home
from penstock.connectors.s3.store.leftovers import drop_uploads
from penstock.connectors.s3.store.merge import temp_folder
from penstock.connectors.s3.store.parts import Spools, fetched, planned_lanes, whole
from penstock.connectors.s3.store.run import Life, refuse_another
from penstock.connectors.s3.store.upload import upload
from penstock.connectors.s3.urls import Where
from penstock.connectors.settings import FilesSink, S3Sink
from penstock.connectors.writing.tables import is_of
from penstock.engine.errors import Temporary
from penstock.engine.plan import Plan

_TYPES = {"jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet", "csv": "text/csv"}


def assemble_object(life: Life, sink: str, output: S3Sink, plan: Plan) -> bool:
    """Write the object anew from all that is committed; False: it is not there, since there are no dead letters.

    Its ETag is read before what lanes have committed, and must be the same when the object is put: so of two commands
    that do it at once, neither replaces more with less. Raises `Temporary`, `Fenced`, `Corrupt`,
    and `Refused` where the object is another run's.
    """
    home = life.home
    refuse_another(life.base, output.prefix, life.owner(output.prefix), life.run_id)
    before = home.s3.head(home.bucket, output.prefix)
    with temp_folder() as temp:
        made = _local(home, sink, output, plan, temp)
        life.check()
        if made is None:
            _remove_letters(home, output, life.run_id)
            return False
        kind = assembly.format_of(FilesSink(output.prefix, output.format))
        stored = Stored(_TYPES[kind], output.sse, output.sse_kms_key_id)
        drop_uploads(home.s3, home.bucket, output.prefix, output.prefix.__eq__)
        try:
            upload(home.s3, home.bucket, output.prefix, made, stored, before.etag if before is not None else None)
        except Lost as error:
            raise Temporary(
                f"s3://{home.bucket}/{output.prefix} was written by somebody else while it was made. Nothing committed "
                "is lost: run the same command again."
            ) from error
    return True


def _remove_letters(home: Home, output: S3Sink, run_id: str) -> None:
    """Those of the run's earlier life; what else stands there is somebody's object."""
    if is_of(Where(home.bucket, output.prefix, output.endpoint, output.region).url, run_id):
        home.s3.delete(home.bucket, [output.prefix])


def _local(home: Home, sink: str, output: S3Sink, plan: Plan, temp: Path) -> Path | None:
    spools = Spools(temp, [sink], lambda _sink, _record: "")
    located = ((lane, part) for lane, state in planned_lanes(home, plan).items() for part in whole(home, lane, state))
    mine = ((lane, part) for lane, part in located if any(name == sink for name, _, _ in part.slices))
    for lane, part, data in fetched(home, mine):
        spools.add(home, lane, part, data)
    name = temp / "out" / Path(output.prefix).name
    job = assembly.Job(
        sink,
        FilesSink(str(name), output.format),
        plan.run_id,
        temp / "work",
        [spool for _, _, spool in spools.all()],
        lambda: None,
    )
    return name if assembly.assemble(job) else None
