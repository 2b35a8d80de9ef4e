"""Clicks into windows: the agent's work, one micro-batch at a time.

Second of the files one click passes through. A batch is decoded; what can't be taken goes to the dead letters and is
acknowledged there; then the good clicks, the users' dirty marks and the offset are written to the partition's store in
one step, and the refresh loop is woken. A crash anywhere leaves the batch to be read again, and changes nothing twice.

Partitions come and go with the consumer group. A partition's lists are only refreshed once its store has reached the
end that the log had when the partition was taken over: before that its windows are old news.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog

from engine import metrics
from engine.errors import LogError, MalformedEvent
from engine.events import REASONS, decode_click
from engine.log import Epoch
from engine.log.partitioning import partitions_of
from engine.settings import Settings
from engine.store.recovery import Bounds, Recovery
from engine.store.windows import LoggedClick, PartitionStore
from engine.streams.batches import BATCH_RECORDS, ClickBatch, KafkaRecord
from engine.streams.checkpointing import Checkpointer, header_of
from engine.streams.dead_letters import DeadLetters, Rejected
from engine.streams.erasing import Eraser

REST_S = 0.2
"""How long intake leaves the interpreter to a refresh that doesn't keep up."""

log = structlog.get_logger()
Answer = TypeVar("Answer")


class Refresher(Protocol):
    """What ingest tells the refresh loop."""

    def add_partition(self, partition: int, store: PartitionStore) -> None:
        """Refresh the users of *store* from now on."""

    async def remove_partition(self, partition: int) -> None:
        """Finish the micro-batch in flight and leave the store alone."""

    def notify(self) -> None:
        """There are clicks."""

    def is_behind(self) -> bool:
        """Whether more users wait than the next micro-batch takes."""


@dataclass(slots=True)
class OwnedPartition:
    """A partition of `clicks` that this engine reads, and its store."""

    number: int
    store: PartitionStore
    end_at_start: int
    is_live: bool = False
    """True once the store has reached `end_at_start`, and the refresh loop works on it."""
    lag: int = 0


@dataclass(slots=True)
class Decoded:
    """A batch after decoding."""

    clicks: list[LoggedClick] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    tombstones: int = 0
    redelivered: int = 0
    erased: int = 0


