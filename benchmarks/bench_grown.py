"""Ingest into stores that have grown: what a click costs beside half a million users, and beside ten million.

A real Kafka of its own holds a million clicks of users drawn evenly before anything is timed. The stores, two clicks
and a derived row a user, are filled through the codec; then the engine's intake (`ingest_ours.py`, on one core, the
broker's JVM on the other) drains the topic into them and reads the window of every dirty user once a second. CPU is
that of the whole process from the first click on, RocksDB's own threads and a final wait for its compactions included;
memory is the most that the process held, from its start.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import store_load
from bench_ingest import drain, free_ports, pin
from ingest_load import fill
from report import at_most, conclude, machine

from engine.events import encode_click
from engine.log import topic_epoch
from engine.settings import Settings
from engine.streams.checkpointing import header_of
from engine.streams.local_broker import LocalBroker
from engine.streams.topics import create_topics

CLICKS_EACH = 2
MOST_GROWTH, MOST_RSS_GIB = 2.0, 1.5


def main() -> int:
    arguments = store_load.parse_sizes(store_load.sizes_parser(__doc__))
    directory = Path(tempfile.mkdtemp(prefix="bench-grown-", dir=arguments.directory))
    settings = Settings(
        data_dir=directory,
        broker_port=free_ports(2),
        broker_heap_mb=512,
        kafka_bootstrap_servers=None,
        clicks_partitions=store_load.PARTITIONS,
    )
    broker = LocalBroker(settings)
    try:
        broker.start()
        pin(broker.pids, core=-1)
        sizes = (arguments.few, arguments.many)
        few, many = (drain_into(settings, users, arguments.clicks) for users in sizes)
    finally:
        broker.stop()
        shutil.rmtree(directory, ignore_errors=True)
    growth = many["cpu_us_per_click"] / few["cpu_us_per_click"]
    figures: dict[str, Any] = {
        "machine": machine(),
        "clicks": arguments.clicks,
        "few": few,
        "many": many,
        "checks": [
            at_most("CPU a click, many users over few", growth, MOST_GROWTH),
            at_most("memory with many users, GiB", many["rss_bytes"] / 2**30, MOST_RSS_GIB),
        ],
    }
    print(
        f"grown ({figures['machine']}): CPU a click grows {growth:.2f} times from {arguments.few:,} to "
        f"{arguments.many:,} users; {many['rss_bytes'] / 2**30:.2f} GiB with these"
    )
    return conclude(figures, arguments.json)


def drain_into(settings: Settings, users: int, clicks: int) -> dict[str, Any]:
    """Return what *clicks* that come by Kafka cost in stores of *users*."""
    settings = settings.model_copy(update={"topic_prefix": f"{users}-"})
    asyncio.run(create_topics(settings))
    epoch = asyncio.run(topic_epoch(settings, "clicks"))
    print(f"  {users:,} users: filling the topic and the stores", flush=True)
    asyncio.run(fill(settings, messages(clicks, users)))
    data = settings.data_dir / f"grown-{users}"
    store_load.fill(
        data,
        users,
        CLICKS_EACH,
        with_lists=True,
        header=lambda partition: header_of(settings, epoch, partition),
        has_applied=False,
    )
    figures = drain(settings, "ingest_ours.py", data, clicks=clicks, mode="grown")
    figures["cpu_us_per_click"] = figures["cpu_s_to_the_end"] / figures["clicks"] * 1e6
    print(
        f"  {users:,} users: {figures['cpu_us_per_click']:.1f} us of CPU a click, {figures['clicks_per_s']:,.0f} "
        f"clicks/s, {figures['windows_read']:,} windows read, {figures['rss_bytes'] / 2**30:.2f} GiB",
        flush=True,
    )
    return figures


def messages(count: int, users: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of clicks of users drawn evenly, each later than all that the stores hold."""
    rng, now_ms = random.Random(8), time.time_ns() // 1_000_000 - count
    for number in range(count):
        click = store_load.draw_click(store_load.user_id(rng.randrange(users)), now_ms + number, rng)
        yield click.user_id.encode(), encode_click(click)


if __name__ == "__main__":
    sys.exit(main())
