"""Erasures carried out by ingest, with real stores; the log is real where it is read again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from engine.erasures import Erasure, Erasures, erase_user
from engine.errors import MalformedEvent
from engine.events import encode_click
from engine.log import Epoch, Message, Publisher, Record, topic_epoch
from engine.log.partitioning import partition_of
from engine.settings import Settings
from engine.store.checkpoints import Checkpoints
from engine.store.recovery import Bounds, Recovery
from engine.store.windows import PartitionStore
from engine.streams.batches import ClickBatch
from engine.streams.checkpointing import Checkpointer
from engine.streams.clicks import Ingest
from engine.streams.dead_letters import DeadLetters, Rejected, list_dead_letters
from engine.streams.erasing import Eraser
from engine.streams.topics import create_topics
from tests.builders import NOON_MS, make_click
from tests.streams.intake import EPOCH, PARTITION, MemoryLog, RecordOf, Refresh, record


class Letters(DeadLetters):
    """Notes whose letters are to go, in place of reading a topic."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, MemoryLog(settings), EPOCH.text)
        self.taken_off: list[tuple[dict[str, int], int]] = []

    async def take_off(self, until: dict[str, int], partition: int) -> int:  # type: ignore[override]
        self.taken_off.append((dict(until), partition))
        return 0


class Bench:
    """Ingest with an eraser."""

    def __init__(self, settings: Settings, checkpoints: Checkpoints | None = None) -> None:
        self.settings, self.refresh, self.letters = settings, Refresh(), Letters(settings)
        self.failures: list[BaseException] = []
        self.erasures = Erasures(settings, EPOCH.text, on_change=lambda: self.ingest.erase())
        recovery = Recovery(settings, checkpoints)
        self.checkpointer = None if checkpoints is None else Checkpointer(settings, checkpoints)
        self.ingest = Ingest(
            settings,
            EPOCH,
            self.letters,
            self.refresh,
            on_failure=self.failures.append,
            recovery=recovery,
            checkpointer=self.checkpointer,
            eraser=Eraser(settings, self.erasures, self.letters, recovery),
        )

    async def own(self, *, end: int = 0) -> int:
        return (await self.ingest.start_positions(EPOCH, {PARTITION: Bounds(0, end)}))[PARTITION]

    async def take(self, *records: RecordOf) -> None:
        await self.ingest.take(ClickBatch(PARTITION, records))

    async def erase(self, user_id: str = "u1", *, offset: int, at: int = 0) -> None:
        value = Erasure(user_id, EPOCH.text, PARTITION, offset).to_message(self.settings).value
        await self.erasures.apply([Record("erasures", 0, at, NOON_MS, user_id.encode(), value, {})])

    async def close(self) -> None:
        await self.ingest.close()
        if self.checkpointer is not None:
            await self.checkpointer.close()

    @property
    def store(self) -> PartitionStore:
        return self.ingest.stores()[PARTITION]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


async def erased_once(settings: Settings, *, then: str) -> tuple[Bench, Bench]:
    """Return an ingest that carried out an erasure and is closed, and the next, on the topic of *then* as its id."""
    first, again = Bench(settings), Bench(settings)
    first.erasures._follower.epoch = Epoch("c", "topic-of-erasures", 1)
    again.erasures._follower.epoch = Epoch("c", then, 1)
    await first.own()
    await first.erase(offset=5, at=3)
    await first.close()
    return first, again


def erased_clicks() -> float:
    return REGISTRY.get_sample_value("mindstream_clicks_total", {"outcome": "erased"}) or 0.0


async def test_an_erasure_empties_the_window_and_has_the_list_replaced(settings: Settings) -> None:
    bench = Bench(settings)
    await bench.own()
    await bench.take(*(record(offset) for offset in range(3)))

    await bench.erase(offset=2)

    assert len(bench.store.read_window("u1")) == 0
    assert bench.store.count_dirty() == 1
    assert bench.refresh.stores == {PARTITION: bench.store}
    assert bench.letters.taken_off == [({"u1": 2}, PARTITION)]
    await bench.close()