class Ingest:
    """The intake of the Faust adapter: owns the partition stores while this engine owns the partitions."""

    def __init__(
        self,
        settings: Settings,
        epoch: Epoch,
        dead_letters: DeadLetters,
        refresh: Refresher,
        *,
        on_failure: Callable[[BaseException], None],
        recovery: Recovery | None = None,
        checkpointer: Checkpointer | None = None,
        eraser: Eraser | None = None,
        on_assigned: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare to take batches; nothing is opened before `start_positions`.

        Args:
            settings: where the stores are, and what a click may look like.
            epoch: the life of the topic `clicks` that the stores belong to.
            dead_letters: where bad records go.
            refresh: woken after every batch.
            on_failure: called with a fault of ours; the engine must stop then, and nothing more is taken.
            recovery: opens the stores; None for one without checkpoints.
            checkpointer: copies the stores to where the next owner of a partition finds them; None for no copies.
            eraser: has the stores forget users; None where nobody is ever erased.
            on_assigned: called when the stores of the partitions that this engine owns from now on are open.
        """
        self._on_assigned = on_assigned
        self._eraser = eraser
        self._recovery, self._checkpointer = recovery or Recovery(settings), checkpointer
        self._settings, self._epoch, self._refresh = settings, epoch, refresh
        self._dead_letters, self._on_failure = dead_letters, on_failure
        self._owned: dict[int, OwnedPartition] = {}
        self._erasing: set[int] = set()
        """Partitions that may not join the refresh right now."""
        self._busy = asyncio.Lock()
        self._revoking = asyncio.Event()
        self._assigning: set[asyncio.Task[Mapping[int, int]]] = set()
        self._has_failed = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ingest")
        for reason in REASONS:
            metrics.REJECTED.labels(reason)

    # --- partitions come and go

    async def start_positions(self, epoch: Epoch, bounds: Mapping[int, Bounds]) -> Mapping[int, int]:
        """Open a store for each partition in *bounds*, close all others, and return each one's next offset.

        A rebalance that comes meanwhile cancels the caller, and the work goes on: a store that is opened for nobody
        would be locked when the next call wants it. That call, and `revoke`, wait for the end of this one.

        Args:
            epoch: what `clicks` is now. With other partitions users would belong elsewhere, made anew its offsets would
                mean other clicks, so an engine that runs on another epoch must stop.
            bounds: the partitions that this engine owns from now on, and what the log holds of each.

        Raises:
            LogError: the log is another one, no longer holds what a store needs next, or ends before what it applied.
            StoreError: a store can't be opened for this topic.
        """
        if epoch != self._epoch:
            raise LogError(
                self._settings.topic("clicks"),
                problem=f"is not what this engine was started on: it was {self._epoch}, it is {epoch}",
                remedy="start the engine again; where its stores don't fit the topic any more it says what to do",
            )
        assigning = asyncio.create_task(self._take_over(bounds))
        self._assigning.add(assigning)
        assigning.add_done_callback(self._assigning.discard)
        return await asyncio.shield(assigning)

    async def _take_over(self, bounds: Mapping[int, Bounds]) -> Mapping[int, int]:
        async with self._busy:
            self._revoking.clear()
            await self._close(set(self._owned) - set(bounds))
            for partition in sorted(set(bounds) - set(self._owned)):
                held = bounds[partition]
                store = await self._in_thread(
                    self._recovery.open, header_of(self._settings, self._epoch, partition), held
                )
                self._owned[partition] = OwnedPartition(partition, store, held.end)
                if self._eraser is not None:
                    await self._eraser.carry_out(store)
            positions = {
                partition: self._recovery.next_offset(self._owned[partition].store, held)
                for partition, held in bounds.items()
            }
        log.info("partitions_assigned", positions=positions)
        self.progress({partition: Bounds(at, bounds[partition].end) for partition, at in positions.items()})
        self._on_assigned()
        metrics.OWNED_PARTITIONS.set(len(self._owned))  # last: whoever sees it sees the lag of these partitions too
        return positions

    async def revoke(self) -> None:
        """Finish the batch in flight, or give it up if it waits for the dead-letter topic, and close all stores."""
        self._revoking.set()
        async with self._busy:
            if self._owned:
                log.info("partitions_revoked", partitions=sorted(self._owned))
            await self._close(set(self._owned))
            metrics.OWNED_PARTITIONS.set(0)
            metrics.CONSUMER_LAG.set(0)

    async def close(self) -> None:
        """Let go of everything, at the end."""
        await self.revoke()
        self._executor.shutdown()

    async def _close(self, partitions: set[int]) -> None:
        for partition in sorted(partitions):
            await self._refresh.remove_partition(partition)
        stores = [self._owned.pop(partition).store for partition in sorted(partitions)]
        if self._checkpointer is not None and not self._has_failed:
            await self._checkpointer.hand_over(stores)
        for store in stores:
            await self._in_thread(store.close)

    def stores(self) -> dict[int, PartitionStore]:
        """Return the open stores by their partitions."""
        return {number: owned.store for number, owned in self._owned.items()}

    # --- erasures

    async def erase(self) -> None:
        """Have the stores forget the users erased since they last did; between two batches, and beside no refresh."""
        if self._eraser is None:
            return
        try:
            async with self._busy:
                for owned in list(self._owned.values()):
                    if self._eraser.is_due(owned.store):
                        self._erasing.add(owned.number)
                        await self._refresh.remove_partition(owned.number)
                        await self._eraser.carry_out(owned.store)
                        self._erasing.discard(owned.number)
                        if owned.is_live:
                            self._refresh.add_partition(owned.number, owned.store)
        except Exception as error:
            self.fail(error)

    # --- batches

    async def take(self, batch: ClickBatch) -> None:
        """Apply *batch* and set its `done`; a fault of ours is reported, and leaves it undone."""
        if self._has_failed:
            return
        try:
            async with self._busy:
                is_applied = await self._apply(batch)
        except Exception as error:
            self.fail(error)
            return
        if is_applied:
            batch.done.set()
            self._refresh.notify()

    def fail(self, error: BaseException) -> None:
        """Take nothing more, and have the engine stopped because of *error*."""
        self._has_failed = True
        self._on_failure(error)

    def progress(self, positions: Mapping[int, Bounds]) -> None:
        """Note how far each partition is read; one that has caught up joins the refresh."""
        for partition, (position, end) in positions.items():
            owned = self._owned.get(partition)
            if owned is None:
                continue
            owned.lag = max(0, end - position)
            if not owned.is_live and position >= owned.end_at_start and partition not in self._erasing:
                owned.is_live = True
                log.info("partition_caught_up", partition=partition, offset=position)
                self._refresh.add_partition(partition, owned.store)
        self._show_lag()

    async def rest(self, taken: int) -> None:
        """Wait a moment where the fetch of *taken* records was not full and the refresh has enough to do without them.

        A click that comes meanwhile would only stand at the end of the queue, and a fetch of a few clicks costs the
        interpreter about as much as one of hundreds.
        """
        if taken < BATCH_RECORDS and self._refresh.is_behind():
            await asyncio.sleep(REST_S)

    def _show_lag(self) -> None:
        metrics.CONSUMER_LAG.set(sum(owned.lag for owned in self._owned.values()))

    async def _apply(self, batch: ClickBatch) -> bool:
        """Return whether the batch is in the store; False when the partition is on its way to another engine."""
        owned = self._owned.get(batch.partition)
        if owned is None or batch.is_void:
            return False
        owned.lag = max(owned.lag, len(batch.records))  # a batch may wait for the dead-letter topic for hours
        self._show_lag()
        decoded = await self._in_thread(self._take_in, batch, owned.store)
        if decoded.rejected:
            if not await self._unless_revoked(self._dead_letters.send(decoded.rejected)):
                return False
            await self._in_thread(self._write, batch, owned.store, decoded)
        _count(decoded)
        return True

    def _take_in(self, batch: ClickBatch, store: PartitionStore) -> Decoded:
        """Return what is in *batch*; it is in the store too, unless dead letters must be acknowledged before."""
        with _timed("decode"):
            decoded = self._decode(batch, store.applied_offset)
        if not decoded.rejected:
            self._write(batch, store, decoded)
        return decoded

    def _write(self, batch: ClickBatch, store: PartitionStore, decoded: Decoded) -> None:
        with _timed("store"):
            store.apply(decoded.clicks, through_offset=batch.records[-1].offset)

    def _decode(self, batch: ClickBatch, applied_offset: int) -> Decoded:
        decoded = Decoded()
        good: list[KafkaRecord] = []
        erased: Mapping[bytes, int] = {} if self._eraser is None else self._eraser.until(batch.partition)
        tolerance_ms, max_bytes = self._settings.future_tolerance_ms, self._settings.max_message_bytes
        for record in batch.records:
            offset, value = record.offset, record.value
            if offset <= applied_offset:
                decoded.redelivered += 1
            elif value is None:
                decoded.tombstones += 1
            elif erased and offset <= erased.get(record.key or b"", -1):
                decoded.erased += 1
            else:
                recorded_at_ms = record.timestamp
                try:
                    click = decode_click(
                        value,
                        key=record.key,
                        recorded_at_ms=recorded_at_ms,
                        future_tolerance_ms=tolerance_ms,
                        max_message_bytes=max_bytes,
                    )
                except MalformedEvent as error:
                    decoded.rejected.append(Rejected(record, batch.partition, error))
                else:
                    good.append(record)
                    decoded.clicks.append(LoggedClick(offset, recorded_at_ms, click))
        self._reject_misplaced(decoded, good, batch.partition)
        return decoded

    def _reject_misplaced(self, decoded: Decoded, good: Sequence[KafkaRecord], partition: int) -> None:
        """Take out of *decoded* the clicks, made of *good*, whose key belongs in another partition."""
        keys = [record.key for record in good if record.key is not None]  # all of them: decode_click compares the key
        rights = partitions_of(keys, self._epoch.partitions)
        if rights.count(partition) == len(good):
            return
        for record, right in zip(good, rights, strict=True):
            if right != partition:
                detail = f"the key belongs in partition {right}, the record is in {partition}"
                decoded.rejected.append(Rejected(record, partition, MalformedEvent("partition", detail)))
        kept = zip(decoded.clicks, rights, strict=True)
        decoded.clicks = [logged for logged, right in kept if right == partition]
        decoded.rejected.sort(key=lambda rejected: rejected.record.offset)

    async def _unless_revoked(self, work: Coroutine[object, object, None]) -> bool:
        """Await *work*; return False, with the work canceled, if the partitions are revoked meanwhile."""
        tasks = asyncio.ensure_future(work), asyncio.ensure_future(self._revoking.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                await tasks[0]
            return tasks[0].done()
        finally:
            for task in tasks:
                task.cancel()

    async def _in_thread(self, function: Callable[..., Answer], *arguments: object) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)


@contextlib.contextmanager
def _timed(stage: str) -> Iterator[None]:
    began_s = time.perf_counter()
    yield
    metrics.STAGE.labels(stage).observe(time.perf_counter() - began_s)


def _count(decoded: Decoded) -> None:
    metrics.CLICKS.labels("applied").inc(len(decoded.clicks))
    metrics.CLICKS.labels("redelivered").inc(decoded.redelivered)
    metrics.CLICKS.labels("rejected").inc(len(decoded.rejected))
    metrics.CLICKS.labels("erased").inc(decoded.erased)
    metrics.TOMBSTONES.inc(decoded.tombstones)
    for reason, count in Counter(rejected.error.reason for rejected in decoded.rejected).items():
        metrics.REJECTED.labels(reason).inc(count)
