"""The refresh loop between real stores, a published model version and a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from engine.catalog import Catalog
from engine.errors import LogError
from engine.events import ClickEvent, ItemEvent, encode_item
from engine.log import Follower, Message, Position, Publisher, Record, topic_epoch
from engine.model import UserInput
from engine.model.registry import Registry
from engine.recall import RecallList, decode_list
from engine.refresh import RefreshLoop
from engine.settings import Settings
from engine.snapshot import ServingSnapshot, SnapshotHolder, load_snapshot
from engine.store.header import StoreHeader
from engine.store.windows import LoggedClick, PartitionStore
from engine.streams import list_watch
from engine.streams.topics import create_topics
from tests.builders import NOON_MS, make_click
from tests.served import make_parts

pytestmark = pytest.mark.kafka

ITEM_IDS = tuple(f"i{number:04d}" for number in range(3_000))
PARTITIONS = 2


class Flaky(Publisher):
    """A real publisher that refuses its first batches."""

    refusals = 0

    async def send_all(self, messages: Sequence[Message]) -> list[Position]:
        if self.refusals:
            self.refusals -= 1
            raise LogError("recall-lists", problem="has no leader", remedy="wait")
        return await super().send_all(messages)


@dataclass
class Engine:
    """What a test drives: clicks go into the stores as ingest puts them, lists come back from the broker."""

    settings: Settings
    stores: dict[int, PartitionStore]
    holder: SnapshotHolder
    loop: RefreshLoop
    publisher: Flaky
    catalog: Catalog
    records: list[Record]

    def click(self, *clicks: ClickEvent, partition: int = 0) -> None:
        store = self.stores[partition]
        first = store.applied_offset + 1
        logged = [LoggedClick(offset, NOON_MS + offset, click) for offset, click in enumerate(clicks, first)]
        store.apply(logged, through_offset=first + len(clicks) - 1)
        self.loop.notify()

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_true():
                await asyncio.sleep(0.02)

    async def settled(self, lists: int) -> None:
        """Wait until so many lists were read back and no mark is left."""
        await self.until(lambda: len(self.records) >= lists and not any(s.count_dirty() for s in self.stores.values()))

    def lists(self) -> list[RecallList]:
        return [decode_list(record.value or b"") for record in self.records]


@asynccontextmanager
async def running(
    broker: Settings, folder: Path, prefix: str, *, version: str = "0001", **changes: object
) -> AsyncIterator[Engine]:
    settings = broker.model_copy(
        update={"topic_prefix": prefix, "data_dir": folder, "clicks_partitions": PARTITIONS, **changes}
    )
    await create_topics(settings)
    epoch = await topic_epoch(settings, "clicks")
    stores = {partition: open_store(folder, epoch.topic_id, partition) for partition in range(PARTITIONS)}
    records: list[Record] = []

    async def keep(read: Sequence[Record]) -> None:
        records.extend(read)

    holder, catalog, publisher = SnapshotHolder(served(settings, version)), Catalog(settings), Flaky(settings)
    follower = Follower(settings, "recall-lists", keep)
    loop = RefreshLoop(settings, holder, catalog, publisher, epoch.text)
    for part in (publisher, catalog, follower, loop):
        await part.start()
    for partition, store in stores.items():
        loop.add_partition(partition, store)
    try:
        yield Engine(settings, stores, holder, loop, publisher, catalog, records)
    finally:
        for part in (loop, follower, catalog, publisher):
            await part.stop()
        for store in stores.values():
            store.close()


def open_store(folder: Path, topic_id: str, partition: int) -> PartitionStore:
    header = StoreHeader("c", "clicks", topic_id, PARTITIONS, partition, max_clicks=50)
    return PartitionStore.open(folder / f"store-{partition}", header)


def served(settings: Settings, version: str, *, activation: int = 1) -> ServingSnapshot:
    """Return the version from the registry, published there if it isn't yet; each number has weights of its own."""
    registry = Registry(settings.registry)
    while version not in registry.list_versions():
        registry.publish(make_parts(ITEM_IDS, seed=len(registry.list_versions())), created_at_ms=NOON_MS)
    return load_snapshot(settings, version, activation)


