from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import Histogram
from structlog.testing import capture_logs

from engine import microbatch, refresh
from engine.catalog import Catalog
from engine.errors import DamagedStore, EngineFrozen, LogError
from engine.events import ClickEvent, ItemEvent, encode_item
from engine.log import Message, Position, Publisher, Record
from engine.logs import user_tag
from engine.metrics import (
    CLICK_TO_INTERESTS,
    CLICK_TO_LIST,
    DIRTY_USERS,
    LISTS_FAILED,
    LISTS_ON_CURRENT_VERSION,
    RECALL_AUDIT,
    REFRESH_FAILURES,
    UNKNOWN_ITEMS,
)
from engine.model import InterestModel, Interests, MindConfig, UserInput, Vocabulary
from engine.model.mind import MindNetwork
from engine.model.vocabulary import Field
from engine.recall import RecallList, decode_list
from engine.refresh import RefreshLoop
from engine.settings import Settings
from engine.snapshot import ServingSnapshot, SnapshotHolder
from engine.store.header import StoreHeader
from engine.store.scans import DirtyBatch
from engine.store.windows import LoggedClick, PartitionStore
from engine.window import BehaviorWindow
from tests.builders import NOON_MS, make_click
from tests.served import ITEM_IDS, make_model, make_popular_snapshot, make_snapshot

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


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "BACK_OFF_S", (0.01, 0.02))
    monkeypatch.setattr(refresh, "IDLE_S", 0.05)


def clicks(user_id: str, *item_ids: str, first_ms: int = NOON_MS) -> list[ClickEvent]:
    return [
        make_click(user_id=user_id, item_id=item_id, clicked_at_ms=at) for at, item_id in enumerate(item_ids, first_ms)
    ]


def sample_sum(name: str = "count", *, metric: Histogram = CLICK_TO_LIST) -> float:
    return next(s.value for s in next(iter(metric.collect())).samples if s.name.endswith(name))


# --- one user


async def test_click_becomes_a_list_that_carries_its_window(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot(activation=3)) as engine:
        engine.click(*clicks("u1", "i001", "i002", "i003"))
        await engine.settled()

        made = engine.list_of("u1")
    assert [click.item_id for click in made.window] == ["i001", "i002", "i003"]
    assert (made.as_of_ms, made.accepted_at_ms, made.computed_at_ms) == (NOON_MS + 2, NOON_MS, NOW_MS)
    assert (made.window_offset, made.activation, made.epoch, made.model_version) == (2, 3, "epoch-1", "0003")
    assert made.source == "personal"


