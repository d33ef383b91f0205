"""What a look means for one partition: it is well, lost in part, or of another topic than was planned."""

from __future__ import annotations

import msgspec

from penstock.connectors.kafka.partition import Partition
from penstock.connectors.kafka.session import Sight
from penstock.engine.errors import BadRecord

CONFIRM_S = 5.0
"""How long something must look lost before it is believed. A guess: a broker that came up knew its topics in a second.
"""


class Verdict(msgspec.Struct, frozen=True):
    """seek: the client must be put to the partition's `next`. again: look again soon. stalls: looks in a row that saw
    records which the client does not bring. fatal: a person must look."""

    seek: bool = False
    again: bool = False
    stalls: int = 0
    fatal: BadRecord | None = None


def judge(partition: Partition, sight: Sight, now: float) -> Verdict:
    """Also tells the partition what it must know."""
    why = _not_ours(partition, sight)
    if why is not None:
        return _doubt(partition, why, now)
    seek = partition.doubted is not None
    partition.doubted = None
    stalls = partition.seen(sight.ends[partition.tp])
    if partition.strayed is not None:
        return _strayed(partition, sight, partition.strayed, now)
    return Verdict(seek=seek, stalls=stalls)


def _not_ours(partition: Partition, sight: Sight) -> str | None:
    name = partition.name
    topic = sight.topics.get(name.topic)
    if topic is None:
        return f"the topic {name.topic} was deleted"
    if name.topic_id and topic.id and name.topic_id != topic.id:
        return f"the topic {name.topic} was deleted, and another made under its name"
    if name.partition not in topic.partitions:
        return f"the topic {name.topic} has no partition {name.partition} any more"
    return None


def _doubt(partition: Partition, why: str, now: float) -> Verdict:
    partition.drop()
    if partition.doubted is None:
        partition.doubted = now
    if now - partition.doubted >= CONFIRM_S:
        partition.vanish(why)
    return Verdict(again=not partition.gone)


def _strayed(partition: Partition, sight: Sight, since: float, now: float) -> Verdict:
    begin, end = sight.begins.get(partition.tp), sight.ends[partition.tp]
    if begin is None:  # it strayed after this look began
        return Verdict(again=True)
    if partition.next < begin:
        partition.lose_until(begin)
        return Verdict(seek=True)
    if partition.next <= end:  # a new leader that had not caught up
        partition.strayed = None
        return Verdict(seek=True)
    if now - since < CONFIRM_S:
        return Verdict(again=True)
    return Verdict(
        again=True,
        fatal=BadRecord(
            "source_lost",
            f"{partition.tp.topic}/{partition.tp.partition} ends at offset {end}, and we had come to {partition.next}: "
            "the broker lost records, and what is written now takes their offsets. Look at its log, and start over "
            "with --fresh",
        ),
    )
