from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from engine.errors import LogError
from engine.log import Admin, Follower, Message, Position, Publisher, Record, end_offsets, topic_epoch, wait_for_broker
from engine.settings import Settings
from engine.streams.local_broker import LocalBroker
from tests.conftest import free_port

pytestmark = pytest.mark.kafka
_prefixes = (f"log{number}-" for number in itertools.count())


@pytest.fixture
async def settings(broker: Settings, tmp_path: Path) -> Settings:
    """Settings of a topic family of the test's own: `clicks` with 3 partitions."""
    own = broker.model_copy(update={"topic_prefix": next(_prefixes), "data_dir": tmp_path})
    await make_topic(own, "clicks", partitions=3)
    return own


@pytest.fixture
async def publisher(settings: Settings) -> AsyncIterator[Publisher]:
    publisher = Publisher(settings)
    await publisher.start()
    yield publisher
    await publisher.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[tuple[LocalBroker, Settings]]:
    """A broker that the test may stop and start."""
    settings = Settings(data_dir=tmp_path, broker_port=free_port(2), broker_heap_mb=256)
    running = LocalBroker(settings)
    running.start()
    try:
        yield running, settings
    finally:
        running.stop()


class Collector:
    """Keeps what a follower hands over, and tells when there is enough of it."""

    def __init__(self) -> None:
        self.batches: list[list[Record]] = []
        self._grown = asyncio.Event()

    async def __call__(self, records: Sequence[Record]) -> None:
        self.batches.append(list(records))
        self._grown.set()

    @property
    def records(self) -> list[Record]:
        return [record for batch in self.batches for record in batch]

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.records) < count:
                self._grown.clear()
                await self._grown.wait()


async def make_topic(settings: Settings, name: str, *, partitions: int = 1, **configs: str) -> None:
    async with Admin(settings) as admin:
        await admin.create(settings.topic(name), partitions=partitions, replicas=1, configs=configs)


async def follow_to_end(
    settings: Settings, topic: str, start: dict[int, int] | None = None
) -> tuple[Follower, Collector]:
    collector = Collector()
    follower = Follower(settings, topic, collector, start)
    await follower.start()
    async with asyncio.timeout(60):
        await follower.caught_up.wait()
    return follower, collector


def messages(settings: Settings, count: int, *, partition: int | None = None) -> list[Message]:
    return [
        Message(settings.topic("clicks"), f"v{n}".encode(), f"u{n}".encode(), partition=partition) for n in range(count)
    ]


async def test_publisher_answers_the_place_of_each_message_in_order(settings: Settings, publisher: Publisher):
    first = await publisher.send(Message(settings.topic("clicks"), b"a", b"u", partition=1))
    places = await publisher.send_all(messages(settings, 3, partition=1))

    assert first == Position(1, 0)
    assert places == [Position(1, 1), Position(1, 2), Position(1, 3)]


async def test_message_without_partition_goes_where_kafkas_own_partitioner_puts_its_key(
    settings: Settings, publisher: Publisher
):
    # murmur2 of these keys, as Kafka's Java client computes it, modulo 3.
    places = {key: await publisher.send(Message(settings.topic("clicks"), b"v", key)) for key in (b"21", b"foobar")}

    assert {key: place.partition for key, place in places.items()} == {
        b"21": (-973932308 & 0x7FFFFFFF) % 3,
        b"foobar": (-790332482 & 0x7FFFFFFF) % 3,
    }


async def test_record_carries_key_value_headers_and_the_time_of_its_appending(broker: Settings, publisher: Publisher):
    settings = broker.model_copy(update={"topic_prefix": next(_prefixes)})
    await make_topic(settings, "clicks", **{"message.timestamp.type": "LogAppendTime"})
    await publisher.send(Message(settings.topic("clicks"), b"v", b"k", {"epoch": b"e"}))
    await publisher.send(Message(settings.topic("clicks"), None, b"k"))

    follower, collector = await follow_to_end(settings, "clicks")
    await follower.stop()

    first, second = collector.records
    assert (first.topic, first.partition, first.offset) == (settings.topic("clicks"), 0, 0)
    assert (first.key, first.value, first.headers) == (b"k", b"v", {"epoch": b"e"})
    assert first.timestamp_ms > 1_600_000_000_000
    assert (second.value, second.headers) == (None, {})


async def test_message_larger_than_the_broker_takes_is_refused_and_the_next_one_is_taken(
    settings: Settings, publisher: Publisher
):
    with pytest.raises(LogError, match="MessageSizeTooLarge"):
        await publisher.send(Message(settings.topic("clicks"), b"x" * 2_000_000, b"u", partition=0))

    assert await publisher.send(Message(settings.topic("clicks"), b"x", b"u", partition=0)) == Position(0, 0)


