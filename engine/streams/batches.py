"""The Faust adapter: an agent is handed all records of one fetch and partition at once, as a `ClickBatch`.

The only place that touches Faust's internals and its aiokafka driver (docs/decisions/0002). What it changes:

- **Intake.** Faust makes two tasks for every message, about 14,000 a second on a core; a batch takes that path once.
  The next fetch waits until the batch is applied and the intake asks for more, so what is in memory is bounded by one
  fetch. Its records are those that aiokafka read, without a copy of each.
- **Positions.** Faust seeks to committed offsets. Here the seek is the engine's: `Intake.start_positions` names the
  next offset of each partition, from its store. Nothing ever resets a position by itself: a gap is an error.
- **Commits.** Offsets are committed behind the store's writes and only for lag monitors; a failed one is a log line.
- **Connections.** The consumer is made with this project's options, TLS and SASL included. Faust's own producer never
  starts.

Faust and aiokafka are pinned exactly; `tests/streams/test_batches.py` fails by name when one of them moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import faust
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.app.base import BootStrategy
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from engine.errors import LogError
from engine.log import Epoch
from engine.log.epoch import read_epoch
from engine.settings import Settings
from engine.store.recovery import Bounds
from engine.streams.decompression import bare

FAUST_VERSION, AIOKAFKA_VERSION = "0.15.3", "0.14.0"
"""The versions whose internals this module was written against."""
BATCH_RECORDS = 2_000
"""Records of one fetch at the most: one batch holds the processor for some 20 ms, then the refresh gets its turn."""
FETCH_BYTES = 8 * 2**20
FETCH_WAIT_MS = 500
"""How long the broker holds an empty fetch; data ends the wait at once."""
IDLE_S = 1.0
_RETRY_S = 1.0
# As milliseconds, the time fits the 32 bits that Kafka's clients have for it.
_NEVER_S = 20 * 24 * 3600.0

log = structlog.get_logger()


class KafkaRecord(Protocol):
    """What is read of one record of `clicks`."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass(slots=True, eq=False)
