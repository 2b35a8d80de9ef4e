"""Carrying out erasures: dead letters, then the store, and what the store has kept of the user on its disk.

An erasure is carried out in each store once, by the engine that owns the partition: at its take-over for what the store
has not heard of yet, and as erasures come. A store may already hold later clicks of the user than those that are
erased; it doesn't know the offsets of its clicks, so those are read from the log again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from engine import metrics
from engine.erasures import Erasures
from engine.errors import MalformedEvent
from engine.events import decode_click
from engine.log import read_range
from engine.log.partitioning import partition_of
from engine.settings import Settings
from engine.store.recovery import Recovery
from engine.store.windows import LoggedClick, PartitionStore
from engine.streams.dead_letters import DeadLetters

log = structlog.get_logger()


class Eraser:
    """Has stores forget users."""

    def __init__(self, settings: Settings, erasures: Erasures, dead_letters: DeadLetters, recovery: Recovery) -> None:
        """Prepare to carry out what *erasures* says."""
        self._settings, self._erasures = settings, erasures
        self._dead_letters, self._recovery = dead_letters, recovery
        self._compacting: set[asyncio.Task[None]] = set()

    def until(self, partition: int) -> Mapping[bytes, int]:
        """Return by user id, UTF-8, the last offset of *partition* that is ignored."""
        return self._erasures.until(partition)

    def is_due(self, store: PartitionStore) -> bool:
        """Return whether *store* has not carried out every erasure of its partition."""
        return bool(self._due(store)[0])

    async def carry_out(self, store: PartitionStore) -> None:
        """Have *store* forget whom it has to; nobody refreshes from it meanwhile, and no click is applied.

        Raises:
            LogError: the log can't be reached.
            StoreNotWritten: RocksDB can't write; nothing of the store is changed.
        """
        until, place = self._due(store)
        if not until:
            return
        header, topic_id = store.header, self._erasures.topic_id
        await self._dead_letters.take_off(until, header.partition)
        newer = await self._read_newer(store, until)
        await asyncio.to_thread(store.erase, until, newer, topic_id=topic_id, place=place)
        await asyncio.to_thread(self._recovery.forget_aside, header)
        metrics.USERS_ERASED.inc(len(until))
        log.info("users_erased", partition=header.partition, users=len(until), newer_clicks=len(newer))
        compacting = asyncio.create_task(asyncio.to_thread(store.compact, list(until)), name="compact")
        self._compacting.add(compacting)
        compacting.add_done_callback(self._compacted)

    def _due(self, store: PartitionStore) -> tuple[dict[str, int], int]:
        return self._erasures.since(store.header.partition, store.erased_through(self._erasures.topic_id))

    async def _read_newer(self, store: PartitionStore, until: Mapping[str, int]) -> list[LoggedClick]:
        """Return the clicks of these users that *store* has applied and that are not erased, in log order."""
        behind = {user: last for user, last in until.items() if last < store.applied_offset and store.holds(user)}
        if not behind:
            return []
        newer, partition, settings = list[LoggedClick](), store.header.partition, self._settings
        start, end = min(behind.values()) + 1, store.applied_offset + 1
        async for record in read_range(settings, "clicks", partition, start=start, end=end):
            key = record.key or b""
            if record.value is None or record.offset <= behind.get(key.decode(errors="replace"), record.offset):
                continue
            try:
                click = decode_click(
                    record.value,
                    key=record.key,
                    recorded_at_ms=record.timestamp_ms,
                    future_tolerance_ms=settings.future_tolerance_ms,
                    max_message_bytes=settings.max_message_bytes,
                )
            except MalformedEvent:
                continue  # it has its dead letter since it was first read
            if partition_of(key, store.header.partitions) == partition:
                newer.append(LoggedClick(record.offset, record.timestamp_ms, click))
        return newer

    def _compacted(self, task: asyncio.Task[None]) -> None:
        self._compacting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The users are gone from all that is read; RocksDB's own compactions drop the bytes later.
            log.warning("compaction_failed", error=str(error))
