"""The log: everything this project says to Kafka without a consumer group.

`Publisher` writes and waits for the broker's acknowledgement; `Follower` reads a whole topic from its beginning, or
from given offsets, for as long as it runs; `Admin` makes and describes topics; `topic_epoch` names the one life of a
topic. This module owns aiokafka, beside the Faust adapter that reads `clicks` through a group. All of it lives on the
event loop that started it.

A follower meets three kinds of trouble. The broker is away: it tries again for ever. The records it needs are gone from
the log's start: it goes on from there and says so in `skipped`. The log is not the one it was following, or its `apply`
raised: it stops, and `wait` raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from engine.errors import LogError
from engine.settings import Settings

MAX_REQUEST_BYTES = 1_000_000
# Lists are compressed by the topic's codec; another one here would make the broker compress them a second time.
COMPRESSION = "zstd"
BATCH_BYTES = 256 * 1024
POLL_MS = 200
BACK_OFF_S = (0.1, 5.0)
"""First and longest pause between two attempts to reach the broker."""
REQUEST_TIMEOUT_MS = 15_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the log holds it; `timestamp_ms` is the topic's kind, LogAppendTime for `clicks`."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be written; no partition means murmur2 of the key, and no key any partition."""

    topic: str
    """Full name, with the prefix."""
    value: bytes | None
    key: bytes | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record lies."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """One life of a topic: another cluster, a topic made anew or more partitions make another epoch."""

    cluster_id: str
    topic_id: str
    partitions: int

    @property
    def text(self) -> str:
        """A short name of this epoch: 16 hex digits."""
        return hashlib.sha256(f"{self.cluster_id}/{self.topic_id}/{self.partitions}".encode()).hexdigest()[:16]


class Publisher:
    """Writes messages and answers where they lie once every in-sync replica has them (acks=all, idempotent)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Any = None

    async def start(self) -> None:
        """Connect.

        Raises:
            LogError: no broker answers.
        """
        self._producer = AIOKafkaProducer(
            **self._settings.kafka_client_options(),
            acks="all",
            enable_idempotence=True,
            compression_type=COMPRESSION,
            linger_ms=0,
            max_batch_size=BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        with _translated(self._settings.bootstrap_servers):
            await self._producer.start()

    async def send(self, message: Message) -> Position:
        """Write one message and return its place, after the acknowledgement.

        Raises:
            LogError: the broker did not take it; it may still be in the log if only the answer got lost.
        """
        return (await self.send_all([message]))[0]

    async def send_all(self, messages: Sequence[Message]) -> list[Position]:
        """Write *messages* and return their places in the same order, after all acknowledgements.

        Messages of one partition keep their order. On an error some may be in the log: send all of them again.

        Raises:
            LogError: the broker did not take at least one of them.
        """
        with _translated(", ".join(sorted({message.topic for message in messages}))):
            pending = [await self._enqueue(message) for message in messages]
            # All of them settle before the first error is raised, so none is left that nobody awaits.
            outcomes: list[Any] = await asyncio.gather(*pending, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
        return [Position(outcome.partition, outcome.offset) for outcome in outcomes]

    async def stop(self) -> None:
        """Deliver what is on its way and disconnect; stopping twice does nothing."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError):
                await producer.stop()

    async def _enqueue(self, message: Message) -> Awaitable[Any]:
        return await self._producer.send(  # type: ignore[no-any-return]
            message.topic,
            value=message.value,
            key=message.key,
            partition=message.partition,
            headers=list(message.headers.items()),
        )


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
        epoch = await _read_epoch(self._settings, self._topic)
        self._check_epoch(epoch)
        # One fetch is on its way at a time, and a partition just read waits for the others' to return.
        wait_ms = 50 if epoch.partitions > 1 else 500
        async with _consumer(self._settings, fetch_max_wait_ms=wait_ms) as consumer:
            partitions = [TopicPartition(self._topic, number) for number in range(epoch.partitions)]
            consumer.assign(partitions)
            await self._seek(consumer, partitions)
            while not self._stopping.is_set():
                await self._take(consumer, partitions)

    async def _take(self, consumer: Any, partitions: Sequence[TopicPartition]) -> None:
        try:
            batches = await consumer.getmany(timeout_ms=POLL_MS)
        except OffsetOutOfRangeError:
            # Retention overtook us, or the log was cut: look at its edges again.
            await self._seek(consumer, partitions)
            return
        for partition, found in batches.items():
            await self._apply_all(found)
            self._next[partition.partition] = found[-1].offset + 1
        for partition in partitions:
            # Also passes what is no record: markers of transactions, and offsets that compaction removed.
            self._next[partition.partition] = await consumer.position(partition)
            highest = consumer.highwater(partition)
            if highest is not None:
                self._ends[partition.partition] = highest
        self._note_progress()

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

    async def _seek(self, consumer: Any, partitions: Sequence[TopicPartition]) -> None:
        first = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
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
            consumer.seek(partition, self._next[number])
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


class Admin:
    """Makes, describes and deletes topics by their full names; `async with Admin(settings) as admin`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None

    async def __aenter__(self) -> Self:
        options = self._settings.kafka_client_options()
        self._client = AIOKafkaAdminClient(**options, request_timeout_ms=REQUEST_TIMEOUT_MS)
        with _translated(self._settings.bootstrap_servers):
            await self._client.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def partitions(self) -> dict[str, int]:
        """Return the partition count of every topic in the cluster."""
        with _translated(self._settings.bootstrap_servers):
            topics = await self._client.describe_topics()
        return {topic["topic"]: len(topic["partitions"]) for topic in topics if topic["error_code"] == 0}

    async def configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return every config of *topics*, defaults included."""
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        if not resources:
            return {}
        with _translated(self._settings.bootstrap_servers):
            answers = await self._client.describe_configs(resources)
        found: dict[str, dict[str, str]] = {}
        for answer in answers:
            for error_code, _, _, name, entries in answer.resources:
                _raise_for(error_code, name)
                found[name] = {entry[0]: entry[1] for entry in entries}
        return found

    async def create(self, topic: str, *, partitions: int, replicas: int, configs: Mapping[str, str]) -> bool:
        """Make *topic* and return True, or return False where it exists.

        Raises:
            LogError: the cluster refuses.
        """
        wanted = NewTopic(topic, partitions, replicas, topic_configs=dict(configs))
        with _translated(topic):
            answer = await self._client.create_topics([wanted])
        code = answer.topic_errors[0][1]
        if code == 36:  # TOPIC_ALREADY_EXISTS
            return False
        _raise_for(code, topic, detail=answer.topic_errors[0][-1])
        return True

    async def delete(self, topics: Sequence[str]) -> None:
        """Delete *topics* and everything in them."""
        with _translated(", ".join(topics)):
            answer = await self._client.delete_topics(list(topics))
        for topic, code in answer.topic_error_codes:
            _raise_for(code, topic)


async def topic_epoch(settings: Settings, topic: str) -> Epoch:
    """Return the epoch of the topic called *topic* in the contract.

    Raises:
        LogError: the broker can't be reached, or has no such topic.
    """
    with _translated(settings.topic(topic)):
        return await _read_epoch(settings, settings.topic(topic))


async def end_offsets(settings: Settings, topic: str) -> dict[int, int]:
    """Return the offset after the last record of each partition of the topic called *topic* in the contract.

    Raises:
        LogError: the broker can't be reached, or has no such topic.
    """
    epoch = await topic_epoch(settings, topic)
    partitions = [TopicPartition(settings.topic(topic), number) for number in range(epoch.partitions)]
    with _translated(settings.topic(topic)):
        async with _consumer(settings) as consumer:
            ends = await consumer.end_offsets(partitions)
    return {partition.partition: end for partition, end in ends.items()}


async def wait_for_broker(settings: Settings, timeout_s: float, *, nodes: int = 1) -> None:
    """Return once the cluster answers as a client needs it.

    Args:
        settings: how to reach it.
        timeout_s: how long to wait.
        nodes: brokers that must have joined.

    Raises:
        LogError: it does not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    problem = "no broker listens"
    while True:
        if await _any_listens(settings):
            problem = "is up, but not all of its brokers answer"
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                if await _count_brokers(settings) >= nodes:
                    return
        if time.monotonic() > deadline:
            raise LogError(
                f"Kafka at {settings.bootstrap_servers}",
                problem=f"can't be used after {timeout_s:.0f} s: {problem}",
                remedy="start it (`mindstream broker` runs one here), or correct KAFKA_BOOTSTRAP_SERVERS",
            )
        await asyncio.sleep(0.1)


async def _any_listens(settings: Settings) -> bool:
    """Tell whether a port is open: a client's own attempt would log an error for each that is not."""
    for host, port, _ in collect_hosts(settings.bootstrap_servers):
        try:
            async with asyncio.timeout(2.0):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True
    return False


@contextlib.asynccontextmanager
async def _client(settings: Settings):  # type: ignore[no-untyped-def]
    client = AIOKafkaClient(**settings.kafka_client_options(), request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await client.bootstrap()
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def _consumer(settings: Settings, **options: Any):  # type: ignore[no-untyped-def]
    consumer = AIOKafkaConsumer(
        **settings.kafka_client_options(),
        **options,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def _count_brokers(settings: Settings) -> int:
    async with _client(settings) as client:
        return len(client.cluster.brokers())


async def _read_epoch(settings: Settings, topic: str) -> Epoch:
    async with _client(settings) as client:
        answer = await client.send(client.get_random_node(), _TopicRequest(topic))
    code, _, topic_id, _, partitions, *_ = answer.topics[0]
    _raise_for(code, topic)
    return Epoch(answer.cluster_id, str(topic_id), len(partitions))


@contextlib.contextmanager
def _translated(subject: str):  # type: ignore[no-untyped-def]
    """Turn aiokafka's errors into ours."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise LogError(
            subject or "the log",
            problem=f"can't be reached or refuses: {error!r}",
            remedy="check that the broker runs (`mindstream doctor`) and try again",
        ) from error


def _raise_for(code: int, topic: str, *, detail: str | None = None) -> None:
    if code == 0:
        return
    if code == 3:  # UNKNOWN_TOPIC_OR_PARTITION
        raise LogError(topic, problem="does not exist", remedy="`mindstream topics create` makes every topic")
    error = for_code(code)
    raise LogError(
        topic,
        problem=f"was refused by the cluster: {detail or error.__name__}",
        remedy="see the cluster's own log, or ask its operator",
    )


class _Uuid(AbstractType[uuid.UUID]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: Any) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


# Metadata version 10 is the first to tell a topic's id; aiokafka 0.14 speaks up to version 5.
class _TopicResponseV10(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _TopicRequestV10(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _TopicResponseV10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicRequest(Request[_TopicRequestV10]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_TopicRequestV10]) -> _TopicRequestV10:
        return request_struct_class([(uuid.UUID(int=0), self._topic, {})], False, False, False, {})
