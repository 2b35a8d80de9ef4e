"""Reading a stretch of one partition again, without a group."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import structlog
from aiokafka import TopicPartition

from engine.errors import LogError
from engine.log.connection import consumer, translated
from engine.log.records import Record
from engine.settings import Settings

POLL_MS = 200
STALL_S = 30.0

log = structlog.get_logger()


async def read_range(settings: Settings, topic: str, partition: int, *, start: int, end: int) -> AsyncIterator[Record]:
    """Yield the records of a partition from offset *start* to before *end*, those that the log still holds.

    Args:
        settings: how to reach the log.
        topic: the name in the contract, such as `clicks`.
        partition: its number.
        start: the first offset.
        end: the offset after the last; no greater than where the log ends.

    Raises:
        LogError: the log can't be reached, or gives nothing for `STALL_S`.
    """
    name = settings.topic(topic)
    place = TopicPartition(name, partition)
    with translated(name):
        async with consumer(settings) as reader:
            reader.assign([place])
            first = (await reader.beginning_offsets([place]))[place]
            if first > start:
                log.warning("log_start_moved", topic=name, partition=partition, wanted=start, start=first)
            reader.seek(place, max(start, first))
            moved_at, at = time.monotonic(), max(start, first)
            while at < end:
                for found in (await reader.getmany(timeout_ms=POLL_MS)).values():
                    for each in found:
                        if each.offset < end:
                            headers = dict(each.headers)
                            yield Record(name, partition, each.offset, each.timestamp, each.key, each.value, headers)
                position = await reader.position(place)
                moved_at = time.monotonic() if position > at else moved_at
                at = position
                if time.monotonic() - moved_at > STALL_S:
                    raise LogError(
                        f"partition {partition} of {name}",
                        problem=f"gave nothing to read at offset {at} for {STALL_S:g} s",
                        remedy="check that the broker runs (`mindstream doctor`) and try again",
                    )