async def test_a_replay_from_the_beginning_ignores_what_was_erased_and_keeps_what_came_later(
    settings: Settings,
) -> None:
    bench = Bench(settings)
    await bench.erase(offset=1)
    before = erased_clicks()

    assert await bench.own(end=4) == 0
    await bench.take(*(record(offset) for offset in range(4)))

    assert bench.store.read_window("u1").item_ids == ["i2", "i3"]
    assert erased_clicks() == before + 2
    await bench.close()


async def test_a_broken_record_of_an_erased_user_leaves_no_dead_letter(settings: Settings) -> None:
    bench = Bench(settings)
    await bench.erase(offset=0)
    await bench.own()

    await bench.take(RecordOf(0, b"}{"), RecordOf(1, b"}{"))

    log = bench.letters._publisher
    assert isinstance(log, MemoryLog)
    assert [letter["offset"] for letter in log.letters] == [1]
    await bench.close()


async def test_an_old_store_forgets_at_its_take_over(settings: Settings) -> None:
    old = Bench(settings)
    await old.own()
    await old.take(*(record(offset) for offset in range(3)))
    await old.close()
    bench = Bench(settings)
    await bench.erase(offset=5)

    assert await bench.own(end=3) == 3

    assert len(bench.store.read_window("u1")) == 0
    await bench.close()


async def test_what_is_carried_out_is_not_carried_out_again(settings: Settings) -> None:
    first, again = await erased_once(settings, then="topic-of-erasures")
    await again.erase(offset=5, at=3)

    await again.own()

    assert (len(first.letters.taken_off), again.letters.taken_off) == (1, [])
    await again.close()


async def test_a_topic_of_erasures_made_anew_is_carried_out_from_its_beginning(settings: Settings) -> None:
    _, again = await erased_once(settings, then="another")
    await again.erase("u2", offset=5, at=0)

    await again.own()

    assert again.letters.taken_off == [({"u2": 5}, PARTITION)]
    await again.close()