class ClickBatch:
    """The records of one fetch and partition, in log order."""

    partition: int
    records: Sequence[KafkaRecord]
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the intake once all of them are applied."""
    is_void: bool = False
    """True once a rebalance has begun: a batch not yet begun is not applied, its records will be read again."""


class Intake(Protocol):
    """What the adapter hands batches to; every method is called on the event loop."""

    async def start_positions(self, epoch: Epoch, bounds: Mapping[int, Bounds]) -> Mapping[int, int]:
        """Take over exactly these partitions of the topic that is now *epoch*; return the next offset of each."""

    async def revoke(self) -> None:
        """Finish the batch in flight and let go of all partitions."""

    async def take(self, batch: ClickBatch) -> None:
        """Apply one batch; never raises."""

    def progress(self, positions: Mapping[int, Bounds]) -> None:
        """Learn where reading stands: of each partition the next offset and the end of the log, as last heard."""

    async def rest(self, taken: int) -> None:
        """Return when the next fetch is due after one of *taken* records; soon."""

    def fail(self, error: BaseException) -> None:
        """Stop the engine because of *error*."""


class _BatchThread(driver.AIOKafkaConsumerThread):
    """The thread that owns the connection to the consumer group."""

    app: FaustApp

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        settings: Settings = self.app.settings
        return AIOKafkaConsumer(
            **settings.kafka_client_options(),
            client_id=settings.consumer_group,
            group_id=settings.consumer_group,
            group_instance_id=self.app.worker_id,
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="none",
            key_deserializer=bare,
            isolation_level="read_committed",
            max_poll_records=BATCH_RECORDS,
            # Back-pressure may hold the agent for as long as the dead-letter topic is down.
            max_poll_interval_ms=int(_NEVER_S * 1000),
            rebalance_timeout_ms=60_000,
            session_timeout_ms=int(settings.session_timeout_s * 1000),
            heartbeat_interval_ms=int(settings.session_timeout_s * 1000 / 4),
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=FETCH_BYTES // 4,
        )

    async def on_thread_stop(self) -> None:
        """Stop; a member that is to leave gives up the name that would have kept its partitions."""
        if self.app.settings.leave_on_stop and self._consumer is not None:
            self._consumer._coordinator._group_instance_id = None
        await super().on_thread_stop()

    async def _commit(self, offsets: Mapping[Any, int]) -> bool:
        assigned = self.assignment()
        wanted = {
            TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items() if tp in assigned
        }
        try:
            await self._ensure_consumer().commit(wanted)
        except KafkaError as error:
            log.warning("offsets_not_committed", error=repr(error))
            return False
        return True


class _BatchConsumer(driver.Consumer):
    """Hands whole fetches to the agent, and starts where the stores end."""

    app: FaustApp

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._applied: dict[TP, int] = {}
        self._seeks = 0

    def _new_consumer_thread(self) -> _BatchThread:
        return _BatchThread(self, loop=self.loop, beacon=self.beacon)

    # --- positions

    async def perform_seek(self) -> None:
        """Seek every assigned partition to what the intake asks for; Faust calls this after each assignment."""
        self._seeks += 1
        self._applied.clear()
        while True:
            try:
                await self._seek_to_stores()
                return
            except KafkaError as error:
                log.warning("positions_not_found", error=repr(error), again_in_s=_RETRY_S)
                await asyncio.sleep(_RETRY_S)
            except Exception as error:
                self.app.intake.fail(error)
                await asyncio.Event().wait()  # Faust would go on and read from the committed offsets

    async def _seek_to_stores(self) -> None:
        tps = self.assignment()
        first, end = await self.earliest_offsets(*tps), await self.highwaters(*tps)
        bounds = {tp.partition: Bounds(first[tp], end[tp]) for tp in tps}
        epoch = await read_epoch(self.app.settings, self.app.settings.topic("clicks"))
        positions = await self.app.intake.start_positions(epoch, bounds)
        await self.seek_wait({tp: positions[tp.partition] for tp in tps})

    # --- intake

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            with _translated(self.app.settings.topic("clicks")):
                while not (self.should_stop or fetcher.should_stop):
                    await self._drain_once()
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise
        except Exception as error:
            self.app.intake.fail(error)

    async def _drain_once(self) -> None:
        if not self.flow_active:
            await self.wait_first(self.can_resume_flow.wait())
            return
        seeks = self._seeks
        try:
            fetched = await self._getmany(active_partitions=self._get_active_partitions(), timeout=IDLE_S)
        except NoOffsetForPartitionError:
            return  # aiokafka looked for a committed offset before our seek
        if not self.flow_active:
            return  # a rebalance is on its way, and it ends with a seek
        if fetched and seeks != self._seeks:
            await self.perform_seek()  # some of these records may be from before the seek, and the rest read too early
            return
        if not fetched:
            self.app.intake.progress(await self._idle_positions())
        elif await self._deliver(fetched):
            self.app.intake.progress({tp.partition: self._bounds(tp, self._applied[tp]) for tp in map(_own, fetched)})
            await self.app.intake.rest(sum(map(len, fetched.values())))

    async def _deliver(self, fetched: Mapping[Any, Sequence[Any]]) -> bool:
        """Hand each partition's records to the agent; return whether all of them were applied."""
        batches = {_own(tp): ClickBatch(tp.partition, records) for tp, records in fetched.items()}
        for tp, batch in batches.items():
            await self.wait_first(self.callback(self._as_message(tp, batch)), self.suspend_flow.wait())
        for tp, batch in batches.items():
            if not batch.done.is_set():
                await self.wait_first(batch.done.wait(), self.suspend_flow.wait())
            batch.is_void = not batch.done.is_set()
            if batch.done.is_set():
                self._applied[tp] = batch.records[-1].offset + 1
        return not any(batch.is_void for batch in batches.values())

    def _as_message(self, tp: TP, batch: ClickBatch) -> ConsumerMessage:
        last, value = batch.records[-1], cast("bytes", batch)
        generation = self.app.consumer_generation_id  # a stream drops messages of another generation, silently
        return ConsumerMessage(
            topic=tp.topic,
            partition=tp.partition,
            offset=last.offset,
            timestamp=last.timestamp / 1000,
            timestamp_type=1,
            headers=[],
            key=None,
            value=value,
            checksum=None,
            tp=tp,
            generation_id=generation,
        )

    async def _idle_positions(self) -> dict[int, Bounds]:
        """Return where reading stands with nothing left to read: behind records that are no clicks, too."""
        positions = {tp: await self.position(tp) for tp in self.assignment()}
        return {tp.partition: self._bounds(tp, at) for tp, at in positions.items() if at is not None}

    def _bounds(self, tp: TP, position: int) -> Bounds:
        return Bounds(position, max(position, self.highwater(tp) or 0))

    # --- commits

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return iter(list(self._applied))

    def _new_offset(self, tp: TP) -> int | None:
        return self._applied.get(tp)

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Stay quiet: Faust's detector of stuck streams counts single messages."""


