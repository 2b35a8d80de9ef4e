"""When users are refreshed, in which order, and what becomes of their marks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine import refresh
from engine.errors import EngineFrozen, LogError
from engine.metrics import (
    CLICK_TO_INTERESTS,
    DIRTY_USERS,
    LISTS_ON_CURRENT_VERSION,
    REFRESH_FAILURES,
)
from tests.builders import NOON_MS, make_click
from tests.refreshing import (
    SETTINGS,
    clicks,
    running,
    sample_sum,
)
from tests.served import ITEM_IDS, make_popular_snapshot, make_snapshot


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "BACK_OFF_S", (0.01, 0.02))
    monkeypatch.setattr(refresh, "IDLE_S", 0.05)


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


async def test_who_waited_before_the_first_model_came_waits_behind_live_clicks(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"refresh_batch_size": 4})
    async with running(tmp_path, make_popular_snapshot(), settings=settings) as engine:
        engine.click(*(click for at in range(8) for click in clicks(f"old{at}", "i001")))
        await asyncio.sleep(0.1)  # the loop has looked around, without a model
        engine.log.acknowledges.clear()
        engine.holder.swap(make_snapshot(activation=1))
        engine.loop.notify()
        await engine.log.sending.wait()
        engine.click(*(click for at in range(6) for click in clicks(f"new{at}", "i001")))
        engine.log.acknowledges.set()
        await engine.settled()

        order = [one.user_id for one in engine.lists()]
    assert order[:4] == ["old0", "old1", "old2", "old3"]
    assert order[4:] == ["new0", "new1", "new2", "old4", "new3", "new4", "new5", "old5", "old6", "old7"]


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


async def test_loop_is_behind_while_more_users_wait_than_a_batch_takes(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"refresh_batch_size": 2})
    async with running(tmp_path, make_snapshot(), settings=settings) as engine:
        engine.log.acknowledges.clear()
        engine.click(*clicks("u1", "i001"))
        await engine.log.sending.wait()
        for user in ("u2", "u3"):
            engine.click(*clicks(user, "i001"))
        assert not engine.loop.is_behind()
        engine.click(*clicks("u4", "i001"))
        assert engine.loop.is_behind()
        engine.log.acknowledges.set()
        await engine.settled()

        assert not engine.loop.is_behind()


async def test_loop_without_a_model_is_not_behind_whoever_waits(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"refresh_batch_size": 1})
    async with running(tmp_path, None, settings=settings) as engine:
        for user in ("u1", "u2"):
            engine.click(*clicks(user, "i001"))

        assert not engine.loop.is_behind()


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
