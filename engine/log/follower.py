"""Following a topic whole, without a group.

A follower meets three kinds of trouble. The broker is away: it tries again for ever. The records it needs are gone from
the log's start: it goes on from there and says so in `skipped`. The log is not the one it was following, or its `apply`
raised: it stops, and `wait` raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, OffsetOutOfRangeError

from engine.errors import LogError
from engine.log.connection import consumer
from engine.log.epoch import read_epoch
from engine.log.records import Epoch, Record
from engine.settings import Settings

POLL_MS = 200
SILENCE_S = 5.0
"""A broker that answered no fetch for this long is away, whatever its connection says."""
BACK_OFF_S = (0.1, 5.0)
"""First and longest pause between two attempts to reach the broker."""

log = structlog.get_logger()


class Follower:
    """Hands every record of a topic to *apply*, in offset order per partition, now and as they come."""

    def __init__(
        self,
        settings: Settings,
        topic: str,
        apply: Callable[[Sequence[Record]], Awaitable[None]],
        start: Mapping[int, int] | None = None,
    ) -> None:
        """Describe what to follow; nothing is read before `start`.

        Args:
            settings: how to reach the broker, and the topics' prefix.
            topic: the name in the contract, such as `items`.
            apply: takes records of one partition at a time, oldest first; the next call waits for it.
            start: next offset by partition; a partition not named starts at the log's beginning.
        """
        self._settings = settings
        self._topic = settings.topic(topic)
        self._apply = apply
        self._next: dict[int, int] = dict(start or {})
        self._ends: dict[int, int] = {}
        self._target: dict[int, int] | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.caught_up = asyncio.Event()
        """Set once everything that the log held at the start was applied."""
        self.failure: Exception | None = None
        """What ended this follower, if it did not end by `stop`."""
        self.epoch: Epoch | None = None
        """The topic's epoch, known after the first contact with the broker."""
        self.skipped: dict[int, int] = {}
        """Offsets by partition that the log no longer held when they were asked for."""
        self.connected = False
        """Whether the broker answered the last time it was asked."""

    async def start(self) -> None:
        """Begin to follow in the background; a broker that is away is waited for."""
        self._task = asyncio.create_task(self._run(), name=f"follow {self._topic}")

    async def stop(self) -> None:
        """Finish the records at hand and stop; stopping twice does nothing."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=5.0)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def wait(self) -> None:
        """Wait until this follower ends, and raise what ended it.

        Raises:
            LogError: the topic is not the one that was followed.
            Exception: whatever `apply` raised.
        """
        if self._task is not None:
            await asyncio.wait([self._task])
        if self.failure is not None:
            raise self.failure

    def lag(self) -> int:
        """Return how many offsets of the log are not applied yet, as far as the broker last said."""
        return sum(max(0, end - self._next.get(partition, 0)) for partition, end in self._ends.items())

    def positions(self) -> dict[int, int]:
        """Return the next offset by partition."""
        return dict(self._next)

    async def _run(self) -> None:
        pause_s = BACK_OFF_S[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._follow()
            except (KafkaError, OSError) as error:
                log.warning("log_unreachable", topic=self._topic, error=repr(error), retry_in_s=pause_s)
            except Exception as error:
                # Kept, and raised by `wait`: a task's exception that nobody awaits would be lost.
                self.failure = error
                log.error("follower_failed", topic=self._topic, error=repr(error))
                return
            finally:
                self.connected = False
            if time.monotonic() - began > BACK_OFF_S[1]:
                pause_s = BACK_OFF_S[0]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            pause_s = min(2 * pause_s, BACK_OFF_S[1])

    async def _follow(self) -> None:
        epoch = await read_epoch(self._settings, self._topic)
        self._check_epoch(epoch)
        async with consumer(self._settings) as reader:
            partitions = [TopicPartition(self._topic, number) for number in range(epoch.partitions)]
            reader.assign(partitions)
            await self._seek(reader, partitions)
            signs = _SignsOfLife(reader, partitions)
            while not self._stopping.is_set():
                took = await self._take(reader, partitions)
                signs.check(took=took)

    async def _take(self, reader: Any, partitions: Sequence[TopicPartition]) -> bool:
        """Apply what has come and return whether anything had."""
        try:
            batches = await reader.getmany(timeout_ms=POLL_MS)
        except OffsetOutOfRangeError:
            # Retention overtook us, or the log is another one now: look at its edges again.
            self._check_epoch(await read_epoch(self._settings, self._topic))
            await self._seek(reader, partitions)
            return False
        for partition, found in batches.items():
            await self._apply_all(found)
            self._next[partition.partition] = found[-1].offset + 1
        for partition in partitions:
            # Also passes what is no record: markers of transactions, and offsets that compaction removed.
            self._next[partition.partition] = await reader.position(partition)
            end = reader.last_stable_offset(partition)
            if end is not None:
                self._ends[partition.partition] = end
        self._note_progress()
        return bool(batches)

    async def _apply_all(self, found: Sequence[Any]) -> None:
        records = [
            Record(each.topic, each.partition, each.offset, each.timestamp, each.key, each.value, dict(each.headers))
            for each in found
        ]
        try:
            await self._apply(records)
        except (KafkaError, OSError) as error:
            # Not an outage of ours: `apply` failed, and trying again would apply the records twice.
            raise LogError(
                self._topic, problem=f"could not be applied: {error!r}", remedy="look at the cause and start again"
            ) from error

    async def _seek(self, reader: Any, partitions: Sequence[TopicPartition]) -> None:
        first = await reader.beginning_offsets(partitions)
        ends = await reader.end_offsets(partitions)
        for partition in partitions:
            number = partition.partition
            wanted = self._next.get(number, first[partition])
            if wanted > ends[partition]:
                raise LogError(
                    f"{self._topic} partition {number}",
                    problem=f"ends at offset {ends[partition]}, before {wanted} where this process stood",
                    remedy="the topic lost records or was made anew; delete what was derived from it and start again",
                )
            if wanted < first[partition]:
                self.skipped[number] = self.skipped.get(number, 0) + first[partition] - wanted
                log.warning(
                    "log_start_moved", topic=self._topic, partition=number, wanted=wanted, start=first[partition]
                )
            self._next[number] = max(wanted, first[partition])
            self._ends[number] = ends[partition]
            reader.seek(partition, self._next[number])
        self.connected = True
        if self._target is None:
            self._target = dict(self._ends)
        self._note_progress()

    def _note_progress(self) -> None:
        if not self.caught_up.is_set() and all(self._next[n] >= end for n, end in (self._target or {}).items()):
            self.caught_up.set()

    def _check_epoch(self, epoch: Epoch) -> None:
        if self.epoch is not None and epoch != self.epoch:
            raise LogError(
                self._topic,
                problem=f"is not the topic that was followed: it was {self.epoch}, it is {epoch}",
                remedy="delete what was derived from the old one and start again",
            )
        self.epoch = epoch


class _SignsOfLife:
    """Notices a broker that fell silent: aiokafka tries again by itself and tells nobody."""

    def __init__(self, reader: Any, partitions: Sequence[TopicPartition]) -> None:
        self._reader, self._partitions = reader, partitions
        self._last: list[object] = []
        self._seen_at = time.monotonic()

    def check(self, *, took: bool) -> None:
        """Raise KafkaConnectionError if no fetch was answered for `SILENCE_S`; the clock rests while records come."""
        answered = [self._reader.last_poll_timestamp(partition) for partition in self._partitions]
        now = time.monotonic()
        if took or answered != self._last:
            self._last, self._seen_at = answered, now
        elif now - self._seen_at > SILENCE_S:
            raise KafkaConnectionError(f"no fetch was answered for {SILENCE_S:.0f} s")
