"""The clicks that the ingest benchmark drains: 1 M users, the busiest with 1 click in 100, 200 bytes each."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from aiokafka import AIOKafkaProducer

from engine.log.partitioning import partition_of
from engine.settings import Settings

USERS = 1_000_000
ITEMS = 100_000
CLICK_BYTES = 200
# User of rank r gets a share of (r / users) ** (1 / SKEW) among the ranks up to r: of rank 1 that is 1 click in 100.
SKEW = math.log(USERS) / math.log(100)
BATCH_BYTES = 512 * 1024


def clicks(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of each click, the same at every call."""
    rng = random.Random(20_261_125)
    now_ms = time.time_ns() // 1_000_000 - count
    for number in range(count):
        user = b"customer-%031d" % int(USERS * rng.random() ** SKEW)
        click = (
            b'{"user_id":"%s","item_id":"product-%031d","clicked_at_ms":%d,"event_id":"%016x","event_type":"click",'
            b'"weight":1.0}'
        ) % (user, rng.randrange(ITEMS), now_ms + number, rng.getrandbits(64))
        assert len(click) == CLICK_BYTES, len(click)
        yield user, click


async def fill(settings: Settings, messages: Iterable[tuple[bytes, bytes]]) -> None:
    """Write *messages*, keys and values, to `clicks`, in large batches without compression."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, max_batch_size=BATCH_BYTES, max_request_size=2 * BATCH_BYTES
    )
    await producer.start()
    open_batches: dict[int, Any] = {}
    sent: list[asyncio.Future[Any]] = []

    async def send(partition: int) -> None:
        sent.append(
            await producer.send_batch(open_batches.pop(partition), settings.topic("clicks"), partition=partition)
        )

    for key, value in messages:
        partition = partition_of(key, settings.clicks_partitions)
        batch = open_batches.setdefault(partition, None) or producer.create_batch()
        open_batches[partition] = batch
        if batch.append(key=key, value=value, timestamp=None) is None:
            await send(partition)
            open_batches[partition] = batch = producer.create_batch()
            batch.append(key=key, value=value, timestamp=None)
    for partition in list(open_batches):
        await send(partition)
    await asyncio.gather(*sent)
    await producer.stop()


# --- what every drain has in common


def worker_arguments() -> argparse.Namespace:
    """Return what `bench_ingest.py` tells a drain: the broker, its own directory and group, how many clicks to take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--clicks", type=int, required=True)
    parser.add_argument("--mode", choices=("live", "replay", "grown"), default="live")
    return parser.parse_args()


class Clock:
    """Times a drain: wall seconds, and CPU seconds of all threads of this process."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._cpu_began_s = 0.0

    def start(self) -> None:
        """Begin at the first click; later calls change nothing."""
        if self._began_s is None:
            self._began_s, self._cpu_began_s = time.perf_counter(), time.process_time()

    def cpu_s(self) -> float:
        """Return the CPU seconds since the beginning, of all threads."""
        return time.process_time() - self._cpu_began_s

    def stop(self, clicks: int) -> dict[str, Any]:
        """Return the figures of a drain of so many clicks."""
        wall_s, cpu_s = time.perf_counter() - (self._began_s or 0.0), self.cpu_s()
        return {
            "clicks": clicks,
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "clicks_per_s": clicks / wall_s,
            "clicks_per_cpu_s": clicks / cpu_s,
            "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def finish(figures: dict[str, Any]) -> NoReturn:
    """Print *figures* as JSON, the last line of the output, and end the process."""
    os.write(1, b"\n" + json.dumps(figures).encode() + b"\n")  # Faust has put a logger in place of stdout
    os._exit(0)  # nobody waits for a group to be left in good order