def random_windows(users: int) -> list[ClickEvent]:
    drawn = np.random.default_rng(7)
    return [
        make_click(user_id=f"u{user:03d}", item_id=ITEM_IDS[row], clicked_at_ms=NOON_MS + place)
        for user in range(users)
        for place, row in enumerate(drawn.integers(len(ITEM_IDS), size=drawn.integers(1, 50)).tolist())
    ]


async def test_clicks_are_reflected_in_acknowledged_lists_and_their_marks_are_gone(
    broker: Settings, tmp_path: Path
) -> None:
    async with running(broker, tmp_path, "refresh-1-") as engine:
        engine.click(make_click(user_id="a", item_id="i0001"), make_click(user_id="b", item_id="i0002"), partition=0)
        engine.click(make_click(user_id="c", item_id="i0003"), partition=1)
        await engine.settled(3)

        found = {one.user_id: (record, one) for record, one in zip(engine.records, engine.lists(), strict=True)}
        assert {user: record.partition for user, (record, _) in found.items()} == {"a": 0, "b": 0, "c": 1}
        assert all(record.key == user.encode() for user, (record, _) in found.items())
        record, made = found["b"]
        assert [click.item_id for click in made.window] == ["i0002"]
        assert [click.item_id for click in made.interests[0].clicks] == ["i0002"]
        assert (made.as_of_ms, made.accepted_at_ms, made.window_offset) == (NOON_MS, NOON_MS + 1, 1)
        assert (made.model_version, made.activation, made.source) == ("0001", 1, "personal")
        assert len(made.items) == engine.settings.list_size
        assert "i0002" not in {item.item_id for item in made.items}
        assert record.headers == {"epoch": made.epoch.encode(), "window_offset": b"1", "activation": b"1"}


async def test_click_during_a_refresh_gets_a_list_of_its_own(broker: Settings, tmp_path: Path) -> None:
    async with running(broker, tmp_path, "refresh-2-") as engine:
        for place in range(30):  # some of these find a micro-batch in flight
            engine.click(make_click(user_id="a", item_id=ITEM_IDS[place], clicked_at_ms=NOON_MS + place))
            await asyncio.sleep(0.003)
        await engine.until(lambda: bool(engine.records) and engine.lists()[-1].window_offset == 29)
        await engine.settled(1)

        made = engine.lists()
    assert [one.window_offset for one in made] == sorted({one.window_offset for one in made})
    assert [click.item_id for click in made[-1].window] == list(ITEM_IDS[:30])


async def test_swap_refreshes_all_lists_under_the_new_version(broker: Settings, tmp_path: Path) -> None:
    async with running(broker, tmp_path, "refresh-3-") as engine:
        engine.click(*random_windows(40))
        await engine.settled(40)
        engine.holder.swap(served(engine.settings, "0002", activation=2))
        engine.loop.notify()
        await engine.settled(80)

        before, after = engine.lists()[:40], engine.lists()[40:]
    assert {one.user_id for one in after} == {one.user_id for one in before}
    assert {(one.model_version, one.activation, one.accepted_at_ms) for one in after} == {("0002", 2, None)}


async def test_list_re_scored_with_its_own_versions_vectors_agrees(broker: Settings, tmp_path: Path) -> None:
    async with running(broker, tmp_path, "refresh-4-") as engine:
        engine.click(*random_windows(40))
        await engine.settled(40)

        snapshot = engine.holder.current
        assert snapshot is not None
        assert snapshot.model is not None
        assert [rescored(snapshot, one) for one in engine.lists()] == [
            pytest.approx([item.score for item in one.items], abs=1e-4) for one in engine.lists()
        ]


