from __future__ import annotations

import json

import pytest
from prometheus_client import REGISTRY

from engine.erasures import Erasure, Erasures, erase_user, read_erasure
from engine.log import Message, Publisher, Record, end_offsets, topic_epoch
from engine.log.partitioning import partition_of
from engine.settings import Settings
from engine.streams.topics import create_topics
from tests.builders import NOON_MS

EPOCH = "e" * 16


def record(value: bytes | None, *, offset: int = 0) -> Record:
    return Record("erasures", 0, offset, NOON_MS, b"u1", value, {})


def erasure(user_id: str = "u1", *, offset: int = 10, partition: int = 2, epoch: str = EPOCH, at: int = 0) -> Record:
    value = Erasure(user_id, epoch, partition, offset).to_message(Settings()).value
    return record(value, offset=at)


async def erasures_of(*records: Record) -> Erasures:
    erasures = Erasures(Settings(), EPOCH)
    await erasures.apply(records)
    return erasures


async def test_clicks_up_to_the_offset_are_ignored_in_that_partition_only() -> None:
    erasures = await erasures_of(erasure(offset=10, partition=2))

    assert (erasures.until(2), erasures.until(1)) == ({b"u1": 10}, {})


async def test_the_greatest_offset_of_a_user_counts_whatever_the_order() -> None:
    erasures = await erasures_of(erasure(offset=10, at=0), erasure(offset=7, at=1))

    assert erasures.until(2) == {b"u1": 10}


async def test_who_stopped_at_a_place_hears_of_what_lies_behind_it() -> None:
    erasures = await erasures_of(erasure("a", at=3), erasure("b", at=4), erasure("c", at=5, partition=1))

    assert erasures.since(2, -1) == ({"a": 10, "b": 10}, 4)
    assert erasures.since(2, 3) == ({"b": 10}, 4)
    assert erasures.since(2, 4) == ({}, 4)


async def test_lists_up_to_the_offset_are_hidden_and_later_ones_shown() -> None:
    erasures = await erasures_of(erasure(offset=10))

    assert [erasures.hides(b"u1", EPOCH.encode(), offset) for offset in (-1, 10, 11)] == [True, True, False]
    assert not erasures.hides(b"u2", EPOCH.encode(), 10)


async def test_an_erasure_of_another_life_of_the_topic_touches_no_click_of_this_one() -> None:
    erasures = await erasures_of(erasure(epoch="0" * 16))

    assert (erasures.until(2), erasures.since(2, -1)) == ({}, ({}, -1))
    assert erasures.hides(b"u1", b"0" * 16, 10)
    assert not erasures.hides(b"u1", EPOCH.encode(), 10)


def test_an_erasure_that_names_no_life_is_of_this_one() -> None:
    value = json.dumps({"user_id": "u1", "partition": 2, "offset": 10}).encode()

    assert read_erasure(value, epoch=EPOCH) == Erasure("u1", EPOCH, 2, 10)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"}{",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"user_id": "u1", "partition": 0}',
        b'{"user_id": 7, "partition": 0, "offset": 1}',
        b'{"user_id": "u1", "partition": true, "offset": 1}',
        b'{"user_id": "u1", "partition": 0, "offset": 1.5}',
        b'{"user_id": "u1", "partition": 0, "offset": NaN}',
        b'{"user_id": "u1", "partition": 0, "offset": 1' + b"0" * 40 + b"}",
        b'{"user_id": "u1", "partition": 0, "offset": -2}',
        b'{"user_id": "u1", "partition": 0, "offset": 1, "epoch": 5}',
    ],
)
async def test_what_is_no_erasure_erases_nothing_is_counted_and_stops_nothing(value: bytes | None) -> None:
    before = REGISTRY.get_sample_value("mindstream_erasures_refused_total") or 0.0

    erasures = await erasures_of(record(value), erasure("u2"))

    assert erasures.until(2) == {b"u2": 10}
    assert erasures.until(0) == {}
    assert REGISTRY.get_sample_value("mindstream_erasures_refused_total") == before + 1


async def test_taking_records_in_is_told_after_they_are_in() -> None:
    seen: list[int] = []

    async def look() -> None:
        seen.append(len(erasures.until(2)))

    erasures = Erasures(Settings(), EPOCH, on_change=look)
    await erasures.apply([erasure("a"), erasure("b")])

    assert seen == [2]


@pytest.mark.kafka
async def test_an_erasure_names_the_end_of_the_users_partition(broker: Settings) -> None:
    settings = broker.model_copy(update={"topic_prefix": "erase-1-", "clicks_partitions": 3})
    await create_topics(settings)
    publisher, epoch = Publisher(settings), await topic_epoch(settings, "clicks")
    await publisher.start()
    users = ["ann", "bob", "cat", "dan"]
    clicks = [Message(settings.topic("clicks"), b"{}", user.encode()) for user in users for _ in range(3)]
    await publisher.send_all(clicks)
    ends = await end_offsets(settings, "clicks")

    written = [await erase_user(user, settings, publisher.send) for user in users]
    await publisher.stop()

    partitions = [partition_of(user.encode(), 3) for user in users]
    assert written == [
        Erasure(user, epoch.text, partition, ends[partition] - 1)
        for user, partition in zip(users, partitions, strict=True)
    ]
    erasures = Erasures(settings, epoch.text)
    await erasures.start()
    await erasures.wait_until_read()
    read = {user: erasures.until(partition) for user, partition in zip(users, partitions, strict=True)}
    await erasures.stop()
    assert all(read[one.user_id][one.user_id.encode()] == one.offset for one in written)
    assert erasures.topic_id
