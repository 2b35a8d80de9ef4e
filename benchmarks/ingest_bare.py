"""The bare loop beside the ingest benchmark: aiokafka's `getmany` and msgspec, no state, no checks, nothing kept."""

from __future__ import annotations

import asyncio

import msgspec
from aiokafka import AIOKafkaConsumer
from ingest_load import Clock, finish, worker_arguments


class Click(msgspec.Struct):
    """What is read of a click."""

    user_id: str
    item_id: str
    clicked_at_ms: int
    event_id: str | None = None
    event_type: str = "click"
    weight: float = 1.0


async def main() -> None:
    arguments, clock, decode = worker_arguments(), Clock(), msgspec.json.Decoder(Click).decode
    consumer = AIOKafkaConsumer(
        "clicks",
        bootstrap_servers=arguments.broker,
        group_id=arguments.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=2 * 2**20,
    )
    await consumer.start()
    await consumer.seek_to_beginning()
    taken = 0
    while taken < arguments.clicks:
        fetched = await consumer.getmany(timeout_ms=1000, max_records=5000)
        if fetched:
            clock.start()
        for records in fetched.values():
            for record in records:
                decode(record.value)
            taken += len(records)
    finish(clock.stop(taken))


asyncio.run(main())
