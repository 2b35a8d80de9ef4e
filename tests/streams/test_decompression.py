from __future__ import annotations

import asyncio
import struct
import sys
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from engine.errors import LogError
from engine.settings import Settings
from engine.store.header import stores_dir
from engine.store.rocksdb import open_for_reading
from engine.store.scans import read_offset
from engine.streams import app
from engine.streams.decompression import bare, bound_decompression

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
BOMB = bytes(64 * 2**20)
READ_COMMITTED = 1


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound the decompression; what is set here once before is put back after the test."""
    for batch in (DefaultRecordBatch, LegacyRecordBatch):
        for codec in ("gzip", "lz4", "zstd"):
            monkeypatch.setattr(sys.modules[batch.__module__], f"{codec}_decode", None, raising=False)
    monkeypatch.setattr(fetcher, "PartitionRecords", fetcher.PartitionRecords)
    bound_decompression()


def batch_of(codec: str, *values: bytes, offset: int) -> bytes:
    """Return the bytes of a batch that begins at *offset*."""
    batch = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=CODECS[codec],
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=2**30,
    )
    for number, value in enumerate(values):
        batch.append(number, 0, b"u1", value, [])
    return struct.pack(">q", offset) + bytes(batch.build())[8:]


def fetched(*batches: bytes, offset: int = 0) -> Any:
    """Return what aiokafka makes of a fetch at *offset*."""
    content, place = b"".join(batches), TopicPartition("clicks", 3)
    return fetcher.PartitionRecords(place, MemoryRecords(content), [], offset, None, None, True, READ_COMMITTED)


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_comes_out_as_it_went_in(codec: str) -> None:
    values = [b"click %d" % number * 300 for number in range(500)]

    records = fetched(batch_of(codec, *values, offset=0))

    assert [record.value for record in records] == values


@pytest.mark.parametrize("codec", CODECS)
def test_bare_records_are_the_copies_without_topic_and_partition(codec: str) -> None:
    content, place = batch_of(codec, *(b"click %d" % number for number in range(50)), offset=17), TopicPartition("c", 3)

    copies, bare_ones = (
        list(fetcher.PartitionRecords(place, MemoryRecords(content), [], 20, by, None, True, READ_COMMITTED))
        for by in (None, bare)
    )

    def read(records: list[Any]) -> list[tuple[Any, ...]]:
        return [(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in records]

    assert read(bare_ones) == read(copies)
    assert [record.offset for record in bare_ones] == list(range(20, 67))
    assert not hasattr(bare_ones[0], "topic")
    assert bare(b"u1") == b"u1"


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_a_batch_that_expands_to_64_mib_is_named_by_its_place(codec: str) -> None:
    records = fetched(batch_of(codec, BOMB, offset=17), offset=17)

    with pytest.raises(LogError, match=r"partition 3 of clicks holds at offset 17 a compressed batch .* than 32 MiB"):
        list(records)


def test_a_batch_of_many_records_is_measured_as_a_whole() -> None:
    records = fetched(batch_of("zstd", *[bytes(64 * 2**10)] * 600, offset=0))

    with pytest.raises(LogError, match="more than 32 MiB"):
        list(records)


def test_what_stands_before_such_a_batch_is_handed_out_first() -> None:
    bomb = batch_of("zstd", BOMB, offset=2)
    first = fetched(batch_of("gzip", b"a", b"b", offset=0), bomb)

    assert [record.value for record in first] == [b"a", b"b"]
    assert first.next_fetch_offset == 2
    with pytest.raises(LogError, match="holds at offset 2 a compressed batch"):
        list(fetched(bomb, offset=2))


@pytest.mark.kafka
async def test_such_a_batch_in_the_log_stops_the_engine_with_its_place(settings: Settings) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        compression_type="zstd",
        max_request_size=2 * len(BOMB),
        max_batch_size=2 * len(BOMB),
    )
    await producer.start()
    await producer.send_and_wait(settings.topic("clicks"), b"{}", key=b"u1", partition=2)
    await producer.send_and_wait(settings.topic("clicks"), BOMB, key=b"u1", partition=2)
    await producer.stop()

    with pytest.raises(LogError, match=rf"partition 2 of {settings.topic('clicks')} holds at offset 1 a compressed"):
        async with asyncio.timeout(60):
            await app._run(settings.model_copy(update={"engine_metrics_port": 0}))

    (path,) = stores_dir(settings).glob("*-2")
    store = open_for_reading(path)
    assert read_offset(store) == 0, "what stands before it is applied"
    store.close()
