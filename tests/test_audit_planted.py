"""The ten planted bugs, each made by a real store, real lists and a real broker, and each named by the auditor."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.audit import AuditReport, audit
from engine.catalog import Catalog
from engine.errors import MalformedEvent
from engine.events import ClickEvent, decode_click, encode_click
from engine.log import Epoch, Message, Position, Publisher, topic_epoch
from engine.microbatch import ListMaker, Taken
from engine.recall import decode_list
from engine.settings import Settings
from engine.snapshot import ServingSnapshot
from engine.store.dump import dump_windows
from engine.store.header import StoreHeader, stores_dir
from engine.store.windows import LoggedClick, PartitionStore
from engine.streams.topics import create_topics
from tests.builders import make_click
from tests.served import ITEM_IDS, make_snapshot

pytestmark = pytest.mark.kafka

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


class Engine:
    """The engine's own store, list maker and publisher, driven by hand so that each step can go wrong."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.epoch = asyncio.run(topic_epoch(settings, "clicks"))
        self.stores = {partition: self._open(self.epoch, partition) for partition in range(PARTITIONS)}
        self.snapshot = make_snapshot(activation=1)

    def _open(self, epoch: Epoch, partition: int, *, max_clicks: int = MAX_CLICKS) -> PartitionStore:
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


@pytest.fixture
def engine(broker: Settings, tmp_path: Path) -> Iterator[Engine]:
    settings = broker.model_copy(
        update={
            "topic_prefix": f"{tmp_path.name[-40:]}-",
            "data_dir": tmp_path,
            "window_max_clicks": MAX_CLICKS,
            "clicks_partitions": PARTITIONS,
        }
    )
    asyncio.run(create_topics(settings))
    made = Engine(settings)
    yield made
    made.close()


def test_an_honest_engine_differs_in_nothing_and_every_list_is_compared(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST, bad=["bob"]))
    engine.refresh()
    engine.ingest(engine.send(SECOND))
    half_way = engine.audit()
    engine.refresh()

    report = engine.audit()

    assert half_way.differences == report.differences == []
    assert {name: half_way.lists[name] for name in ("checked", "waiting")} == {"checked": 3, "waiting": 2}
    assert (report.lists["checked"], report.lists["waiting"], report.letters) == (3, 0, 1)


def test_lists_made_after_the_dump_are_no_difference(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh()
    lines = engine.dump()
    engine.ingest(engine.send(SECOND))
    engine.refresh()

    assert engine.found(lines) == set()


def test_a_rollback_to_an_older_version_is_no_difference(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh(snapshot=make_snapshot(activation=2, seed=8))
    engine.ingest(engine.send(SECOND))

    engine.refresh(snapshot=replace(engine.snapshot, activation=3))

    assert engine.found() == set()


def test_one_click_dropped_is_named(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST), change=lambda one: None if one.item_id == ITEM_IDS[3] else one)
    engine.refresh()

    assert {("click_missing", "user 'ann'"), ("list_window", "user 'ann'")} <= engine.found()


def test_a_hidden_item_is_kept_behind_a_windowful_of_clicks_and_named_where_it_is_lost(engine: Engine) -> None:
    hidden = msgspec.structs.replace(click("ann", 11, 0), event_type="hide")
    engine.ingest(engine.send([hidden, *FIRST]))
    engine.refresh()
    assert engine.found() == set()

    again = msgspec.structs.replace(click("bob", 12, 0), event_type="hide")
    engine.ingest(engine.send([again, *SECOND]), change=lambda one: None if one.item_id == ITEM_IDS[12] else one)
    engine.refresh()

    assert engine.found() == {("click_missing", "user 'bob'"), ("list_window", "user 'bob'")}


def test_one_click_applied_to_the_wrong_user_is_named(engine: Engine) -> None:
    def misplace(one: ClickEvent) -> ClickEvent:
        return msgspec.structs.replace(one, user_id="ann") if one.user_id == "cat" else one

    engine.ingest(engine.send(FIRST), change=misplace)

    found = engine.found()

    assert ("window_missing", "user 'cat'") in found
    assert found & {("click_unexpected", "user 'ann'"), ("window_twice", "user 'ann'")}


def test_one_dead_letter_skipped_is_named(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST, bad=["bob"]), letters=False)

    assert {kind for kind, _ in engine.found()} == {"letter_missing"}


