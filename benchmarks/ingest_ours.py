"""The engine's intake beside the ingest benchmark, and a reader in the place of its refresh loop.

Faust adapter, decoding with all checks, dead letters, windows in RocksDB: all as `engine/streams/app.py` puts them
together. Once a second the reader takes every dirty user, reads the window and settles: marks and surplus clicks go.
It makes no lists. The engine refreshes nobody before it has caught up; here the reader works from the first click on,
except in the mode `replay`, where it waits as the engine does. In the mode `grown` the stores are there already.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog
from ingest_load import Clock, finish, worker_arguments

from engine.log import Epoch, Publisher, topic_epoch
from engine.settings import Settings
from engine.store.codec import CLICKS
from engine.store.header import stores_dir
from engine.store.recovery import Bounds
from engine.store.rocksdb import open_for_reading, scan
from engine.store.windows import PartitionStore
from engine.streams.batches import ClickBatch, FaustApp
from engine.streams.clicks import Ingest
from engine.streams.dead_letters import DeadLetters
from engine.streams.decompression import bound_decompression
from engine.streams.garbage import seldom_collect_garbage

PERIOD_S = 1.0


class Reader:
    """Reads the window of every dirty user once a second, and settles."""

    def __init__(self, batch_size: int) -> None:
        self.stores: dict[int, PartitionStore] = {}
        self.windows_read = 0
        self.read_s = 0.0
        self._batch_size = batch_size
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="refresh")

    def add_partition(self, partition: int, store: PartitionStore) -> None:
        self.stores[partition] = store

    async def remove_partition(self, partition: int) -> None:
        self.stores.pop(partition, None)

    def notify(self) -> None:
        pass

    def is_behind(self) -> bool:
        return False

    async def run(self) -> None:
        while True:
            began_s = time.perf_counter()
            await self.read_all()
            await asyncio.sleep(max(0.0, began_s + PERIOD_S - time.perf_counter()))

    async def read_all(self) -> None:
        for store in list(self.stores.values()):
            waiting = store.count_dirty()
            while waiting > 0:
                waiting -= await asyncio.get_running_loop().run_in_executor(
                    self.thread, self._read_some, store, waiting
                )

    def _read_some(self, store: PartitionStore, waiting: int) -> int:
        began_s = time.thread_time()
        batch = store.take_dirty(min(waiting, self._batch_size))
        for user in batch.users:
            batch.read_window(user.user_id)
        store.settle(batch, [])
        self.windows_read += len(batch.users)
        self.read_s += time.thread_time() - began_s
        return len(batch.users) or waiting


class CountedIngest(Ingest):
    """The engine's intake, which counts what it took, and takes itself for caught up at once where it is to be live."""

    clock = Clock()
    taken = 0
    done: asyncio.Event

    async def start_positions(self, epoch: Epoch, bounds: Mapping[int, Bounds]) -> Mapping[int, int]:
        if arguments.mode == "live":
            bounds = {partition: Bounds(held.first, held.first) for partition, held in bounds.items()}
        return await super().start_positions(epoch, bounds)

    async def take(self, batch: ClickBatch) -> None:
        self.clock.start()
        await super().take(batch)
        self.taken += len(batch.records) if batch.done.is_set() else 0
        if self.taken >= wanted:
            self.done.set()


def give_up(error: BaseException) -> None:
    print(repr(error), file=sys.stderr, flush=True)
    os._exit(1)


def disk() -> dict[str, int]:
    """Return what the closed stores hold: bytes of files, bytes of the clicks that windows keep, and clicks."""
    kept_bytes = stored_clicks = 0
    for directory in stores_dir(settings).iterdir():
        db, users = open_for_reading(directory), Counter[bytes]()
        for key, value in scan(db.iter(), CLICKS):
            user = key[1 : key.index(0)]
            users[user] += 1
            stored_clicks += 1
            if users[user] <= settings.window_max_clicks:
                kept_bytes += len(key) + len(value)
        db.close()
    files = (path for path in stores_dir(settings).rglob("*") if path.is_file() and not path.name.startswith("LOG"))
    return {
        "disk_bytes": sum(path.stat().st_size for path in files),
        "kept_bytes": kept_bytes,
        "stored_clicks": stored_clicks,
    }


async def main() -> None:
    bound_decompression()
    seldom_collect_garbage()
    (arguments.data / "engine").mkdir(parents=True, exist_ok=True)
    epoch = await topic_epoch(settings, "clicks")
    publisher, reader = Publisher(settings), Reader(settings.refresh_batch_size)
    await publisher.start()
    dead_letters = DeadLetters(settings, publisher, epoch.text)
    ingest = CountedIngest(settings, epoch, dead_letters, reader, on_failure=give_up)
    ingest.done = asyncio.Event()
    app = FaustApp(settings, ingest)
    await app.start()
    reading = asyncio.create_task(asyncio.Event().wait() if arguments.mode == "replay" else reader.run())
    await ingest.done.wait()
    reading.cancel()
    await asyncio.wait([reading])
    if arguments.mode != "replay":
        await reader.read_all()
    figures = ingest.clock.stop(ingest.taken)
    figures |= {
        "windows_read": reader.windows_read,
        "read_cpu_us_per_window": reader.read_s / max(reader.windows_read, 1) * 1e6,
    }
    for store in list(reader.stores.values()):
        store.close()  # waits for what RocksDB has under way
    figures["cpu_s_to_the_end"] = ingest.clock.cpu_s()
    finish(figures if arguments.mode == "grown" else figures | disk())


arguments = worker_arguments()
wanted = arguments.clicks
logging.basicConfig(level=logging.WARNING)
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
settings = Settings(
    kafka_bootstrap_servers=arguments.broker,
    data_dir=arguments.data,
    consumer_group=arguments.group,
    clicks_partitions=int(os.environ["CLICKS_PARTITIONS"]),
    topic_prefix=os.environ["TOPIC_PREFIX"],
)
asyncio.run(main())
