"""Batches of records into windows: what is taken, refused and counted."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import StoreNotWritten
from engine.events import encode_click
from engine.store.recovery import Bounds
from engine.streams.batches import BATCH_RECORDS, ClickBatch
from tests.builders import NOON_MS, make_click
from tests.streams.intake import EPOCH, PARTITION, Bench, RecordOf, counted, record


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
