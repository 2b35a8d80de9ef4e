from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from engine.errors import LogError, StoreFormatError, StoreNotWritten
from engine.events import ClickEvent, encode_click
from engine.log import Epoch, Message, Position, Publisher
from engine.log.partitioning import partition_of
from engine.settings import Settings
from engine.store.header import StoreHeader
from engine.store.recovery import Bounds
from engine.store.windows import PartitionStore
from engine.streams.batches import BATCH_RECORDS, ClickBatch
from engine.streams.clicks import Ingest
from engine.streams.dead_letters import DeadLetters
from engine.window import SeenRule
from tests.builders import NOON_MS, make_click

EPOCH = Epoch(cluster_id="c", topic_id="t", partitions=4)
PARTITION = partition_of(b"u1", 4)


@dataclass
class RecordOf:
    """A record as the adapter hands it over."""

    offset: int
    value: bytes | None
    key: bytes | None = b"u1"
    timestamp: int = NOON_MS


class MemoryLog(Publisher):
    """Keeps what is sent; while it is `down` it answers as a broker that can't be reached."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.sent: list[Message] = []
        self.is_down = False
        self.attempts = 0

    async def send_all(self, messages: Sequence[Message]) -> list[Position]:
        self.attempts += 1
        if self.is_down:
            raise LogError("clicks.dead-letters", problem="can't be reached", remedy="wait")
        self.sent.extend(messages)
        return [Position(0, 0) for _ in messages]

    @property
    def letters(self) -> list[dict[str, object]]:
        return [json.loads(message.value or b"") for message in self.sent]


@dataclass
class Refresh:
    """Notes what ingest tells the refresh loop."""

    stores: dict[int, PartitionStore] = field(default_factory=dict)
    notified: int = 0
    has_enough: bool = False

    def add_partition(self, partition: int, store: PartitionStore) -> None:
        self.stores[partition] = store

    async def remove_partition(self, partition: int) -> None:
        self.stores.pop(partition, None)

    def notify(self) -> None:
        self.notified += 1

    def is_behind(self) -> bool:
        return self.has_enough


class Bench:
    """An ingest with everything around it."""

    def __init__(self, settings: Settings) -> None:
        self.log, self.refresh = MemoryLog(settings), Refresh()
        self.failures: list[BaseException] = []
        dead_letters = DeadLetters(settings, self.log, EPOCH.text)
        self.ingest = Ingest(settings, EPOCH, dead_letters, self.refresh, on_failure=self.failures.append)

    async def own(self, partition: int = PARTITION, *, first: int = 0, end: int = 0) -> int:
        return (await self.ingest.start_positions(self.ingest._epoch, {partition: Bounds(first, end)}))[partition]

    async def take(self, *records: RecordOf, partition: int = PARTITION) -> ClickBatch:
        batch = ClickBatch(partition, records)
        await self.ingest.take(batch)
        return batch

    @property
    def store(self) -> PartitionStore:
        return self.ingest._owned[PARTITION].store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Bench]:
    made = Bench(settings)
    yield made
    await made.ingest.close()


def record(offset: int, click: ClickEvent | None = None) -> RecordOf:
    click = click or make_click(item_id=f"i{offset}", clicked_at_ms=NOON_MS - 1_000 + offset)
    return RecordOf(offset, encode_click(click), click.user_id.encode())


def counted(metric: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(metric, labels) or 0.0


@pytest.fixture
def counts() -> dict[str, float]:
    """The counters' values before the test."""
    return {
        outcome: counted("mindstream_clicks_total", outcome=outcome)
        for outcome in ("applied", "redelivered", "rejected")
    }


async def test_a_batch_ends_in_windows_and_wakes_the_refresh(bench: Bench, counts: dict[str, float]) -> None:
    assert await bench.own() == 0

    batch = await bench.take(*(record(offset) for offset in range(3)))

    assert batch.done.is_set()
    assert bench.store.read_window("u1").item_ids == ["i0", "i1", "i2"]
    assert bench.store.applied_offset == 2
    assert bench.refresh.notified == 1
    assert counted("mindstream_clicks_total", outcome="applied") == counts["applied"] + 3


