"""The source group's offsets as a mirror of the progress: for lag tools, never read back."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from penstock.engine.flow.progress import Saved
from penstock.engine.plan import Split

Offsets = dict[TopicPartition, OffsetAndMetadata]


def offsets(splits: Sequence[Split], saved: Saved) -> Offsets:
    """Partition → the first offset that may be unfinished, as a group stores it. `splits`: those of one lane.

    A lane opens its splits in ordinal order; of those it opened, the ones that are not listed are finished, and the
    others stand at their start. A split that is no partition of Kafka has no offset.
    """
    watermarks = {split.ordinal: split.watermark for split in saved.splits}
    found: Offsets = {}
    for number, split in enumerate(sorted(splits, key=lambda split: split.ordinal)):
        untouched = split.end if number < saved.opened else split.start
        where, offset = partition_of(split), watermarks.get(split.ordinal, untouched)
        if where is not None and offset is not None:
            found[where] = OffsetAndMetadata(offset, "")
    return found


def partition_of(split: Split) -> TopicPartition | None:
    """The partition that a split's `uri` (kafka://host:port/topic/partition) names."""
    parts = urlsplit(split.uri)
    topic, _, number = parts.path.strip("/").rpartition("/")
    return TopicPartition(topic, int(number)) if parts.scheme == "kafka" and topic and number.isdigit() else None
