"""What a run's plan still holds of input that its job's source names no more: sent without a word, it would be paid for
against what the job file says."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable

from penstock.connectors.base import Primary
from penstock.connectors.settings import FilesSource, KafkaSource, MemorySource, S3Source, SourceSettings
from penstock.engine.errors import SpecError
from penstock.engine.flow.progress import Progress, saved_in
from penstock.engine.plan import Plan, Split
from penstock.workers.runspec import RunSpec


async def left_over(plan: Plan, spec: RunSpec, primary: Primary, *, accept: bool) -> list[str]:
    """What is not done yet and is no input of the source any more, in words: topics of a run without an end stay unread
    from now on. Raises `SpecError` for anything else; `accept`: not for files and objects, with which the run goes on.
    (What is gone, or another by now, its lane tells.)"""
    names = await asyncio.to_thread(_naming, spec.source)
    others = [split for split in plan.splits if not names(split)]
    waits = [split for split in await _undone(plan, others, primary) if not (accept and _opens(spec.source, split))]
    if bad := [split for split in waits if not spec.endless or _kind(split.uri) != "kafka"]:
        raise SpecError(
            f"run {spec.run_id} is not done with {bad[0].uri}, which is no input of its source now. Put the source "
            "back until it is, give the job another name:, or start over with --fresh (and pay again)"
            + ("; --accept-changes goes on with both" if all(_opens(spec.source, split) for split in bad) else "")
        )
    topics = sorted({_topic(split) for split in waits})
    return [f"{topic} is no topic of the source any more: what is left of it waits unread" for topic in topics]


async def _undone(plan: Plan, others: list[Split], primary: Primary) -> list[Split]:
    """Those of which something is left to do."""
    ordinals = {split.ordinal for split in others}
    undone: list[Split] = []
    for lane in sorted({split.lane for split in others}):
        saved = saved_in((await primary.peek(lane)).chunks)
        progress = Progress([split for split in plan.splits if split.lane == lane], saved)
        undone += [split for split, _ in progress.starts() if split.ordinal in ordinals]
    return undone


def _naming(source: SourceSettings) -> Callable[[Split], bool]:
    """Whether the source looks where a split is. Blocking."""
    match source:
        case KafkaSource():
            return lambda split: _kind(split.uri) == "kafka" and source.reads(_topic(split))
        case S3Source():
            from penstock.connectors.s3.objects import naming  # late: a client comes with it

            is_named = naming(source)
            return lambda split: is_named(split.uri)
        case FilesSource():
            return _naming_files(source)
        case MemorySource():
            return lambda split: True


def _naming_files(source: FilesSource) -> Callable[[Split], bool]:
    """A file that is gone may have been anywhere: its lane tells of it."""
    from penstock.connectors.files import matches

    found = set(matches(source.path))
    really = functools.cache(lambda: {os.path.realpath(path) for path in found})

    @functools.cache
    def is_named(path: str) -> bool:
        if path in found:
            return True
        return not _kind(path) and (os.path.realpath(path) in really() or not os.path.isfile(path))

    return lambda split: is_named(split.uri)


def _opens(source: SourceSettings, split: Split) -> bool:
    """Whether a reader of this source reads the split, wherever the source looks: of whole files and objects."""
    match source:
        case FilesSource():
            return not _kind(split.uri)
        case S3Source():
            return _kind(split.uri) == "s3"
        case _:
            return False


def _topic(split: Split) -> str:
    return split.object_id.partition("@")[0]


def _kind(uri: str) -> str:
    """The scheme; a path has none."""
    scheme, found, _ = uri.partition("://")
    return scheme if found else ""