BAD = {
    "no bytes": (RecordOf(50, b""), "empty"),
    "not JSON": (RecordOf(50, b"}{"), "json"),
    "invalid UTF-8": (RecordOf(50, b"\xff"), "encoding"),
    "an array": (RecordOf(50, b"[]"), "type"),
    "no user": (RecordOf(50, b'{"item_id":"i","clicked_at_ms":1}'), "missing"),
    "a key twice": (RecordOf(50, b'{"user_id":"u1","user_id":"u1","item_id":"i","clicked_at_ms":1}'), "duplicate_key"),
    "NaN": (RecordOf(50, b'{"user_id":"u1","item_id":"i","clicked_at_ms":1,"weight":NaN}'), "number"),
    "60,000 deep": (RecordOf(50, b"[" * 60_000), "depth"),
    "900 KB": (RecordOf(50, b"x" * 900_000), "size"),
    "the future": (RecordOf(50, encode_click(make_click(clicked_at_ms=NOON_MS + 90_000))), "future"),
    "microseconds": (RecordOf(50, encode_click(make_click(clicked_at_ms=NOON_MS * 1_000))), "ts_unit"),
    "no key": (RecordOf(50, encode_click(make_click()), key=None), "key"),
    "another's key": (RecordOf(50, encode_click(make_click()), key=b"u2"), "key_mismatch"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
async def test_100_good_clicks_beside_a_bad_one_still_apply(
    bench: Bench, counts: dict[str, float], bad: RecordOf, reason: str
) -> None:
    await bench.own()
    before = counted("mindstream_rejected_total", reason=reason)

    await bench.take(*(bad if offset == 50 else record(offset) for offset in range(101)))

    good = [f"i{offset}" for offset in range(101) if offset != 50]
    assert bench.store.read_window("u1").item_ids == good[-50:]
    assert bench.store.applied_offset == 100
    assert [letter["reason"] for letter in bench.log.letters] == [reason]
    assert bench.log.sent[0].key == f"{EPOCH.text}:clicks:{PARTITION}:50".encode()
    assert counted("mindstream_rejected_total", reason=reason) == before + 1
    assert counted("mindstream_clicks_total", outcome="rejected") == counts["rejected"] + 1
    assert bench.failures == []


async def test_a_click_in_the_wrong_partition_is_refused(bench: Bench) -> None:
    wrong = (PARTITION + 1) % 4
    await bench.own(wrong)

    await bench.take(record(0), partition=wrong)

    assert [letter["reason"] for letter in bench.log.letters] == ["partition"]


async def test_a_record_without_a_value_is_counted_and_erases_nothing(bench: Bench) -> None:
    await bench.own()
    before = counted("mindstream_tombstones_ignored_total")

    await bench.take(record(0), RecordOf(1, None))

    assert bench.store.read_window("u1").item_ids == ["i0"]
    assert bench.store.applied_offset == 1
    assert bench.log.sent == []
    assert counted("mindstream_tombstones_ignored_total") == before + 1


async def test_a_redelivered_batch_changes_nothing_and_writes_no_second_letter(
    bench: Bench, counts: dict[str, float]
) -> None:
    await bench.own()
    records = [record(0), RecordOf(1, b"bad"), record(2)]
    await bench.take(*records)

    await bench.take(*records, record(3))

    assert bench.store.read_window("u1").item_ids == ["i0", "i2", "i3"]
    assert len(bench.log.sent) == 1
    assert counted("mindstream_clicks_total", outcome="redelivered") == counts["redelivered"] + 3


async def test_a_full_batch_of_garbage_is_refused_one_by_one(bench: Bench) -> None:
    await bench.own()

    await bench.take(*(RecordOf(offset, b"\x00garbage") for offset in range(2_000)))

    assert len(bench.log.sent) == 2_000
    assert bench.store.applied_offset == 1_999


async def test_nothing_is_stored_before_the_dead_letters_are_acknowledged(bench: Bench) -> None:
    await bench.own()
    bench.log.is_down = True

    taking = asyncio.create_task(bench.take(record(0), RecordOf(1, b"bad")))
    while bench.log.attempts < 2:
        await asyncio.sleep(0.01)

    assert bench.store.applied_offset == -1
    assert bench.store.read_window("u1").item_ids == []

    bench.log.is_down = False
    batch = await taking
    assert batch.done.is_set()
    assert bench.store.applied_offset == 1
    assert [letter["offset"] for letter in bench.log.letters] == [1]


async def test_a_rebalance_gives_up_a_batch_that_waits_for_the_dead_letter_topic(bench: Bench) -> None:
    await bench.own()
    bench.log.is_down = True
    taking = asyncio.create_task(bench.take(record(0), RecordOf(1, b"bad")))
    while not bench.log.attempts:
        await asyncio.sleep(0.01)

    await bench.ingest.revoke()

    assert not (await taking).done.is_set()
    assert await bench.own() == 0


async def test_a_batch_of_a_partition_that_left_is_not_applied(bench: Bench) -> None:
    await bench.own()
    await bench.ingest.revoke()

    assert not (await bench.take(record(0))).done.is_set()
    assert bench.failures == []


async def test_a_void_batch_is_not_applied(bench: Bench) -> None:
    await bench.own()
    batch = ClickBatch(PARTITION, [record(0)], is_void=True)

    await bench.ingest.take(batch)

    assert not batch.done.is_set()
    assert bench.store.applied_offset == -1


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
    bench: Bench, slow_disk: SlowDisk, settings: Settings
) -> None:
    await cancel_while_opening(bench, slow_disk)

    revoking = asyncio.create_task(bench.ingest.revoke())
    slow_disk.may_end.set()
    await revoking

    assert bench.ingest._owned == {}
    assert len(slow_disk.opened) == 1
    other = Bench(settings)
    assert await other.own() == 0, "nobody holds the store"
    await other.ingest.close()


async def test_a_log_that_no_longer_holds_what_the_store_needs_is_refused(bench: Bench, settings: Settings) -> None:
    with pytest.raises(LogError, match=r"begins at offset 10, .* needs offset 0 next; .*MINDSTREAM_ACCEPT_LOG_GAP"):
        await bench.own(first=10, end=20)

    await bench.ingest.revoke()
    told = Bench(settings.model_copy(update={"accept_log_gap": True}))
    assert await told.own(first=10, end=20) == 10
    await told.ingest.close()


async def test_a_log_shorter_than_what_was_applied_is_refused(bench: Bench) -> None:
    await bench.own()
    await bench.take(record(0), record(1))
    await bench.ingest.revoke()

    with pytest.raises(LogError, match="ends at offset 1, but the store has applied 1: the log lost records"):
        await bench.own(end=1)


async def test_a_store_of_another_topic_is_refused(bench: Bench, settings: Settings) -> None:
    await bench.own()
    await bench.ingest.revoke()
    other = Bench(settings)
    other.ingest._epoch = Epoch(cluster_id="c", topic_id="made anew", partitions=4)

    with pytest.raises(StoreFormatError, match="topic_id"):
        await other.own()
    await other.ingest.close()


@pytest.mark.parametrize("change", [{"partitions": 5}, {"topic_id": "made anew"}], ids=["more partitions", "made anew"])
async def test_a_topic_that_changed_under_a_running_engine_is_refused(bench: Bench, change: dict[str, Any]) -> None:
    await bench.own()

    with pytest.raises(LogError, match="is not what this engine was started on"):
        await bench.ingest.start_positions(replace(EPOCH, **change), {PARTITION: Bounds(0, 0)})


async def test_a_batch_that_waits_for_the_dead_letter_topic_is_lag(bench: Bench) -> None:
    await bench.own()
    bench.log.is_down = True
    taking = asyncio.create_task(bench.take(*(RecordOf(offset, b"bad") for offset in range(7))))
    while not bench.log.attempts:
        await asyncio.sleep(0.01)

    assert counted("mindstream_consumer_lag") == 7

    bench.log.is_down = False
    await taking
    bench.ingest.progress({PARTITION: Bounds(7, 7)})
    assert counted("mindstream_consumer_lag") == 0


@pytest.mark.parametrize(
    ("has_enough", "taken", "rests"),
    [(True, BATCH_RECORDS - 1, True), (True, BATCH_RECORDS, False), (False, 1, False)],
    ids=["few clicks for a busy refresh", "behind the log", "refresh keeps up"],
)
async def test_intake_rests_only_while_its_clicks_could_not_be_refreshed_anyway(
    bench: Bench, has_enough: bool, taken: int, rests: bool
) -> None:
    bench.refresh.has_enough = has_enough

    resting = asyncio.create_task(bench.ingest.rest(taken))
    await asyncio.sleep(0)

    assert resting.done() is not rests
    await resting


async def test_a_fault_of_ours_stops_the_intake_before_anything_is_acknowledged(bench: Bench) -> None:
    await bench.own()
    bench.store.close()

    first, second = await bench.take(record(0)), await bench.take(record(0))

    assert [type(failure) for failure in bench.failures] == [StoreNotWritten]
    assert not first.done.is_set()
    assert not second.done.is_set()