async def test_list_is_full_and_leaves_out_the_window(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", *ITEM_IDS[:20]))
        await engine.settled()

        listed = [item.item_id for item in engine.list_of("u1").items]
    assert len(set(listed)) == 50
    assert not set(listed) & set(ITEM_IDS[:20])


async def test_every_item_names_an_interest_and_every_interest_the_clicks_that_formed_it(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", *ITEM_IDS[:20]))
        await engine.settled()

        made = engine.list_of("u1")
    numbers = {interest.interest for interest in made.interests}
    assert {item.interest for item in made.items} == numbers
    assert sum(interest.weight for interest in made.interests) == pytest.approx(1.0, abs=1e-5)
    assert all(click.item_id in ITEM_IDS[:20] for interest in made.interests for click in interest.clicks)


async def test_short_window_has_one_interest_and_only_that_one_searches(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()

        made = engine.list_of("u1")
    assert [interest.interest for interest in made.interests] == [0]
    assert {item.interest for item in made.items} == {0}


async def test_list_goes_to_the_partition_of_the_clicks_with_its_order_in_the_headers(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot(activation=9), partitions=3) as engine:
        engine.click(*clicks("u1", "i001"), partition=2)
        await engine.settled()

        (message,) = engine.log.messages
    assert (message.topic, message.key, message.partition) == ("recall-lists", b"u1", 2)
    assert message.headers == {"epoch": b"epoch-1", "window_offset": b"0", "activation": b"9"}


async def test_disliked_and_hidden_items_form_no_interest_and_are_never_listed(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"exclude_seen": False})
    async with running(tmp_path, make_snapshot(), settings=settings) as engine:
        engine.click(*clicks("u1", "i001", "i002"))
        await engine.settled()
        liked = engine.list_of("u1")
        unwanted = [item.item_id for item in liked.items[:2]]
        engine.click(
            make_click(user_id="u1", item_id=unwanted[0], clicked_at_ms=NOON_MS + 10, event_type="dislike"),
            make_click(user_id="u1", item_id=unwanted[1], clicked_at_ms=NOON_MS + 11, event_type="hide"),
        )
        await engine.until(lambda: len(engine.log.messages) == 2)

        after = engine.list_of("u1")
    assert after.interests == liked.interests
    assert not {item.item_id for item in after.items} & set(unwanted)
    assert [click.event_type for click in after.window] == ["click", "click", "dislike", "hide"]


async def test_unavailable_items_leave_the_next_list_and_it_stays_full(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()
        gone = [item.item_id for item in engine.list_of("u1").items[:30]]
        await engine.catalog.apply([item_record(ItemEvent(item_id=item_id, available=False)) for item_id in gone])
        engine.click(*clicks("u1", "i002", first_ms=NOON_MS + 10))
        await engine.until(lambda: len(engine.log.messages) == 2)

        listed = [item.item_id for item in engine.list_of("u1").items]
    assert len(listed) == 50
    assert not set(listed) & set(gone)


async def test_list_stays_full_when_nearly_everything_near_is_unavailable(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"list_size": 20, "window_max_clicks": 1})
    async with running(tmp_path, make_snapshot(), settings=settings) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()
        near = [item.item_id for item in engine.list_of("u1").items]
        # The nearest go, the rest stays: the search for a few more items than asked finds too few of them.
        everything = make_snapshot().item_ids
        await engine.catalog.apply([item_record(ItemEvent(item_id=item_id, removed=True)) for item_id in near])
        engine.click(*clicks("u1", "i001", first_ms=NOON_MS + 10))
        await engine.until(lambda: len(engine.log.messages) == 2)

        listed = {item.item_id for item in engine.list_of("u1").items}
    assert len(listed) == 20
    assert listed <= set(everything) - set(near)


async def test_click_on_a_removed_item_forms_no_interest_and_stays_in_the_window(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        await engine.catalog.apply([item_record(ItemEvent(item_id="i002", removed=True))])
        engine.click(
            *clicks("u1", "i001", "i002", "i003", "i004", "i005"), *clicks("u2", "i001", "i003", "i004", "i005")
        )
        await engine.settled()

        made, without = engine.list_of("u1"), engine.list_of("u2")
    assert [click.item_id for click in made.window] == ["i001", "i002", "i003", "i004", "i005"]
    named = {click.item_id for interest in made.interests for click in interest.clicks}
    assert named == {"i001", "i003", "i004", "i005"}
    assert made.interests == without.interests
    assert "i002" not in {item.item_id for item in made.items}


async def test_click_on_an_item_that_is_not_available_still_forms_interests(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        await engine.catalog.apply([item_record(ItemEvent(item_id="i002", available=False))])
        engine.click(*clicks("u1", "i001", "i002"))
        await engine.settled()

        made = engine.list_of("u1")
    assert {click.item_id for interest in made.interests for click in interest.clicks} == {"i001", "i002"}


async def test_user_of_nothing_but_removed_items_has_no_list(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        await engine.catalog.apply([item_record(ItemEvent(item_id="i001", removed=True))])
        engine.click(*clicks("u1", "i001"), *clicks("u2", "i002"))
        await engine.settled()

        assert [one.user_id for one in engine.lists()] == ["u2"]


async def test_clicks_on_unknown_and_removed_items_are_counted_in_every_refreshed_window(tmp_path: Path) -> None:
    before = UNKNOWN_ITEMS._value.get()

    def fail() -> None:
        raise LogError("recall-lists", problem="has no leader", remedy="wait")

    async with running(tmp_path, make_snapshot()) as engine:
        await engine.catalog.apply([item_record(ItemEvent(item_id="i003", removed=True))])
        engine.log.on_send.append(fail)  # a micro-batch that is given back counts nothing
        engine.click(*clicks("u1", "i001", "new-1", "new-1", "i003"), *clicks("u2", "i002"))
        await engine.settled()
        assert UNKNOWN_ITEMS._value.get() - before == 3

        engine.click(*clicks("u1", "i004", first_ms=NOON_MS + 10))
        await engine.settled()
        assert UNKNOWN_ITEMS._value.get() - before == 6


async def test_profile_attributes_that_the_model_knows_reach_it(tmp_path: Path) -> None:
    async with running(tmp_path, with_profile(make_snapshot(), "country", "FR", "DE")) as engine:
        for user, country in (("u1", "FR"), ("u2", "DE"), ("u3", "DE")):
            engine.click(make_click(user_id=user, item_id="i001", profile={"country": country, "shoe": user}))
        await engine.settled()

        scores = {user: [item.score for item in engine.list_of(user).items] for user in ("u1", "u2", "u3")}
    assert scores["u1"] != pytest.approx(scores["u2"], abs=1e-4)
    assert scores["u2"] == pytest.approx(scores["u3"], abs=1e-4)


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


async def test_click_that_comes_while_its_user_is_refreshed_gets_a_list_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.log.on_send.append(lambda: engine.click(*clicks("u1", "i002", first_ms=NOON_MS + 10)))
        engine.click(*clicks("u1", "i001"))
        await engine.until(lambda: len(engine.log.messages) == 2)
        await engine.settled()

        first, second = engine.lists()
    assert [click.item_id for click in first.window] == ["i001"]
    assert [click.item_id for click in second.window] == ["i001", "i002"]
    assert (first.accepted_at_ms, second.accepted_at_ms) == (NOON_MS, NOON_MS + 1)


async def test_publisher_that_fails_leaves_the_marks_and_the_lists_come_later(tmp_path: Path) -> None:
    failures = REFRESH_FAILURES._value.get()

    def fail() -> None:
        raise LogError("recall-lists", problem="has no leader", remedy="wait")

    async with running(tmp_path, make_snapshot()) as engine:
        engine.log.on_send += [fail, fail]
        engine.click(*clicks("u1", "i001"), *clicks("u2", "i002"))
        await engine.settled()

        assert sorted(one.user_id for one in engine.lists()) == ["u1", "u2"]
        assert engine.list_of("u1").accepted_at_ms == NOON_MS
    assert REFRESH_FAILURES._value.get() - failures == 2


async def test_an_engine_that_was_frozen_publishes_nothing_and_keeps_its_marks(tmp_path: Path) -> None:
    checked = asyncio.Event()

    def check_pulse() -> None:
        checked.set()
        raise EngineFrozen(14.0, longest_s=6.0)

    async with running(tmp_path, make_snapshot(), check_pulse=check_pulse) as engine:
        engine.click(*clicks("u1", "i001"))
        await checked.wait()
        await engine.loop.stop()

        assert engine.log.messages == []
        assert engine.stores[0].count_dirty() == 1


async def test_marks_survive_a_stop_before_the_acknowledgement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "STOP_WITHIN_S", 0.05)
    async with running(tmp_path, make_snapshot()) as engine:
        engine.log.acknowledges.clear()
        engine.click(*clicks("u1", "i001"))
        await engine.log.sending.wait()
        await engine.loop.stop()

        assert engine.stores[0].count_dirty() == 1
        assert engine.log.messages == []


async def test_stop_finishes_the_batch_in_flight(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.log.acknowledges.clear()
        engine.click(*clicks("u1", "i001"))
        await engine.log.sending.wait()
        stopping = asyncio.create_task(engine.loop.stop())
        await asyncio.sleep(0.05)
        engine.log.acknowledges.set()
        await stopping

        assert engine.has_settled()
        assert len(engine.log.messages) == 1


async def test_partition_is_given_up_only_after_the_batch_in_flight(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.log.acknowledges.clear()
        engine.click(*clicks("u1", "i001"))
        await engine.log.sending.wait()
        removing = asyncio.create_task(engine.loop.remove_partition(0))
        await asyncio.sleep(0.05)
        assert not removing.done()
        engine.log.acknowledges.set()
        await removing

        assert engine.has_settled()
        engine.click(*clicks("u1", "i002", first_ms=NOON_MS + 10))
        await asyncio.sleep(0.2)
        assert engine.stores[0].count_dirty() == 1


# --- versions


async def test_marks_wait_for_the_first_trained_model(tmp_path: Path) -> None:
    async with running(tmp_path, make_popular_snapshot()) as engine:
        engine.click(*clicks("u1", "i001"))
        await asyncio.sleep(0.2)
        assert (engine.log.messages, engine.stores[0].count_dirty()) == ([], 1)
        assert DIRTY_USERS._value.get() == 1

        engine.holder.swap(make_snapshot(activation=1))
        engine.loop.notify()
        await engine.settled()

        assert engine.list_of("u1").model_version == "0001"


async def test_swap_refreshes_every_list_most_recently_active_first(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"refresh_batch_size": 4})  # the sweep takes one user at a time
    async with running(tmp_path, make_snapshot(activation=1), settings=settings) as engine:
        for user, at in (("u1", 1_000), ("u2", 3_000), ("u3", 2_000)):
            engine.click(*clicks(user, "i001", "i002", first_ms=at))
        await engine.settled()
        engine.log.messages.clear()

        engine.holder.swap(make_snapshot(activation=2, seed=8))
        engine.loop.notify()
        await engine.settled()
        await engine.until(lambda: LISTS_ON_CURRENT_VERSION._value.get() == 1.0)

        swept = engine.lists()
    assert [one.user_id for one in swept] == ["u2", "u3", "u1"]
    assert {(one.activation, one.model_version, one.accepted_at_ms) for one in swept} == {(2, "0002", None)}


async def test_sweep_is_not_counted_as_freshness(tmp_path: Path) -> None:
    before = sample_sum()
    async with running(tmp_path, make_snapshot(activation=1)) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()
        engine.holder.swap(make_snapshot(activation=2))
        engine.loop.notify()
        await engine.settled()

        assert len(engine.log.messages) == 2
    assert sample_sum() - before == 1


async def test_live_click_during_a_sweep_waits_for_one_small_batch_at_most(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"refresh_batch_size": 8})  # the sweep takes two users at a time
    async with running(tmp_path, make_snapshot(activation=1), settings=settings) as engine:
        engine.click(*(make_click(user_id=f"u{n:02d}", item_id="i001", clicked_at_ms=NOON_MS + n) for n in range(20)))
        await engine.settled()
        engine.log.batches.clear()
        engine.log.on_send += [lambda: None, lambda: engine.click(*clicks("new", "i002"))]
        engine.holder.swap(make_snapshot(activation=2))
        engine.loop.notify()
        await engine.settled()

    assert engine.log.batches[2] == ["new"]
    assert [len(batch) for batch in engine.log.batches] == [2, 2, 1] + [2] * 8


async def test_backlog_of_live_clicks_leaves_the_sweep_its_share(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"refresh_batch_size": 4})
    async with running(tmp_path, make_snapshot(activation=1), settings=settings) as engine:
        engine.click(*clicks("old", "i001"))
        await engine.settled()
        engine.log.batches.clear()
        engine.holder.swap(make_popular_snapshot(activation=2))
        engine.click(*(make_click(user_id=f"u{n:02d}", item_id="i001") for n in range(20)))
        engine.holder.swap(make_snapshot(activation=3))
        engine.loop.notify()
        await engine.settled()

    assert ["old"] in engine.log.batches[:2]


async def test_user_of_unknown_items_has_no_list_until_a_version_knows_them(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot(activation=1)) as engine:
        engine.click(*clicks("u1", "brand-new"), *clicks("u2", "i001"))
        await engine.settled()
        assert [one.user_id for one in engine.lists()] == ["u2"]

        engine.holder.swap(make_snapshot((*ITEM_IDS, "brand-new"), activation=2))
        engine.loop.notify()
        await engine.settled()

        assert engine.list_of("u1").activation == 2


async def test_user_who_clicks_nothing_but_unknown_items_never_gets_a_list(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot(activation=1)) as engine:
        for at in range(3):
            engine.click(*clicks("u1", f"new-{at}", first_ms=NOON_MS + at))
            await engine.settled()
        engine.holder.swap(make_snapshot(activation=2))
        engine.loop.notify()
        await engine.settled()

        assert engine.lists() == []
        assert engine.stores[0].count_lists(2) == (0, 0)


async def test_list_once_emptied_follows_the_user_and_the_versions(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot(activation=1)) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()
        engine.holder.swap(make_snapshot(ITEM_IDS[100:], activation=2))
        engine.loop.notify()
        await engine.settled()

        engine.click(*clicks("u1", "new", first_ms=NOON_MS + 10))
        await engine.settled()

        assert [(one.activation, one.window_offset, len(one.window)) for one in engine.lists()[1:]] == [
            (2, 0, 1),
            (2, 1, 2),
        ]
        assert engine.stores[0].count_lists(2) == (1, 1)


async def test_list_of_a_version_that_knew_the_users_items_does_not_outlive_it(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot(activation=1)) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()

        engine.holder.swap(make_snapshot(ITEM_IDS[100:], activation=2))
        engine.loop.notify()
        await engine.settled()

        emptied = engine.list_of("u1")
    assert (emptied.activation, emptied.items, emptied.interests) == (2, [], [])
    assert [click.item_id for click in emptied.window] == ["i001"]


async def test_window_that_lost_its_last_known_click_empties_the_list(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()
        timed = sample_sum(metric=CLICK_TO_INTERESTS)

        engine.click(*clicks("u1", *(f"new-{n:02d}" for n in range(20)), first_ms=NOON_MS + 10))
        await engine.settled()

        assert (engine.list_of("u1").items, engine.list_of("u1").window_offset) == ([], 20)
    assert sample_sum(metric=CLICK_TO_INTERESTS) == timed, "no interests were made"


# --- many users


async def test_list_does_not_depend_on_who_else_is_in_the_batch(tmp_path: Path) -> None:
    windows = {f"u{n}": ITEM_IDS[n : n + 3 + n % 15] for n in range(30)}
    snapshot = make_snapshot()
    together, alone = tmp_path / "together", tmp_path / "alone"
    async with running(together, snapshot) as engine:
        engine.click(*(click for user, items in windows.items() for click in clicks(user, *items)))
        await engine.settled()
        in_company = [item for user in windows for item in engine.list_of(user).items]
    async with running(alone, snapshot) as engine:
        for user, items in windows.items():
            engine.click(*clicks(user, *items))
            await engine.settled()
        by_itself = [item for user in windows for item in engine.list_of(user).items]

    assert [(item.item_id, item.interest) for item in in_company] == [(i.item_id, i.interest) for i in by_itself]
    # torch sums a batch of another size in another order, so the last bits may differ.
    assert [item.score for item in in_company] == pytest.approx([item.score for item in by_itself], abs=1e-4)


async def test_every_partition_of_a_backlog_gets_its_share_of_a_batch(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"refresh_batch_size": 6})
    async with running(tmp_path, None, settings=settings, partitions=3) as engine:
        for partition, users in ((0, 20), (1, 20), (2, 1)):
            engine.click(
                *(make_click(user_id=f"p{partition}-{n}", item_id="i001") for n in range(users)), partition=partition
            )
        engine.holder.swap(make_snapshot())
        engine.loop.notify()
        await engine.settled()

    assert [user[:2] for user in sorted(engine.log.batches[0])] == ["p0"] * 2 + ["p1"] * 3 + ["p2"]


async def test_sampled_searches_are_audited_against_exact_search(tmp_path: Path) -> None:
    RECALL_AUDIT.set(0)
    async with running(tmp_path, make_snapshot(backend="exact")) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()

    assert RECALL_AUDIT._value.get() == 1.0


# --- windows that no list can be made of


class FragileModel:
    """A model that stumbles over one item, and over everything once it is `broken`."""

    def __init__(self, item_id: str, *, answers_nan: bool = False) -> None:
        self._sound, self._item_id, self._answers_nan = make_model(), item_id, answers_nan
        self.vocabulary, self.config = self._sound.vocabulary, self._sound.config
        self.is_broken = False

    def interests(self, users: Sequence[UserInput]) -> Interests:
        stumbles = [self._item_id in user.item_ids for user in users]
        if self.is_broken or (any(stumbles) and not self._answers_nan):
            raise ZeroDivisionError("float division by zero")
        found = self._sound.interests(users)
        found.vectors[np.array(stumbles)] *= np.float32(np.nan)
        return found


def make_fragile(
    item_id: str = "i013", *, activation: int = 1, answers_nan: bool = False
) -> tuple[ServingSnapshot, FragileModel]:
    model: Any = FragileModel(item_id, answers_nan=answers_nan)
    return replace(make_snapshot(activation=activation), model=model), model


@pytest.mark.parametrize("answers_nan", [False, True], ids=["raises", "answers NaN"])
async def test_window_that_the_model_stumbles_over_costs_nobody_else_a_list(tmp_path: Path, answers_nan: bool) -> None:
    failed, given_back = LISTS_FAILED._value.get(), REFRESH_FAILURES._value.get()
    snapshot, _ = make_fragile(answers_nan=answers_nan)
    with capture_logs() as logs:
        async with running(tmp_path, snapshot) as engine:
            engine.click(*clicks("u1", "i001"), *clicks("u2", "i001", "i013"), *clicks("u3", "i002"))
            await engine.settled()

            assert sorted(one.user_id for one in engine.lists()) == ["u1", "u3"]
    assert (LISTS_FAILED._value.get() - failed, REFRESH_FAILURES._value.get() - given_back) == (1, 0)
    told = [line for line in logs if line["event"] == "list_failed"]
    assert [line["user"] for line in told] == [user_tag(SETTINGS, "u2")]
    assert "u2" not in str(logs)


async def test_user_given_up_is_tried_again_with_the_next_click_and_under_the_next_version(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"window_max_clicks": 20})
    snapshot, _ = make_fragile()
    async with running(tmp_path, snapshot, settings=settings) as engine:
        engine.click(*clicks("u1", "i013"), *clicks("u2", "i013"))
        await engine.settled()
        assert engine.lists() == []

        engine.click(*clicks("u1", *ITEM_IDS[20:40], first_ms=NOON_MS + 10))  # i013 leaves the window of u1
        await engine.settled()
        assert [one.user_id for one in engine.lists()] == ["u1"]

        engine.holder.swap(make_snapshot(activation=2))
        engine.loop.notify()
        await engine.settled()
        assert engine.list_of("u2").activation == 2


async def test_sweep_ends_although_the_new_version_stumbles_over_a_window(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"refresh_batch_size": 4})
    async with running(tmp_path, make_snapshot(activation=1), settings=settings) as engine:
        engine.click(*clicks("u1", "i001"), *clicks("u2", "i013", first_ms=NOON_MS + 10), *clicks("u3", "i002"))
        await engine.settled()
        engine.log.messages.clear()

        engine.holder.swap(make_fragile(activation=2)[0])
        engine.loop.notify()
        await engine.settled()

        assert sorted(one.user_id for one in engine.lists()) == ["u1", "u3"]


async def test_model_that_fails_on_every_window_gives_nobody_up(tmp_path: Path) -> None:
    failed = LISTS_FAILED._value.get()
    snapshot, model = make_fragile()
    model.is_broken = True
    async with running(tmp_path, snapshot) as engine:
        engine.click(*clicks("u1", "i001"), *clicks("u2", "i002"))
        given_back = REFRESH_FAILURES._value.get()
        await engine.until(lambda: REFRESH_FAILURES._value.get() > given_back)
        await engine.until(lambda: DIRTY_USERS._value.get() == 2)
        model.is_broken = False
        await engine.settled()

        assert sorted(one.user_id for one in engine.lists()) == ["u1", "u2"]
    assert LISTS_FAILED._value.get() == failed


async def test_list_too_large_for_the_log_costs_nobody_else_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microbatch, "MAX_MESSAGE_BYTES", 5_000)
    failed = LISTS_FAILED._value.get()
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", "i001"), *clicks("u2", "i001", *(f"{n:0256d}" for n in range(19))))
        await engine.settled()

        assert [one.user_id for one in engine.lists()] == ["u1"]
    assert LISTS_FAILED._value.get() - failed == 1


