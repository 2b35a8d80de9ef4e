"""Partitions that come and go with the consumer group, and their stores with them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import metrics
from engine.errors import LogError, StoreFormatError
from engine.log import Epoch
from engine.store.header import StoreHeader
from engine.store.recovery import Bounds
from engine.store.windows import PartitionStore
from engine.window import SeenRule
from tests.streams.intake import EPOCH, PARTITION, Bench, counted, record


async def test_a_partition_joins_the_refresh_once_it_has_reached_the_end_it_started_with(bench: Bench) -> None:
    await bench.own(end=3)
    assert bench.refresh.stores == {}

    await bench.take(record(0), record(1))
    bench.ingest.progress({PARTITION: Bounds(2, 5)})
    assert bench.refresh.stores == {}
    assert counted("mindstream_consumer_lag") == 3

    await bench.take(record(2))
    bench.ingest.progress({PARTITION: Bounds(3, 5)})
    assert list(bench.refresh.stores) == [PARTITION]


async def test_an_empty_partition_joins_the_refresh_at_once(bench: Bench) -> None:
    await bench.own(end=0)

    assert list(bench.refresh.stores) == [PARTITION]


async def test_a_restart_goes_on_behind_what_the_store_holds(bench: Bench) -> None:
    await bench.own()
    await bench.take(record(0), record(1))
    await bench.ingest.revoke()

    assert await bench.own(end=7) == 2
    assert counted("mindstream_owned_partitions") == 1


async def test_partitions_that_are_not_assigned_any_more_are_closed(bench: Bench) -> None:
    await bench.own(0)
    await bench.own(1)

    assert list(bench.refresh.stores) == [1]


class SlowDisk:
    """Holds every store that is opened until the test lets it."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.opened: list[PartitionStore] = []
        self._open = PartitionStore.open

    def open(self, path: Path, header: StoreHeader, *, seen: SeenRule | None = None) -> PartitionStore:
        self.begun.set()
        assert self.may_end.wait(10)
        self.opened.append(self._open(path, header, seen=seen))
        return self.opened[-1]


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk()
    monkeypatch.setattr(PartitionStore, "open", disk.open)
    yield disk
    disk.may_end.set()


async def cancel_while_opening(bench: Bench, disk: SlowDisk) -> None:
    """Assign a partition, and cancel that as Faust does when the next rebalance comes."""
    first = asyncio.create_task(bench.own())
    assert await asyncio.to_thread(disk.begun.wait, 10)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_second_rebalance_finds_the_store_that_the_first_was_still_opening(
    bench: Bench, slow_disk: SlowDisk
) -> None:
    await cancel_while_opening(bench, slow_disk)

    second = asyncio.create_task(bench.own(end=7))
    slow_disk.may_end.set()

    assert await second == 0
    assert slow_disk.opened == [bench.store]


async def test_a_partition_that_leaves_while_its_store_is_opened_leaves_it_closed(
    bench: Bench, slow_disk: SlowDisk
) -> None:
    await cancel_while_opening(bench, slow_disk)

    revoking = asyncio.create_task(bench.ingest.revoke())
    slow_disk.may_end.set()
    await revoking

    assert bench.ingest._owned == {}
    assert len(slow_disk.opened) == 1
    other = Bench(bench.settings)
    assert await other.own() == 0, "nobody holds the store"
    await other.ingest.close()


async def test_a_log_that_no_longer_holds_what_the_store_needs_is_refused(bench: Bench) -> None:
    with pytest.raises(LogError, match=r"begins at offset 10, .* needs offset 0 next; .*MINDSTREAM_ACCEPT_LOG_GAP"):
        await bench.own(first=10, end=20)

    await bench.ingest.revoke()
    told = Bench(bench.settings.model_copy(update={"accept_log_gap": True}))
    before = metrics.LOG_GAPS._value.get()
    assert await told.own(first=10, end=20) == 10
    assert metrics.LOG_GAPS._value.get() == before + 1, "and an alert says so"
    await told.ingest.close()


async def test_a_log_shorter_than_what_was_applied_is_refused(bench: Bench) -> None:
    await bench.own()
    await bench.take(record(0), record(1))
    await bench.ingest.revoke()

    with pytest.raises(LogError, match="ends at offset 1, but the store has applied 1: the log lost records"):
        await bench.own(end=1)


async def test_a_store_of_another_topic_is_refused(bench: Bench) -> None:
    await bench.own()
    await bench.ingest.revoke()
    other = Bench(bench.settings)
    other.ingest._epoch = Epoch(cluster_id="c", topic_id="made anew", partitions=4)

    with pytest.raises(StoreFormatError, match="topic_id"):
        await other.own()
    await other.ingest.close()


@pytest.mark.parametrize("change", [{"partitions": 5}, {"topic_id": "made anew"}], ids=["more partitions", "made anew"])
async def test_a_topic_that_changed_under_a_running_engine_is_refused(bench: Bench, change: dict[str, Any]) -> None:
    await bench.own()

    with pytest.raises(LogError, match="is not what this engine was started on"):
        await bench.ingest.start_positions(replace(EPOCH, **change), {PARTITION: Bounds(0, 0)})
