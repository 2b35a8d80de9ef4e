"""Bounded decompression: a batch of records that expands beyond reason is named instead of held in memory.

A client compresses a batch, the broker keeps it as it came, and aiokafka decompresses it whole before anybody sees a
record: 1 MB of zstd can hold 30 GB. `max_message_bytes` comes too late for that, so the bound is put into aiokafka, at
the decoders that its record batches call and at the class that knows where a batch stands. That class also makes the
records that a consumer hands out, and here they may go out as they were read. aiokafka is pinned exactly;
`tests/streams/test_decompression.py` feeds it such batches.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cramjam
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch

from engine.errors import LogError

MAX_BATCH_BYTES = 32 * 2**20
"""A compressed batch may expand to so much; with Kafka's default bound that is more than thirty times its size."""


def bound_decompression() -> None:
    """Have every consumer of this process raise LogError at a batch that expands to more than `MAX_BATCH_BYTES`.

    Snappy is left as it is: its format can't say more than 21 bytes with one.
    """
    for batch in (DefaultRecordBatch, LegacyRecordBatch):
        module = sys.modules[batch.__module__]
        for codec in (cramjam.gzip, cramjam.lz4, cramjam.zstd):
            setattr(module, f"{codec.__name__}_decode", _bounded(codec.decompress_into))
    fetcher.PartitionRecords = _PlacedRecords


def _bounded(decompress_into: Callable[[bytes, mmap.mmap], int]) -> Callable[[bytes], bytes]:
    def decode(payload: bytes) -> bytes:
        # Pages that nothing is written to take no memory: a small batch costs what it holds.
        with mmap.mmap(-1, MAX_BATCH_BYTES) as space:
            return space[: decompress_into(payload, space)]

    return decode


def bare(key: bytes | None) -> bytes | None:
    """Return *key*; as a consumer's `key_deserializer` it asks for records that are not copied one by one.

    They have offset, timestamp, key, value and headers, and don't know topic and partition: aiokafka's copy, which
    does, costs half a microsecond a record.
    """
    return key


class _PlacedRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of one fetch and partition; names the place of a batch that can't be decompressed."""

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        return record if self._key_deserializer is bare else super()._consumer_record(tp, record)

    def _unpack_records(self) -> Iterator[Any]:
        begun_at = self.next_fetch_offset
        try:
            yield from super()._unpack_records()
        except cramjam.DecompressionError as error:
            # What stands before such a batch is handed out; the next fetch begins with it.
            if self.next_fetch_offset == begun_at:
                raise _unreadable(self._tp, begun_at) from error


def _unreadable(tp: Any, offset: int) -> LogError:
    limit = f"{MAX_BATCH_BYTES >> 20} MiB"
    return LogError(
        f"partition {tp.partition} of {tp.topic}",
        problem=f"holds at offset {offset} a compressed batch that is damaged, or expands to more than {limit}",
        remedy="docs/operations.md says how to take it out of the log, and how to keep the next one out",
    )
