from __future__ import annotations

import importlib.metadata
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, TopicAuthorizationFailedError
from aiokafka.partitioner import DefaultPartitioner
from faust.app.base import App, BootStrategy
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer, Fetcher, ThreadDelegateConsumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Transport
from faust.types import ConsumerMessage

from engine.errors import LogError
from engine.log.partitioning import partition_of
from engine.settings import Settings
from engine.streams.batches import (
    AIOKAFKA_VERSION,
    FAUST_VERSION,
    FaustApp,
    _BatchConsumer,
    worker_id,
)

MOVED = "engine/streams/batches.py was written against this; read what changed, adapt it, then this test"


@pytest.mark.parametrize(
    ("distribution", "version"),
    [("faust-streaming", FAUST_VERSION), ("aiokafka", AIOKAFKA_VERSION), ("mode-streaming", "0.7.1")],
)
def test_the_versions_are_those_the_adapter_was_written_against(distribution: str, version: str) -> None:
    assert importlib.metadata.version(distribution) == version, MOVED


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (App, "_new_transport", ["self"]),
        (App, "_on_partitions_assigned", ["self", "assigned", "generation_id"]),
        (App, "_on_partitions_revoked", ["self", "revoked"]),
        (BootStrategy, "kafka_producer", ["self"]),
        (BootStrategy, "web_server", ["self"]),
        (Consumer, "perform_seek", ["self"]),
        (Consumer, "_drain_messages", ["self", "fetcher"]),
        (Consumer, "_get_active_partitions", ["self"]),
        (Consumer, "_filter_tps_with_pending_acks", ["self", "topics"]),
        (Consumer, "_new_offset", ["self", "tp"]),
        (Consumer, "_should_commit", ["self", "tp", "offset"]),
        (Consumer, "verify_event_path", ["self", "now", "tp"]),
        (Recovery, "_resume_streams", ["self", "generation_id"]),
        (ThreadDelegateConsumer, "_new_consumer_thread", ["self"]),
        (ThreadDelegateConsumer, "_getmany", ["self", "active_partitions", "timeout"]),
        (ThreadDelegateConsumer, "earliest_offsets", ["self", "partitions"]),
        (ThreadDelegateConsumer, "highwaters", ["self", "partitions"]),
        (ThreadDelegateConsumer, "highwater", ["self", "tp"]),
        (ThreadDelegateConsumer, "position", ["self", "tp"]),
        (ThreadDelegateConsumer, "seek_wait", ["self", "partitions"]),
        (AIOKafkaConsumerThread, "_create_worker_consumer", ["self", "transport"]),
        (AIOKafkaConsumerThread, "_commit", ["self", "offsets"]),
        (AIOKafkaConsumerThread, "_ensure_consumer", ["self"]),
        (AIOKafkaConsumerThread, "on_thread_stop", ["self"]),
        (GroupCoordinator, "_maybe_leave_group", ["self"]),
        (AIOKafkaConsumerThread, "_fetch_records", ["self", "consumer", "active_partitions", "timeout", "max_records"]),
    ],
    ids=lambda value: getattr(value, "__name__", value) if not isinstance(value, list) else "",
)
def test_what_the_adapter_overrides_or_calls_is_there(owner: type, name: str, parameters: list[str]) -> None:
    function: Any = inspect.unwrap(getattr(owner, name))

    assert list(inspect.signature(function).parameters) == parameters, MOVED


def test_faust_seeks_only_after_it_has_told_the_app_of_its_partitions() -> None:
    resume = inspect.getsource(Recovery._resume_streams)

    assert resume.index("perform_seek") < resume.index("resume_flow") < resume.index("_fetcher.maybe_start"), MOVED


async def test_the_search_for_positions_outlasts_a_broker_that_is_away_for_days(tmp_path: Path) -> None:
    intake: Any = SimpleNamespace()

    app = FaustApp(Settings(data_dir=tmp_path), intake)

    # Faust ends its recovery for good once this time has passed, and the flow never resumes.
    assert app.conf.broker_request_timeout > 7 * 24 * 3600
    resume = " ".join(inspect.getsource(Recovery._resume_streams).split())
    assert "self._wait( consumer.perform_seek(), timeout=self.app.conf.broker_request_timeout )" in resume, MOVED


def test_no_request_of_ours_waits_for_as_long_as_the_search_for_positions() -> None:
    users = {
        name
        for name, function in inspect.getmembers(AIOKafkaConsumerThread, inspect.isfunction)
        if "broker_request_timeout" in inspect.getsource(inspect.unwrap(function))
    }

    # We make the consumer ourselves; a seek to a given offset asks nobody.
    assert users == {"_create_worker_consumer", "_create_client_consumer", "_seek_wait"}, MOVED


def test_the_fetcher_leaves_the_draining_to_the_consumer() -> None:
    assert "await consumer._drain_messages(self)" in inspect.getsource(Fetcher), MOVED


def test_a_message_carries_the_generation_that_streams_check() -> None:
    assert "generation_id" in inspect.signature(ConsumerMessage).parameters, MOVED
    assert Transport.Consumer is not None, MOVED


def test_aiokafka_keeps_the_partitions_of_a_stopped_member_by_its_instance_id_alone() -> None:
    leave = inspect.getsource(GroupCoordinator._maybe_leave_group)
    assert "if self.generation > 0 and self._group_instance_id is None:" in leave, MOVED
    assert "self._coordinator = GroupCoordinator(" in inspect.getsource(AIOKafkaConsumer), MOVED


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OffsetOutOfRangeError({TopicPartition("p-clicks", 3): 17}),
            r"p-clicks does not hold offset 17 of partition 3, .* retention removed it.*MINDSTREAM_ACCEPT_LOG_GAP",
        ),
        (
            TopicAuthorizationFailedError("p-clicks"),
            r"p-clicks can't be read: .*Authorization.*; check that the broker",
        ),
    ],
    ids=["retention", "access"],
)
async def test_what_kafka_refuses_while_it_is_read_ends_the_engine_with_a_sentence(
    error: KafkaError, sentence: str
) -> None:
    async def refuse() -> None:
        raise error

    failures: list[BaseException] = []
    app = SimpleNamespace(settings=Settings(topic_prefix="p-"), intake=SimpleNamespace(fail=failures.append))
    consumer: Any = SimpleNamespace(app=app, should_stop=False, consumer_stopped_errors=(), _drain_once=refuse)

    await _BatchConsumer._drain_messages(consumer, SimpleNamespace(should_stop=False))

    (failure,) = failures
    with pytest.raises(LogError, match=sentence):
        raise failure
    assert failure.__cause__ is error


def test_partitions_are_those_of_kafkas_default_partitioner() -> None:
    default = DefaultPartitioner()
    keys = [f"user{number}é".encode() for number in range(500)]

    assert [partition_of(key, 7) for key in keys] == [default(key, list(range(7)), list(range(7))) for key in keys]


def test_a_known_key_lies_where_the_java_client_puts_it() -> None:
    # From the Java client's own tests: murmur2 of these keys, made positive.
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}

    for key, murmur2 in known.items():
        assert partition_of(key, 1_000) == (murmur2 & 0x7FFFFFFF) % 1_000


def test_a_data_directory_keeps_its_name_in_the_group(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "a")

    first = worker_id(settings)

    assert worker_id(settings) == first
    assert worker_id(Settings(data_dir=tmp_path / "b")) != first