async def test_a_store_that_can_not_be_read_ends_the_loop_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def read_window(_batch: DirtyBatch, user_id: str) -> BehaviorWindow:
        reads.append(user_id)
        raise DamagedStore("clicks-0", cause="Corruption: block checksum mismatch")

    monkeypatch.setattr(DirtyBatch, "read_window", read_window)
    told: list[DamagedStore] = []
    async with running(tmp_path, make_snapshot(), on_damage=told.append) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.until(lambda: bool(told))
        engine.click(*clicks("u2", "i001"))
        await asyncio.sleep(0.2)

        assert (reads, len(told)) == (["u1"], 1)
        assert engine.stores[0].count_dirty() == 2, "the marks stay for the next start"


# --- figures


async def test_users_who_wait_are_counted_while_nothing_can_be_published(tmp_path: Path) -> None:
    DIRTY_USERS.set(0)

    def fail() -> None:
        raise LogError("recall-lists", problem="has no leader", remedy="wait")

    async with running(tmp_path, make_snapshot()) as engine:
        engine.log.on_send += [fail] * 1_000
        engine.click(*clicks("u1", "i001"), *clicks("u2", "i002"))

        await engine.until(lambda: DIRTY_USERS._value.get() == 2)
        engine.log.on_send.clear()


async def test_interests_are_timed_once_a_list_however_often_it_is_tried(tmp_path: Path) -> None:
    before = sample_sum(metric=CLICK_TO_INTERESTS)

    def fail() -> None:
        raise LogError("recall-lists", problem="has no leader", remedy="wait")

    async with running(tmp_path, make_snapshot()) as engine:
        engine.log.on_send += [fail, fail]
        engine.click(*clicks("u1", "i001"), *clicks("u2", "brand-new"))
        await engine.settled()

    assert sample_sum(metric=CLICK_TO_INTERESTS) - before == 1


async def test_share_of_current_lists_falls_when_a_version_without_a_model_is_promoted(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot(activation=1)) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()
        await engine.until(lambda: LISTS_ON_CURRENT_VERSION._value.get() == 1.0)

        engine.holder.swap(make_popular_snapshot(activation=2))
        engine.loop.notify()

        await engine.until(lambda: LISTS_ON_CURRENT_VERSION._value.get() == 0.0)
