"""Connections to Kafka: clients and consumers with our options, and aiokafka's errors as ours."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError, for_code

from engine.errors import LogError
from engine.log.access import check_access
from engine.settings import Settings

REQUEST_TIMEOUT_MS = 15_000


async def wait_for_broker(settings: Settings, timeout_s: float, *, nodes: int = 1) -> None:
    """Return once the cluster answers as a client needs it.

    Args:
        settings: how to reach it.
        timeout_s: how long to wait.
        nodes: brokers that must have joined.

    Raises:
        LogError: it does not answer in time, and the sentence says what the last attempt met; or it refuses this
            client, which is not waited out.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        problem = await _try_broker(settings, nodes)
        if problem is None:
            return
        if time.monotonic() > deadline:
            raise LogError(
                f"Kafka at {settings.bootstrap_servers}",
                problem=f"can't be used after {timeout_s:.0f} s: {problem}",
                remedy="start it (`mindstream broker` runs one here), or correct KAFKA_BOOTSTRAP_SERVERS "
                "and MINDSTREAM_KAFKA_SECURITY_PROTOCOL",
            )
        await asyncio.sleep(0.1)


async def _try_broker(settings: Settings, nodes: int) -> str | None:
    """Return what keeps a client from working, or None."""
    # First a bare connection: a client's own attempt would log an error for each that fails.
    problem = await check_access(settings)
    if problem is not None:
        return problem
    try:
        async with client(settings) as asking:
            joined = len(asking.cluster.brokers())
    except (KafkaError, OSError, TimeoutError) as error:
        return repr(error)
    return None if joined >= nodes else f"{joined} of {nodes} brokers have joined"


@contextlib.asynccontextmanager
async def client(settings: Settings) -> AsyncIterator[Any]:
    """Connect a bare client."""
    connection = AIOKafkaClient(**settings.kafka_client_options(), request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await connection.bootstrap()
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def consumer(settings: Settings) -> AsyncIterator[Any]:
    """Connect a consumer without a group; it commits nothing and never resets a position by itself."""
    connection = AIOKafkaConsumer(
        **settings.kafka_client_options(),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        # Data ends a fetch at once; waits of 20 to 500 ms gave the same delay, and short ones keep an idle broker busy.
        fetch_max_wait_ms=500,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )
    try:
        await connection.start()
        yield connection
    finally:
        await _stop(connection)


async def _stop(connection: Any) -> None:
    """Stop a consumer; while the broker is away aiokafka cancels a task of its own and lets that cancel the caller."""
    stopping = asyncio.create_task(connection.stop())
    await asyncio.wait([stopping])
    if stopping.cancelled() or stopping.exception() is not None:
        # It ended before it came to its sockets.
        await connection._client.close()  # noqa: SLF001


@contextlib.contextmanager
def translated(subject: str) -> Iterator[None]:
    """Turn aiokafka's errors into ours."""
    try:
        yield
    except UnknownTopicOrPartitionError as error:
        raise LogError(
            subject, problem="does not exist", remedy="`mindstream topics create` makes every topic"
        ) from error
    except (KafkaError, OSError, TimeoutError) as error:
        raise LogError(
            subject or "the log",
            problem=f"can't be reached or refuses: {error!r}",
            remedy="check that the broker runs (`mindstream doctor`) and try again",
        ) from error


def raise_for(code: int, topic: str, *, detail: str | None = None) -> None:
    """Raise LogError for an error code in an answer about *topic*."""
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
