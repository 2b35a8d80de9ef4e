"""Writing to the log, with the broker's word for it.

aiokafka's idempotent producer has two habits that this module answers. It never gives up on a batch while the broker is
away, so a send has a limit of ours. And after a batch that the broker refused for good, every later batch of that
partition is refused too, because its sequence number left a gap; so a producer that failed once is replaced by a new
one, and what it still held is dropped: whoever sent that has the error and sends again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError

from engine.errors import LogError
from engine.log.connection import REQUEST_TIMEOUT_MS, translated
from engine.log.records import Message, Position
from engine.settings import Settings

DELIVERY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
MAX_REQUEST_BYTES = 1_048_576
MAX_MESSAGE_BYTES = MAX_REQUEST_BYTES - 4_096
"""Longest value that surely fits a request, with its key, its headers and Kafka's own bytes."""
# The codec of `recall-lists`: with another one the broker would compress every list a second time.
COMPRESSION = "zstd"
BATCH_BYTES = 256 * 1024

log = structlog.get_logger()


class Publisher:
    """Writes messages and answers where they lie once every in-sync replica has them (acks=all, idempotent).

    Many tasks of one event loop may send at once.
    """

    def __init__(self, settings: Settings, *, delivery_timeout_s: float = DELIVERY_TIMEOUT_S) -> None:
        self._settings = settings
        self._timeout_s = delivery_timeout_s
        self._producer: Any = None
        self._starting = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect.

        Raises:
            LogError: no broker answers.
        """
        await self._ready()

    async def send(self, message: Message) -> Position:
        """Write one message and return its place, after the acknowledgement.

        Raises:
            LogError: the broker did not take it in time; it may be in the log all the same, where only the answer
                got lost.
        """
        return (await self.send_all([message]))[0]

    async def send_all(self, messages: Sequence[Message]) -> list[Position]:
        """Write *messages* and return their places in the same order, after all acknowledgements.

        Messages of one partition keep their order. After an error some may be in the log: send all of them again.

        Raises:
            LogError: the broker did not take at least one of them in time.
        """
        producer = await self._ready()
        topics = ", ".join(sorted({message.topic for message in messages}))
        with translated(topics):
            try:
                async with asyncio.timeout(self._timeout_s):
                    outcomes = await _deliver(producer, messages)
            except TimeoutError as error:
                self._retire(producer)
                raise LogError(
                    topics,
                    problem=f"did not acknowledge within {self._timeout_s:.0f} s",
                    remedy="see that the broker and enough of its replicas run, and send again",
                ) from error
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    self._retire(producer)
                    raise outcome
        return [Position(outcome.partition, outcome.offset) for outcome in outcomes]

    async def stop(self) -> None:
        """Deliver what is on its way, for at most 5 s, and disconnect; stopping twice does nothing."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer, deliver=True)
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _ready(self) -> Any:
        async with self._starting:
            if self._producer is None:
                self._producer = await _connect(self._settings)
            return self._producer

    def _retire(self, producer: Any) -> None:
        if self._producer is not producer:
            return
        self._producer = None
        log.warning("producer_replaced", bootstrap_servers=self._settings.bootstrap_servers)
        task = asyncio.create_task(_stop(producer, deliver=False))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _connect(settings: Settings) -> Any:
    with translated(settings.bootstrap_servers):
        producer = AIOKafkaProducer(
            **settings.kafka_client_options(),
            acks="all",
            enable_idempotence=True,
            compression_type=COMPRESSION,
            linger_ms=0,
            max_batch_size=BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
    return producer


async def _deliver(producer: Any, messages: Sequence[Message]) -> list[Any]:
    """Return what became of each message, its metadata or an error, once all are settled."""
    pending: list[asyncio.Future[Any]] = []
    try:
        for message in messages:
            pending.append(await _enqueue(producer, message))
    except KafkaTimeoutError as error:
        # The queue of a partition did not move: the same as no acknowledgement.
        raise TimeoutError from error
    except KafkaError:
        # Refused before it was queued; those before it are on their way, and nobody else would wait for them.
        await asyncio.gather(*pending, return_exceptions=True)
        raise
    return await asyncio.gather(*pending, return_exceptions=True)


async def _enqueue(producer: Any, message: Message) -> asyncio.Future[Any]:
    queued: asyncio.Future[Any] = await producer.send(
        message.topic,
        value=message.value,
        key=message.key,
        partition=message.partition,
        headers=list(message.headers.items()),
    )
    return queued


async def _stop(producer: Any, *, deliver: bool) -> None:
    """Stop *producer*; what it has not delivered in time, or at once if it shall not *deliver*, is dropped."""
    stopping = asyncio.create_task(producer.stop())
    if deliver:
        await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    if not stopping.done():
        # There is no public way to drop a batch, and `stop` waits for every one of them.
        producer._message_accumulator.fail_all(KafkaError("stopped before the broker acknowledged"))  # noqa: SLF001
        await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    stopping.cancel()
    await asyncio.wait([stopping])
    if stopping.cancelled() or stopping.exception() is not None:
        # It ended before it came to its sockets.
        await producer.client.close()