async def test_publisher_recovers_from_a_batch_that_the_broker_refuses_for_good(
    settings: Settings, publisher: Publisher
):
    await make_topic(settings, "small", **{"max.message.bytes": "1000"})
    small = settings.topic("small")
    assert await publisher.send(Message(small, b"x", b"u")) == Position(0, 0)

    with pytest.raises(LogError, match="MessageSizeTooLarge"):
        await publisher.send(Message(small, os.urandom(5_000), b"u"))

    # The refused batch left a gap in the producer's sequence numbers; without a new one this would fail for ever.
    assert await publisher.send(Message(small, b"y", b"u")) == Position(0, 1)


async def test_sending_to_a_topic_that_does_not_exist_says_so(broker: Settings):
    publisher = Publisher(broker, delivery_timeout_s=3)
    await publisher.start()

    with pytest.raises(LogError, match="no-such-topic"):
        await publisher.send(Message("no-such-topic", b"x"))
    await publisher.stop()


async def test_follower_hands_over_whole_lists_of_one_partition_in_offset_order(
    settings: Settings, publisher: Publisher
):
    await publisher.send_all(messages(settings, 3_000))

    follower, collector = await follow_to_end(settings, "clicks")

    assert len(collector.batches) < 100
    assert all(len({record.partition for record in batch}) == 1 for batch in collector.batches)
    offsets = {number: [r.offset for r in collector.records if r.partition == number] for number in range(3)}
    assert offsets == {number: list(range(end)) for number, end in (await end_offsets(settings, "clicks")).items()}
    assert follower.lag() == 0
    await follower.stop()


async def test_follower_is_caught_up_at_once_on_an_empty_topic_and_takes_what_comes_later(
    settings: Settings, publisher: Publisher
):
    follower, collector = await follow_to_end(settings, "clicks")
    assert collector.records == []
    assert follower.connected

    await publisher.send_all(messages(settings, 10))
    await collector.wait_for(10)

    assert {record.value for record in collector.records} == {f"v{n}".encode() for n in range(10)}
    await follower.stop()


async def test_follower_catches_up_on_a_compacted_topic_whose_offsets_have_holes(
    settings: Settings, publisher: Publisher
):
    await make_topic(
        settings,
        "lists",
        **{"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.0001"},
    )
    for value in range(30):
        await publisher.send(Message(settings.topic("lists"), str(value).encode(), b"same"))
        await asyncio.sleep(0.02)
    await publisher.send(Message(settings.topic("lists"), None, b"gone"))

    follower, collector = await follow_to_end(settings, "lists")
    await follower.stop()

    values = [record.value for record in collector.records if record.key == b"same"]
    assert values[-1] == b"29"
    assert follower.positions() == {0: 31}


async def test_follower_resumes_from_given_offsets(settings: Settings, publisher: Publisher):
    await publisher.send_all(messages(settings, 10, partition=0))
    await publisher.send_all(messages(settings, 5, partition=2))

    follower, collector = await follow_to_end(settings, "clicks", start={0: 7, 2: 5})
    await follower.stop()

    assert [(record.partition, record.offset) for record in collector.records] == [(0, 7), (0, 8), (0, 9)]


async def test_follower_goes_on_at_the_logs_start_when_older_records_are_gone_and_says_so(
    settings: Settings, publisher: Publisher
):
    await publisher.send_all(messages(settings, 10, partition=0))
    await delete_before(settings, "clicks", partition=0, offset=6)

    follower, collector = await follow_to_end(settings, "clicks", start={0: 2})
    await follower.stop()

    assert [record.offset for record in collector.records] == [6, 7, 8, 9]
    assert follower.skipped == {0: 4}


async def test_follower_that_stands_beyond_the_logs_end_stops_and_says_why(settings: Settings):
    follower = Follower(settings, "clicks", Collector(), {1: 99})
    await follower.start()

    with pytest.raises(LogError, match="partition 1 ends at offset 0, before 99"):
        await follower.wait()


async def test_error_in_apply_stops_the_follower_and_surfaces(settings: Settings, publisher: Publisher):
    async def refuse(records: Sequence[Record]) -> None:
        raise OSError("disk is full")

    follower = Follower(settings, "clicks", refuse)
    await publisher.send_all(messages(settings, 5))
    await follower.start()

    with pytest.raises(LogError, match="disk is full"):
        await follower.wait()
    assert isinstance(follower.failure, LogError)
    assert not follower.caught_up.is_set()


async def test_stop_waits_for_the_records_at_hand(settings: Settings, publisher: Publisher):
    begun, finished = asyncio.Event(), []

    async def slowly(records: Sequence[Record]) -> None:
        begun.set()
        await asyncio.sleep(0.3)
        finished.extend(records)

    await publisher.send_all(messages(settings, 5, partition=0))
    follower = Follower(settings, "clicks", slowly)
    await follower.start()
    await begun.wait()

    await follower.stop()

    assert len(finished) == 5
    assert follower.positions()[0] == 5