def _own(tp: Any) -> TP:
    """Return Faust's name of a partition for aiokafka's."""
    return TP(tp.topic, tp.partition)


@contextlib.contextmanager
def _translated(topic: str) -> Iterator[None]:
    """Turn what aiokafka raises while *topic* is read into LogError."""
    try:
        yield
    except OffsetOutOfRangeError as error:
        places = ", ".join(f"offset {offset} of partition {tp.partition}" for tp, offset in error.args[0].items())
        raise LogError(
            topic,
            problem=f"does not hold {places}, which is next to be read: retention removed it, or the log lost records",
            remedy="lengthen the topic's retention; MINDSTREAM_ACCEPT_LOG_GAP=true goes on without what is gone",
        ) from error
    except KafkaError as error:
        remedy = "check that the broker runs (`mindstream doctor`), and start the engine again"
        raise LogError(topic, problem=f"can't be read: {error!r}", remedy=remedy) from error


class _BatchSchema(faust.Schema[None, ClickBatch]):
    """Leaves keys and values alone: a message's value already is a batch."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> None:
        return None

    def loads_value(self, app: Any, message: Any, **_: Any) -> ClickBatch:
        batch: ClickBatch = message.value
        return batch


class _BatchTransport(driver.Transport):
    Consumer = _BatchConsumer


class _Boot(BootStrategy):
    enable_kafka_producer = False
    enable_web = False


class FaustApp(faust.App):
    """A Faust app with one agent, which takes the batches of `clicks` and gives them to *intake*."""

    BootStrategy = _Boot

    def __init__(self, settings: Settings, intake: Intake) -> None:
        self.settings, self.intake = settings, intake
        self.worker_id = worker_id(settings)
        super().__init__(
            settings.consumer_group,
            broker=f"kafka://{settings.bootstrap_servers.replace(',', ';kafka://')}",
            loop=asyncio.get_running_loop(),
            autodiscover=False,
            datadir=str(settings.data_dir / "engine" / "faust"),
            store="memory://",
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            stream_wait_empty=False,
            stream_buffer_maxsize=16,
            broker_commit_interval=1.0,
            # Faust would give up the search for positions after it, and never read again.
            broker_request_timeout=_NEVER_S,
            broker_session_timeout=settings.session_timeout_s,
            broker_heartbeat_interval=settings.session_timeout_s / 4,
        )
        clicks = self.topic(settings.topic("clicks"), schema=_BatchSchema(), acks=False)
        self.agent(clicks, name="clicks", concurrency=1)(self._consume)
        self.on_partitions_revoked.connect(self._let_go)

    async def _consume(self, batches: Any) -> None:
        async for batch in batches:
            await self.intake.take(batch)

    async def _let_go(self, *_: Any, **__: Any) -> None:
        await self.intake.revoke()

    def _new_transport(self) -> _BatchTransport:
        return _BatchTransport(self.conf.broker_consumer, self)


def worker_id(settings: Settings) -> str:
    """Return this engine's name in the group, the same after a restart, so that it takes its old place without a wait.

    Made of the machine and the data directory. Two engines of one name would take the partitions from each other for
    ever; the lock on the data directory (`app`) keeps a second one out.
    """
    place = f"{socket.gethostname()}:{settings.data_dir.resolve()}"
    return f"{settings.consumer_group}-{hashlib.sha256(place.encode()).hexdigest()[:16]}"
