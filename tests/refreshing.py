"""A refresh loop over real stores and a log that keeps what is published; for the tests of refreshing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from prometheus_client import Histogram

from engine.catalog import Catalog
from engine.errors import DamagedStore
from engine.events import ClickEvent, ItemEvent, encode_item
from engine.log import Message, Position, Publisher, Record
from engine.metrics import (
    CLICK_TO_LIST,
)
from engine.model import InterestModel, MindConfig, Vocabulary
from engine.model.network import MindNetwork
from engine.model.vocabulary import Field
from engine.recall import RecallList, decode_list
from engine.refresh import RefreshLoop
from engine.settings import Settings
from engine.snapshot import ServingSnapshot, SnapshotHolder
from engine.store.header import StoreHeader
from engine.store.windows import LoggedClick, PartitionStore
from tests.builders import NOON_MS, make_click
from tests.served import ITEM_IDS

NOW_MS = NOON_MS + 60_000
SETTINGS = Settings(list_size=50, refresh_wait_ms=0)


class Log(Publisher):
    """Keeps what is published instead of sending it; *on_send* happens before the acknowledgement."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.messages: list[Message] = []
        self.batches: list[list[str]] = []
        self.on_send: list[Callable[[], None]] = []
        self.acknowledges = asyncio.Event()
        self.acknowledges.set()
        self.sending = asyncio.Event()

    async def send_all(self, messages: Sequence[Message]) -> list[Position]:
        self.sending.set()
        await self.acknowledges.wait()
        if self.on_send:
            self.on_send.pop(0)()
        self.messages += messages
        self.batches.append([decode(message).user_id for message in messages])
        return [Position(message.partition or 0, 0) for message in messages]


def decode(message: Message) -> RecallList:
    assert message.value is not None
    return decode_list(message.value)


@dataclass
class Engine:
    """A running refresh loop over real stores."""

    stores: dict[int, PartitionStore]
    holder: SnapshotHolder
    catalog: Catalog
    log: Log
    loop: RefreshLoop
    offsets: dict[int, int] = field(default_factory=dict)

    def click(self, *clicks: ClickEvent, partition: int = 0) -> None:
        """Apply *clicks* as ingest does and notify."""
        store = self.stores[partition]
        first = store.applied_offset + 1
        logged = [LoggedClick(offset, NOON_MS + offset, click) for offset, click in enumerate(clicks, first)]
        store.apply(logged, through_offset=first + len(clicks) - 1)
        self.loop.notify()

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not is_true():
                await asyncio.sleep(0.005)

    def has_settled(self) -> bool:
        """Nobody waits and no batch is in flight."""
        current = self.holder.current
        return all(
            store.count_dirty() == 0
            and (current is None or store.count_behind(current.activation) == 0)
            and not store._outstanding
            for store in self.stores.values()
        )

    async def settled(self) -> None:
        await self.until(self.has_settled)

    def lists(self) -> list[RecallList]:
        return [decode(message) for message in self.log.messages]

    def list_of(self, user_id: str) -> RecallList:
        return next(one for one in reversed(self.lists()) if one.user_id == user_id)


@asynccontextmanager
async def running(
    folder: Path,
    snapshot: ServingSnapshot | None,
    *,
    settings: Settings = SETTINGS,
    partitions: int = 1,
    check_pulse: Callable[[], None] = lambda: None,
    on_damage: Callable[[DamagedStore], None] = lambda _error: None,
) -> AsyncIterator[Engine]:
    stores = {
        partition: PartitionStore.open(
            folder / f"{partition}",
            StoreHeader(cluster_id="c", topic="clicks", topic_id="t", partitions=4, partition=partition, max_clicks=20),
        )
        for partition in range(partitions)
    }
    holder, catalog, log = SnapshotHolder(snapshot), Catalog(settings), Log(settings)
    loop = RefreshLoop(
        settings,
        holder,
        catalog,
        log,
        "epoch-1",
        now_ms=lambda: NOW_MS,
        check_pulse=check_pulse,
        on_damage=on_damage,
    )
    for partition, store in stores.items():
        loop.add_partition(partition, store)
    await loop.start()
    try:
        yield Engine(stores, holder, catalog, log, loop)
    finally:
        log.acknowledges.set()
        await loop.stop()
        for store in stores.values():
            store.close()


def clicks(user_id: str, *item_ids: str, first_ms: int = NOON_MS) -> list[ClickEvent]:
    return [
        make_click(user_id=user_id, item_id=item_id, clicked_at_ms=at) for at, item_id in enumerate(item_ids, first_ms)
    ]


def sample_sum(name: str = "count", *, metric: Histogram = CLICK_TO_LIST) -> float:
    return next(s.value for s in next(iter(metric.collect())).samples if s.name.endswith(name))


# --- one user


def with_profile(snapshot: ServingSnapshot, attribute: str, *values: str) -> ServingSnapshot:
    """Return *snapshot* with a model of the same items that knows these values of *attribute*."""
    torch.manual_seed(7)
    vocabulary = Vocabulary(ITEM_IDS, profile_fields=(Field.of(attribute, values),))
    field_rows = torch.zeros(len(ITEM_IDS) + 1, 0, dtype=torch.int64)
    config = MindConfig(dimensions=16, hidden=(16,), residual=False)
    return replace(snapshot, model=InterestModel(MindNetwork(config, vocabulary, field_rows), vocabulary))


def item_record(item: ItemEvent) -> Record:
    return Record("items", 0, 0, NOON_MS, item.item_id.encode(), encode_item(item), {})


# --- marks
