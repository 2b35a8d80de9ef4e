"""Checkpoints while the engine runs: each store is copied every minute, and once more at its hand-over.

The copy is made of links, in a blink; sending it takes a thread of its own, so neither clicks nor lists wait for it. A
checkpoint that can't be made or sent is counted and tried again: the log still has everything.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from engine import metrics
from engine.errors import ConfigError, DamagedCheckpoint, StoreError
from engine.log import Epoch, first_offsets, topic_epoch
from engine.settings import Settings
from engine.store.checkpoints import Checkpoint, Checkpoints
from engine.store.header import StoreHeader
from engine.store.windows import PartitionStore

HAND_OVER_WITHIN_S = 5.0
"""Partitions are let go after so long, their last checkpoints sent or not: who takes them applies more of the log."""

log = structlog.get_logger()


class Checkpointer:
    """Sends copies of the partition stores to where another engine finds them."""

    def __init__(
        self,
        settings: Settings,
        checkpoints: Checkpoints,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Prepare to write *checkpoints*; *now_ms* is wall time, for the manifests."""
        self.checkpoints = checkpoints
        self._every_s, self._now_ms = settings.checkpoint_every_s, now_ms
        self._copies = settings.data_dir / "engine" / "copies"
        shutil.rmtree(self._copies, ignore_errors=True)
        self._written: dict[int, tuple[int, int]] = {}
        """By partition: applied offset and erasures done of its last checkpoint."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    async def keep(self, stores: Callable[[], Mapping[int, PartitionStore]]) -> None:
        """Write a checkpoint of each of *stores* that has applied more, again and again; return never."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._every_s)
            for store in list(stores().values()):
                await loop.run_in_executor(self._thread, self._write, store)
            metrics.CHECKPOINT_LAG.set(sum(self._lag(store) for store in stores().values()))

    async def hand_over(self, stores: Sequence[PartitionStore]) -> None:
        """Write the last checkpoints of *stores*, which are about to be closed; give up after `HAND_OVER_WITHIN_S`."""
        loop = asyncio.get_running_loop()
        writing = [loop.run_in_executor(self._thread, self._write, store) for store in stores]
        if not writing:
            return
        _done, late = await asyncio.wait(writing, timeout=HAND_OVER_WITHIN_S)
        for write in late:
            write.cancel()  # those that wait for their turn
        if late:
            log.warning("checkpoints_late", partitions=len(late), after_s=HAND_OVER_WITHIN_S)

    async def close(self) -> None:
        """Wait for the checkpoint under way."""
        await asyncio.to_thread(self._thread.shutdown)

    def _lag(self, store: PartitionStore) -> int:
        return store.applied_offset - self._last(store)[0]

    def _last(self, store: PartitionStore) -> tuple[int, int]:
        return self._written.get(store.header.partition, (-1, -1))

    def _write(self, store: PartitionStore) -> None:
        """Copy *store* and send the copy, if it has applied or erased anything since its last checkpoint."""
        header, erasures_done = store.header, store.erasures_done  # read first: the copy may have done more, not less
        if self._lag(store) <= 0 and erasures_done <= self._last(store)[1]:
            return
        began_s = time.perf_counter()
        folder = self._copies / f"{header.topic}-{header.partition}"
        try:
            self._copies.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            applied_offset = store.copy_to(folder)
            if applied_offset < 0:
                return
            self.checkpoints.write(
                folder,
                header,
                applied_offset=applied_offset,
                created_at_ms=self._now_ms(),
                erasures_done=erasures_done,
            )
            self._written[header.partition] = applied_offset, erasures_done
            self.checkpoints.prune(header, erasures_done=erasures_done)
        except (StoreError, OSError) as error:
            metrics.CHECKPOINTS.labels("failed").inc()
            log.warning("checkpoint_failed", partition=header.partition, error=str(error))
            return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        seconds = time.perf_counter() - began_s
        metrics.CHECKPOINTS.labels("written").inc()
        metrics.CHECKPOINT_SECONDS.set(seconds)
        log.info(
            "checkpoint_written", partition=header.partition, applied_offset=applied_offset, seconds=round(seconds, 3)
        )


async def list_checkpoints(settings: Settings, *, verify: bool) -> list[tuple[int, Checkpoint, str]]:
    """Return every checkpoint of the topic `clicks` as it is now: its partition, what it is, and "ok" or what is wrong.

    Args:
        settings: the cluster, and the place of the checkpoints.
        verify: read every file and compare it with its manifest; else only the manifests are read.

    Raises:
        ConfigError: no place is named.
        CheckpointsUnusable: it can't be read.
        LogError: the broker can't be reached, or has no such topic.
    """
    checkpoints, epoch = named_checkpoints(settings), await topic_epoch(settings, "clicks")
    rows = []
    for partition in range(epoch.partitions):
        for checkpoint in checkpoints.find(header_of(settings, epoch, partition)):
            state = "ok"
            if verify:
                try:
                    checkpoints.verify(checkpoint)
                except DamagedCheckpoint as error:
                    state = str(error)
            rows.append((partition, checkpoint, state))
    return rows


def named_checkpoints(settings: Settings) -> Checkpoints:
    """Return the checkpoints that the settings name.

    Raises:
        ConfigError: they name no place, or one that can't be opened here.
    """
    if settings.checkpoint_url is None:
        raise ConfigError("MINDSTREAM_CHECKPOINT_URL", got=None, expected="set to where the checkpoints are")
    return Checkpoints(settings.checkpoint_url)


async def find_continued(settings: Settings, checkpoints: Checkpoints) -> list[list[Checkpoint]]:
    """Return of each partition the checkpoints that the log still goes on from, the oldest first.

    Raises:
        CheckpointsUnusable: they can't be read.
        LogError: the broker can't be reached, or has no such topic.
    """
    epoch = await topic_epoch(settings, "clicks")
    firsts = await first_offsets(settings, "clicks", epoch=epoch)
    found = [checkpoints.find(header_of(settings, epoch, partition)) for partition in range(epoch.partitions)]
    return [
        [one for one in reversed(of_partition) if one.applied_offset + 1 >= firsts[partition]]
        for partition, of_partition in enumerate(found)
    ]


def header_of(settings: Settings, epoch: Epoch, partition: int) -> StoreHeader:
    """Return what the store of *partition* of `clicks` is made for."""
    return StoreHeader(
        cluster_id=epoch.cluster_id,
        topic=settings.topic("clicks"),
        topic_id=epoch.topic_id,
        partitions=epoch.partitions,
        partition=partition,
        max_clicks=settings.window_max_clicks,
    )
