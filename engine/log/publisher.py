"""Writing to the log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from engine.log.connection import REQUEST_TIMEOUT_MS, translated
from engine.log.records import Message, Position
from engine.settings import Settings

MAX_REQUEST_BYTES = 1_000_000
# Lists are compressed by the topic's codec; another one here would make the broker compress them a second time.
COMPRESSION = "zstd"
BATCH_BYTES = 256 * 1024


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
        with translated(self._settings.bootstrap_servers):
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
        with translated(", ".join(sorted({message.topic for message in messages}))):
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
