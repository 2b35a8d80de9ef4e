from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine import metrics
from engine.serving.arrivals import Arrivals
from engine.serving.follow import RECENT_USERS, ListFollower
from engine.serving.freshness import Freshness
from engine.serving.service import wall_ms
from engine.settings import Settings
from engine.store.lists import ListStore
from engine.streams.topics import create_topics
from tests.builders import NOON_MS
from tests.serving.live import list_message, publish
from tests.serving.parts import make_list

pytestmark = pytest.mark.kafka


async def test_the_backlog_is_held_but_not_timed_and_what_comes_after_is_both(broker: Settings, tmp_path: Path):
    settings = broker.model_copy(update={"topic_prefix": "follow-", "data_dir": tmp_path})
    await create_topics(settings)
    await publish(settings, [list_message(settings, make_list(f"old{n}")) for n in range(5)])
    store = ListStore.open(tmp_path / "lists", topic="t", now_ms=wall_ms())
    freshness = Freshness()
    follower = ListFollower(settings, store, freshness, Arrivals(), now_ms=lambda: NOON_MS + 50)
    observed = metrics.CLICK_TO_VISIBLE._sum.get()

    await follower.start()
    await asyncio.wait_for(follower.caught_up.wait(), 60)
    assert (store.count, freshness.summary(now_ms=NOON_MS)["count"]) == (5, 0)
    names = [f"new{n}" for n in range(RECENT_USERS + 2)]
    # Each was accepted 100 ms before NOON_MS, and is readable 50 ms after it.
    await publish(settings, [list_message(settings, make_list(name)) for name in [*names, names[0]]])
    async with asyncio.timeout(60):
        while follower.lag() or store.count < 5 + len(names):
            await asyncio.sleep(0.02)
    await follower.stop()

    summary = freshness.summary(now_ms=NOON_MS + 50)
    assert (summary["count"], summary["p50_ms"]) == (len(names) + 1, 150)
    assert metrics.CLICK_TO_VISIBLE._sum.get() - observed == pytest.approx(0.15 * (len(names) + 1))
    assert len(follower.recent_users) == len(set(follower.recent_users)) == RECENT_USERS
    store.close()


async def test_a_follower_goes_on_where_the_store_ends(broker: Settings, tmp_path: Path):
    settings = broker.model_copy(update={"topic_prefix": "follow-on-", "data_dir": tmp_path})
    await create_topics(settings)
    store = ListStore.open(tmp_path / "lists", topic="t", now_ms=wall_ms())
    for round_number in range(2):
        sent = [list_message(settings, make_list(f"u{n}", window_offset=round_number)) for n in range(10)]
        await publish(settings, sent)
        follower = ListFollower(settings, store, Freshness(), Arrivals(), now_ms=wall_ms)
        await follower.start()
        await asyncio.wait_for(follower.caught_up.wait(), 60)
        await follower.stop()
        assert sum(store.next_offsets().values()) == 10 * (round_number + 1)

    assert store.count == 10
    store.close()
