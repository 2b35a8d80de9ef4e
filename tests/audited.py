"""An engine driven by hand, for what the auditor must name: real stores, real lists, a real log."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.audit import AuditReport, audit
from engine.catalog import Catalog
from engine.errors import MalformedEvent
from engine.events import ClickEvent, decode_click, encode_click
from engine.log import Epoch, Message, Position, Publisher, topic_epoch
from engine.microbatch import ListMaker, Taken
from engine.settings import Settings
from engine.snapshot import ServingSnapshot
from engine.store.dump import dump_windows
from engine.store.header import StoreHeader, stores_dir
from engine.store.windows import LoggedClick, PartitionStore
from engine.streams.topics import create_topics
from tests.builders import make_click
from tests.served import ITEM_IDS, make_snapshot

MAX_CLICKS, PARTITIONS = 5, 2
START_MS = time.time_ns() // 1_000_000 - 600_000


@dataclass(frozen=True)
class Sent:
    message: Message
    place: Position


def click(user_id: str, item: int, at_s: int, *, weight: float = 1.0) -> ClickEvent:
    return make_click(user_id=user_id, item_id=ITEM_IDS[item], clicked_at_ms=START_MS + at_s * 1_000, weight=weight)


FIRST = [click("ann", item, item) for item in range(6)] + [click("bob", 7, 1), click("cat", 8, 1)]
"""Ann has one click more than a window holds."""
SECOND = [click("ann", 9, 9), click("ann", 10, 9), click("bob", 11, 3)]
"""Ann's are a tie."""


class HandDrivenEngine:
    """The engine's own store, list maker and publisher, driven by hand so that each step can go wrong."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.epoch = asyncio.run(topic_epoch(settings, "clicks"))
        self.stores = {partition: self.open(self.epoch, partition) for partition in range(PARTITIONS)}
        self.snapshot = make_snapshot(activation=1)

    def open(self, epoch: Epoch, partition: int, *, max_clicks: int = MAX_CLICKS) -> PartitionStore:
        header = StoreHeader(
            epoch.cluster_id, self.settings.topic("clicks"), epoch.topic_id, PARTITIONS, partition, max_clicks
        )
        return PartitionStore.open(stores_dir(self.settings) / f"clicks-{partition}-{max_clicks}", header)

    def close(self) -> None:
        for store in self.stores.values():
            store.close()

    def publish(self, messages: Sequence[Message]) -> list[Position]:
        async def run() -> list[Position]:
            publisher = Publisher(self.settings)
            await publisher.start()
            try:
                return await publisher.send_all(messages)
            finally:
                await publisher.stop()

        return asyncio.run(run())

    def send(self, clicks: Sequence[ClickEvent], *, bad: Sequence[str] = ()) -> list[Sent]:
        topic = self.settings.topic("clicks")
        messages = [Message(topic, encode_click(one), one.user_id.encode()) for one in clicks]
        messages += [Message(topic, b"}{", user_id.encode()) for user_id in bad]
        return [Sent(message, place) for message, place in zip(messages, self.publish(messages), strict=True)]

    def ingest(
        self,
        sent: Sequence[Sent],
        *,
        change: Callable[[ClickEvent], ClickEvent | None] = lambda one: one,
        letters: bool = True,
    ) -> None:
        """Decode, write the letters, and apply; *change* may lose or alter a click on the way."""
        for partition, store in self.stores.items():
            own = [one for one in sent if one.place.partition == partition]
            clicks = [self._decode(one, letters=letters) for one in own]
            kept = [LoggedClick(p.offset, -1, c) for p, o in clicks if o is not None and (c := change(o)) is not None]
            if own:
                store.apply(kept, through_offset=max(one.place.offset for one in own))

    def _decode(self, sent: Sent, *, letters: bool) -> tuple[Position, ClickEvent | None]:
        try:
            value = sent.message.value or b""
            return sent.place, decode_click(
                value,
                key=sent.message.key,
                recorded_at_ms=time.time_ns() // 1_000_000,
                future_tolerance_ms=60_000,
                max_message_bytes=65_536,
            )
        except MalformedEvent:
            key = f"{self.epoch.text}:{self.settings.topic('clicks')}:{sent.place.partition}:{sent.place.offset}"
            if letters:
                self.publish([Message(self.settings.topic("clicks.dead-letters"), b"{}", key.encode())])
            return sent.place, None

    def refresh(
        self,
        *,
        publishes: bool = True,
        change: Callable[[Message], Message] = lambda message: message,
        snapshot: ServingSnapshot | None = None,
    ) -> list[Message]:
        """Make, publish and settle the lists of all who wait, and return them."""
        maker = ListMaker(
            self.settings,
            snapshot or self.snapshot,
            Catalog(self.settings),
            epoch=self.epoch.text,
            now_ms=lambda: START_MS,
        )
        taken = [Taken(partition, store, store.take_dirty(100)) for partition, store in self.stores.items()]
        made = maker.make(taken)
        lists = [change(one) for part in made for one in part.to_messages(self.settings.topic("recall-lists"))]
        if publishes:
            self.publish(lists)
        for part in made:
            part.taken.store.settle(part.taken.batch, part.refreshed)
        return lists

    def erase(self, user_id: str, *, applied: Sequence[Sent]) -> None:
        """Write an erasure of everything that *applied* holds of the user."""
        place = [one.place for one in applied if one.message.key == user_id.encode()][-1]
        event = {"user_id": user_id, "partition": place.partition, "offset": place.offset}
        topic = self.settings.topic("erasures")
        self.publish([Message(topic, json.dumps(event).encode(), user_id.encode())])

    def dump(self) -> list[dict[str, Any]]:
        return list(dump_windows(self.settings))

    def audit(self, lines: list[dict[str, Any]] | None = None) -> AuditReport:
        return audit(self.settings, windows=self.dump() if lines is None else lines, show_ids=True)

    def found(self, lines: list[dict[str, Any]] | None = None) -> set[tuple[str, str]]:
        return {(one.kind, one.subject) for one in self.audit(lines).differences}


def make_engine(broker: Settings, data_dir: Path) -> HandDrivenEngine:
    settings = broker.model_copy(
        update={
            "topic_prefix": f"{data_dir.name[-40:]}-",
            "data_dir": data_dir,
            "window_max_clicks": MAX_CLICKS,
            "clicks_partitions": PARTITIONS,
        }
    )
    asyncio.run(create_topics(settings))
    return HandDrivenEngine(settings)
