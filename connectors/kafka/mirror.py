"""The source group's offsets as a mirror of the progress: for lag tools, never read back."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from penstock.engine.flow.progress import Saved
from penstock.engine.plan import Split


def offsets(splits: Sequence[Split], saved: Saved) -> dict[TopicPartition, OffsetAndMetadata]:
    """Partition → the first offset that may be unfinished, as a group stores it. `splits`: those of one lane.

    A lane opens its splits in ordinal order; of those it opened, the ones that are not listed are finished. A split
    that is no partition of Kafka has no offset.
    """
    opened = sorted(splits, key=lambda split: split.ordinal)[: saved.opened]
    watermarks = {split.ordinal: split.watermark for split in saved.splits}
    found: dict[TopicPartition, OffsetAndMetadata] = {}
    for split in opened:
        where, offset = partition_of(split), watermarks.get(split.ordinal, split.end)
        if where is not None and offset is not None:
            found[where] = OffsetAndMetadata(offset, "")
    return found


def partition_of(split: Split) -> TopicPartition | None:
    """The partition that a split's `uri` (kafka://host:port/topic/partition) names."""
    parts = urlsplit(split.uri)
    topic, _, number = parts.path.strip("/").rpartition("/")
    return TopicPartition(topic, int(number)) if parts.scheme == "kafka" and topic and number.isdigit() else None
