"""An intake with everything around it, and a log in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import REGISTRY

from engine.errors import LogError
from engine.events import ClickEvent, encode_click
from engine.log import Epoch, Message, Position, Publisher
from engine.log.partitioning import partition_of
from engine.settings import Settings
from engine.store.recovery import Bounds
from engine.store.windows import PartitionStore
from engine.streams.batches import ClickBatch
from engine.streams.clicks import Ingest
from engine.streams.dead_letters import DeadLetters
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
        self.settings, self.log, self.refresh = settings, MemoryLog(settings), Refresh()
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


def record(offset: int, click: ClickEvent | None = None) -> RecordOf:
    click = click or make_click(item_id=f"i{offset}", clicked_at_ms=NOON_MS - 1_000 + offset)
    return RecordOf(offset, encode_click(click), click.user_id.encode())


def counted(metric: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(metric, labels) or 0.0