async def test_a_checkpoint_from_before_brings_nobody_back_and_goes_once_there_is_a_newer_one(
    settings: Settings, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    first = Bench(settings, checkpoints)
    await first.own()
    await first.take(*(record(offset) for offset in range(3)))
    await first.close()
    second = Bench(settings.model_copy(update={"data_dir": tmp_path / "new disk"}), checkpoints)
    await second.erase(offset=2, at=9)

    assert await second.own(end=3) == 3

    assert len(second.store.read_window("u1")) == 0
    header = second.store.header
    await second.close()  # the hand-over writes a checkpoint, of the same offset
    kept = checkpoints.find(header)
    assert [(one.applied_offset, one.erasures_done) for one in kept] == [(2, 9)]


async def test_a_partition_that_catches_up_while_users_are_erased_joins_the_refresh_afterwards(
    settings: Settings,
) -> None:
    bench = Bench(settings)
    await bench.own(end=1)
    await bench.take(record(0))
    seen: list[bool] = []

    async def look(_until: object, _partition: int) -> int:
        bench.ingest.progress({PARTITION: Bounds(1, 1)})
        seen.append(PARTITION in bench.refresh.stores)
        return 0

    bench.letters.take_off = look  # type: ignore[method-assign]
    await bench.erase(offset=0)
    bench.ingest.progress({PARTITION: Bounds(1, 1)})

    assert (seen, bench.failures) == ([False], [])
    assert bench.refresh.stores == {PARTITION: bench.store}
    await bench.close()


async def test_a_store_set_aside_goes_too(settings: Settings) -> None:
    bench = Bench(settings)
    aside = settings.data_dir / "engine" / "aside"
    for name in (f"clicks-{PARTITION}-17", f"clicks-{PARTITION + 1}-17"):
        (aside / name).mkdir(parents=True)
    await bench.own()

    await bench.erase(offset=2)

    assert [path.name for path in aside.iterdir()] == [f"clicks-{PARTITION + 1}-17"]
    await bench.close()


async def test_a_failure_stops_the_engine_and_leaves_the_erasure_to_the_next_start(settings: Settings) -> None:
    bench = Bench(settings)
    await bench.own()
    await bench.take(record(0))

    async def fail(_until: object, _partition: int) -> int:
        raise OSError("no broker")

    bench.letters.take_off = fail  # type: ignore[method-assign]
    await bench.erase(offset=0)

    assert [str(error) for error in bench.failures] == ["no broker"]
    assert bench.store.read_window("u1").item_ids == ["i0"]
    await bench.close()
    again = Bench(settings)
    await again.erase(offset=0)
    await again.own(end=1)
    assert len(again.store.read_window("u1")) == 0
    await again.close()


@pytest.mark.kafka
class TestOnARealLog:
    async def on_topics(self, broker: Settings, tmp_path: Path, prefix: str) -> tuple[Settings, Publisher, Epoch]:
        settings = broker.model_copy(
            update={"topic_prefix": prefix, "clicks_partitions": 1, "data_dir": tmp_path / "data"}
        )
        await create_topics(settings)
        publisher = Publisher(settings)
        await publisher.start()
        return settings, publisher, await topic_epoch(settings, "clicks")

    async def test_clicks_that_the_store_had_beyond_the_erasure_are_read_again(
        self, broker: Settings, tmp_path: Path
    ) -> None:
        settings, publisher, epoch = await self.on_topics(broker, tmp_path, "erasing-1-")
        users = ["u1", "u2", "u1", "u2", "u1"]
        sent = [make_click(user_id=user, item_id=f"i{at}", clicked_at_ms=NOON_MS + at) for at, user in enumerate(users)]
        values = [Message(settings.topic("clicks"), encode_click(one), one.user_id.encode()) for one in sent]
        values.insert(3, Message(settings.topic("clicks"), b"}{", b"u1"))  # refused when it first came
        await publisher.send_all(values)
        erasures = Erasures(settings, epoch.text, on_change=lambda: ingest.erase())
        letters = DeadLetters(settings, publisher, epoch.text)
        recovery, refresh, failures = Recovery(settings), Refresh(), list[BaseException]()
        eraser = Eraser(settings, erasures, letters, recovery)
        ingest = Ingest(settings, epoch, letters, refresh, on_failure=failures.append, recovery=recovery, eraser=eraser)
        await erasures.start()
        await erasures.wait_until_read()
        await ingest.start_positions(epoch, {0: Bounds(0, 6)})
        records = [RecordOf(at, message.value, message.key) for at, message in enumerate(values)]
        await ingest.take(ClickBatch(0, records))
        store = ingest.stores()[0]

        erasure = Erasure("u1", epoch.text, 0, 1)  # asked for before the store took offsets 2 to 5
        await publisher.send(erasure.to_message(settings))
        async with asyncio.timeout(20):
            while store.erasures_done < 0:
                await asyncio.sleep(0.02)

        assert store.read_window("u1").item_ids == ["i2", "i4"]
        assert store.read_window("u2").item_ids == ["i1", "i3"]
        assert failures == []
        for stop in (erasures.stop, ingest.close, publisher.stop):
            await stop()

    async def test_letters_of_the_user_are_taken_off_and_no_others(self, broker: Settings, tmp_path: Path) -> None:
        settings, publisher, epoch = await self.on_topics(broker, tmp_path, "erasing-2-")
        letters = DeadLetters(settings, publisher, epoch.text)
        await letters.send(rejected(RecordOf(3, b"}{", b"u1"), RecordOf(4, b'{"user_id": "u1"}', None)))
        await letters.send(rejected(RecordOf(5, b"}{", b"u2"), RecordOf(6, b"\xff", None), RecordOf(9, b"}{", b"u1")))
        await publisher.send(Message(settings.topic("clicks.dead-letters"), b"no letter", b"whatever"))

        taken = await letters.take_off({"u1": 8}, 0)

        assert taken == 2
        left = await asyncio.to_thread(lambda: list(list_dead_letters(settings)))
        assert sorted(int(letter["offset"]) for letter in left) == [5, 6, 9]
        await publisher.stop()

    async def test_an_erasure_asked_for_is_the_end_of_the_partition(self, broker: Settings, tmp_path: Path) -> None:
        settings, publisher, epoch = await self.on_topics(broker, tmp_path, "erasing-3-")
        assert partition_of(b"u1", 1) == 0

        nothing = await erase_user("u1", settings, publisher.send)

        assert nothing == Erasure("u1", epoch.text, 0, -1)
        await publisher.stop()


def rejected(*records: RecordOf) -> Sequence[Rejected]:
    return [Rejected(one, 0, MalformedEvent("json", "the value is not JSON")) for one in records]