async def test_follower_waits_for_a_topic_that_is_made_later(broker: Settings, publisher: Publisher):
    settings = broker.model_copy(update={"topic_prefix": next(_prefixes)})
    collector = Collector()
    follower = Follower(settings, "clicks", collector)
    await follower.start()
    await asyncio.sleep(0.3)
    assert not follower.caught_up.is_set()

    await make_topic(settings, "clicks")
    await publisher.send(Message(settings.topic("clicks"), b"v"))
    await collector.wait_for(1)

    assert follower.failure is None
    await follower.stop()


async def test_epoch_stays_when_the_logs_start_moves_and_changes_when_the_topic_is_made_anew(
    settings: Settings, publisher: Publisher
):
    before = await topic_epoch(settings, "clicks")
    await publisher.send_all(messages(settings, 4, partition=0))
    await delete_before(settings, "clicks", partition=0, offset=3)
    moved = await topic_epoch(settings, "clicks")
    async with Admin(settings) as admin:
        await admin.delete([settings.topic("clicks")])
        while settings.topic("clicks") in await admin.partitions():
            await asyncio.sleep(0.05)
    await make_topic(settings, "clicks", partitions=3)
    anew = await topic_epoch(settings, "clicks")

    assert moved == before
    assert (anew.cluster_id, anew.partitions) == (before.cluster_id, before.partitions)
    assert anew.topic_id != before.topic_id
    assert len({before.text, anew.text}) == 2


async def test_waiting_for_a_broker_that_is_not_there_names_the_address(tmp_path: Path):
    settings = Settings(data_dir=tmp_path, broker_port=free_port())

    with pytest.raises(LogError, match=rf"127\.0\.0\.1:{settings.broker_port} can't be used .*nothing listens"):
        await wait_for_broker(settings, 0.2)
    with pytest.raises(LogError, match="can't be reached"):
        await Publisher(settings).start()


async def test_epoch_of_a_topic_that_does_not_exist_says_so(broker: Settings):
    with pytest.raises(LogError, match="no-such-topic does not exist"):
        await topic_epoch(broker, "no-such-topic")


async def test_follower_and_publisher_go_on_after_the_broker_was_killed_and_came_back(
    own_broker: tuple[LocalBroker, Settings],
):
    running, settings = own_broker
    await make_topic(settings, "clicks", partitions=3)
    publisher = Publisher(settings, delivery_timeout_s=200)
    await publisher.start()
    await publisher.send_all(messages(settings, 50))
    follower, collector = await follow_to_end(settings, "clicks")

    await asyncio.to_thread(running.stop_node, 1, kill=True)
    sending = asyncio.create_task(publisher.send_all(messages(settings, 20)))
    async with asyncio.timeout(30):
        while follower.connected:
            await asyncio.sleep(0.1)
    await asyncio.to_thread(running.start)
    await sending
    await collector.wait_for(70)
    await asyncio.sleep(0.5)

    assert follower.failure is None
    places = [(record.partition, record.offset) for record in collector.records]
    assert len(places) == len(set(places)) == 70
    await follower.stop()
    await publisher.stop()


async def test_send_gives_up_in_time_on_a_broker_that_hangs_and_stop_does_not_wait_for_it(
    own_broker: tuple[LocalBroker, Settings],
):
    running, settings = own_broker
    await make_topic(settings, "clicks", partitions=3)
    publisher = Publisher(settings, delivery_timeout_s=1.0)
    await publisher.start()
    await publisher.send(messages(settings, 1)[0])

    node = psutil.Process(running.pids[0])
    node.suspend()
    while node.status() != psutil.STATUS_STOPPED:
        await asyncio.sleep(0.01)
    try:
        with pytest.raises(LogError, match="did not acknowledge within 1 s"):
            await publisher.send(messages(settings, 1)[0])
        async with asyncio.timeout(15):
            await publisher.stop()
    finally:
        node.resume()


async def test_follower_refuses_a_topic_that_was_made_anew_under_it(settings: Settings, publisher: Publisher):
    await publisher.send_all(messages(settings, 5, partition=0))
    follower, _ = await follow_to_end(settings, "clicks")

    async with Admin(settings) as admin:
        await admin.delete([settings.topic("clicks")])
        while settings.topic("clicks") in await admin.partitions():
            await asyncio.sleep(0.05)
    await make_topic(settings, "clicks", partitions=3)

    async with asyncio.timeout(60):
        with pytest.raises(LogError, match=r"is not the topic that was followed|ends at offset"):
            await follower.wait()


async def delete_before(settings: Settings, topic: str, *, partition: int, offset: int) -> None:
    """Move the log's start, as retention does."""
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
    from aiokafka.structs import TopicPartition

    admin = AIOKafkaAdminClient(**settings.kafka_client_options())
    await admin.start()
    await admin.delete_records({TopicPartition(settings.topic(topic), partition): RecordsToDelete(offset)})
    await admin.close()