def test_the_offset_advanced_early_is_named(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST))
    for partition, store in engine.stores.items():
        places = [one.place for one in engine.send(SECOND) if one.place.partition == partition]
        store.apply([], through_offset=max((place.offset for place in places), default=-1))

    assert ("click_missing", "user 'ann'") in engine.found()


def test_a_lost_trim_is_named(engine: Engine) -> None:
    engine.close()
    engine.stores = {p: engine._open(engine.epoch, p, max_clicks=MAX_CLICKS + 1) for p in range(PARTITIONS)}
    engine.ingest(engine.send(FIRST))
    engine.refresh()

    found = engine.found()

    assert found == {("click_unexpected", "user 'ann'"), ("list_window", "user 'ann'")}


def test_an_erased_user_who_is_back_is_named_in_window_list_and_dead_letter(engine: Engine) -> None:
    sent = engine.send(FIRST, bad=["bob"])
    engine.ingest(sent)
    engine.refresh()
    engine.erase("bob", applied=sent)

    differences = engine.audit().differences

    assert {one.kind for one in differences} == {"erased_back"}
    assert sorted(one.subject.split()[0] for one in differences) == ["clicks", "user", "user"]


def test_an_erased_user_who_is_gone_and_clicks_again_is_no_difference(engine: Engine) -> None:
    sent = engine.send(FIRST, bad=["bob"])
    engine.erase("bob", applied=sent)
    engine.ingest([one for one in sent if one.message.key != b"bob"])
    engine.ingest(engine.send([click("bob", 7, 1), click("bob", 12, 4)]))
    engine.refresh()

    report = engine.audit()

    assert report.differences == []
    assert report.total("erased") == 2


def test_ties_ordered_wrongly_are_named(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST + SECOND))
    lines = engine.dump()
    clicks = next(line["clicks"] for line in lines if line["user_id"] == "ann")
    clicks[-1], clicks[-2] = clicks[-2], clicks[-1]

    assert engine.found(lines) == {("order", "user 'ann'")}


def test_an_older_list_published_after_a_newer_one_is_named(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST))
    older = engine.refresh()
    engine.ingest(engine.send(SECOND))
    engine.refresh()
    engine.publish([one for one in older if one.key == b"ann"])

    assert engine.found() == {("list_older", "user 'ann'")}


def test_a_mark_cleared_before_the_list_was_out_is_named(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh()
    engine.ingest(engine.send(SECOND))
    engine.refresh(publishes=False)

    assert engine.found() == {("list_missing", "user 'ann'"), ("list_missing", "user 'bob'")}


def test_the_mark_of_a_click_that_came_meanwhile_cleared_with_the_others_is_named(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh()
    engine.ingest(engine.send(SECOND))
    for store in engine.stores.values():
        store.settle(store.take_dirty(100), [])  # as if the marks had been of the refresh before

    assert engine.found() == {("list_missing", "user 'ann'"), ("list_missing", "user 'bob'")}


def test_a_list_with_one_versions_value_under_anothers_headers_is_named(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST))

    engine.refresh(change=lambda message: replace(message, headers={**message.headers, "activation": b"2"}))

    assert ("list_version", "user 'ann'") in engine.found()


def test_lists_of_two_versions_under_one_activation_are_named(engine: Engine) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh()
    engine.ingest(engine.send(SECOND))

    engine.refresh(snapshot=replace(make_snapshot(activation=2, seed=8), activation=1))

    assert {kind for kind, _ in engine.found()} == {"list_version"}


def test_items_of_one_version_with_the_interests_of_another_are_named(engine: Engine) -> None:
    def mix(message: Message) -> Message:
        made = decode_list(message.value or b"")
        items = [msgspec.structs.replace(item, interest=99) for item in made.items]
        return replace(message, value=msgspec.json.encode(msgspec.structs.replace(made, items=items)))

    engine.ingest(engine.send(FIRST))
    engine.refresh(change=mix)

    assert ("list_version", "user 'ann'") in engine.found()