def rescored(snapshot: ServingSnapshot, made: RecallList) -> list[float]:
    assert snapshot.model is not None
    interests = snapshot.model.interests([UserInput([click.item_id for click in made.window])]).vectors[0]
    ids, vectors = snapshot.model.all_item_vectors()
    rows = {item_id: row for row, item_id in enumerate(ids)}
    return [float(interests[item.interest or 0] @ vectors[rows[item.item_id]]) for item in made.items]


async def test_removed_item_on_the_items_topic_leaves_the_next_list(broker: Settings, tmp_path: Path) -> None:
    async with running(broker, tmp_path, "refresh-5-") as engine:
        engine.click(make_click(user_id="a", item_id="i0001"))
        await engine.settled(1)
        best = engine.lists()[0].items[0].item_id
        value = encode_item(ItemEvent(item_id=best, removed=True))
        await engine.publisher.send(Message(engine.settings.topic("items"), value, key=best.encode()))
        await engine.until(lambda: not engine.catalog.is_available(best))
        engine.click(make_click(user_id="a", item_id="i0001", clicked_at_ms=NOON_MS + 1))
        await engine.settled(2)

        assert best not in {item.item_id for item in engine.lists()[1].items}
        assert len(engine.lists()[1].items) == engine.settings.list_size


async def test_failed_publication_gives_its_users_back_and_is_repeated(broker: Settings, tmp_path: Path) -> None:
    async with running(broker, tmp_path, "refresh-6-") as engine:
        engine.publisher.refusals = 2
        engine.click(make_click(user_id="a", item_id="i0001"))
        await engine.settled(1)

        assert engine.lists()[0].accepted_at_ms == NOON_MS


async def test_graph_and_exact_index_make_lists_that_agree_to_at_least_098(broker: Settings, tmp_path: Path) -> None:
    clicks = random_windows(100)
    by_backend: dict[str, dict[str, list[str]]] = {}
    for backend in ("hnsw", "exact"):
        folder, prefix = tmp_path / backend, f"refresh-{backend}-"
        registry_url = str(tmp_path / "models")
        async with running(broker, folder, prefix, index_backend=backend, registry_url=registry_url) as engine:
            engine.click(*clicks)
            await engine.settled(100)
            by_backend[backend] = {one.user_id: [item.item_id for item in one.items] for one in engine.lists()}

    shares = [len({*by_backend["hnsw"][user]} & {*exact}) / len(exact) for user, exact in by_backend["exact"].items()]
    assert len(shares) == 100
    assert np.mean(shares) >= 0.98


async def test_list_of_an_engine_that_lost_the_partition_is_overwritten_by_a_newer_one(
    broker: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_watch, "PATIENCE_S", 0.5)
    monkeypatch.setattr(list_watch, "EVERY_S", 0.1)
    async with running(broker, tmp_path, "refresh-8-") as engine:
        epoch = (await topic_epoch(engine.settings, "clicks")).text
        failures: list[BaseException] = []
        watch = list_watch.ListWatch(
            engine.settings, epoch, lambda: engine.stores, engine.loop.notify, on_failure=failures.append
        )
        watching = asyncio.create_task(watch.keep())
        watch.begin()
        engine.click(make_click(user_id="a", item_id="i0001"), make_click(user_id="b", item_id="i0002"))
        await engine.settled(2)
        old = engine.records[0]
        engine.click(make_click(user_id="a", item_id="i0003", clicked_at_ms=NOON_MS + 1))
        await engine.settled(3)

        await engine.publisher.send(Message(old.topic, old.value, old.key, old.headers, old.partition))
        await engine.settled(5)
        await asyncio.sleep(1.0)  # what was healed isn't healed again
        watching.cancel()

    users = [(made.user_id, len(made.window), made.window_offset) for made in engine.lists()]
    assert not failures
    assert users[2:] == [("a", 2, 2), ("a", 1, 1), ("a", 2, 2)]
