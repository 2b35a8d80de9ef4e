"""The life of a topic: which cluster's, which making of it, with how many partitions.

A topic deleted and made anew has the old name and other records; its id tells. Metadata version 10 is the first to
carry the id and aiokafka 0.14 speaks up to version 5, so that one request is spelled out here, after Kafka's published
schema.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import UnknownTopicOrPartitionError, for_code
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

from engine.log.connection import client, consumer, translated
from engine.log.records import Epoch
from engine.settings import Settings

# A broker may not know yet of a topic that another has just answered for.
VISIBLE_TRIES = 5
VISIBLE_PAUSE_S = 0.2


async def topic_epoch(settings: Settings, topic: str) -> Epoch:
    """Return the epoch of the topic called *topic* in the contract.

    Raises:
        LogError: the broker can't be reached, or has no such topic.
    """
    with translated(settings.topic(topic)):
        for _ in range(VISIBLE_TRIES):
            with contextlib.suppress(UnknownTopicOrPartitionError):
                return await read_epoch(settings, settings.topic(topic))
            await asyncio.sleep(VISIBLE_PAUSE_S)
        return await read_epoch(settings, settings.topic(topic))


async def end_offsets(settings: Settings, topic: str, *, epoch: Epoch | None = None) -> dict[int, int]:
    """Return the offset after the last record of each partition of the topic called *topic* in the contract.

    Args:
        settings: where the broker is.
        topic: its name in the contract.
        epoch: what `topic_epoch` says of it; asked for where it isn't given.

    Raises:
        LogError: the broker can't be reached, or has no such topic.
    """
    partitions = await _partitions(settings, topic, epoch)
    with translated(settings.topic(topic)):
        async with consumer(settings) as reader:
            ends = await reader.end_offsets(partitions)
    return {partition.partition: end for partition, end in ends.items()}


async def first_offsets(settings: Settings, topic: str, *, epoch: Epoch | None = None) -> dict[int, int]:
    """As `end_offsets`, but the first offset that each partition still holds."""
    partitions = await _partitions(settings, topic, epoch)
    with translated(settings.topic(topic)):
        async with consumer(settings) as reader:
            firsts = await reader.beginning_offsets(partitions)
    return {partition.partition: first for partition, first in firsts.items()}


async def _partitions(settings: Settings, topic: str, epoch: Epoch | None) -> list[TopicPartition]:
    count = (epoch or await topic_epoch(settings, topic)).partitions
    return [TopicPartition(settings.topic(topic), number) for number in range(count)]


async def read_epoch(settings: Settings, topic: str) -> Epoch:
    """Return the epoch of the topic with this full name; aiokafka's errors pass."""
    async with client(settings) as asking:
        return await _ask(asking, asking.get_random_node(), topic)


async def wait_until_visible(settings: Settings, topic: str) -> None:
    """Return once every broker of the cluster knows the topic with this full name; aiokafka's errors pass."""
    async with client(settings) as asking:
        for broker in asking.cluster.brokers():
            while True:
                with contextlib.suppress(UnknownTopicOrPartitionError):
                    await _ask(asking, broker.nodeId, topic)
                    break
                await asyncio.sleep(0.02)


async def _ask(asking: Any, broker: int, topic: str) -> Epoch:
    answer = await asking.send(broker, _TopicRequest(topic))
    code, _, topic_id, _, partitions, *_ = answer.topics[0]
    if code:
        raise for_code(code)(topic)
    return Epoch(answer.cluster_id, str(topic_id), len(partitions))


class _Uuid(AbstractType[uuid.UUID]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: Any) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


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
