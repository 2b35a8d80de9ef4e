"""From interests to items for many users: with memory of what they found, without it, and against exact search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine import metrics
from engine.events import ItemEvent
from engine.model import Interests
from engine.recall import RankedItem
from engine.recaller import AUDIT_EVERY, Recaller, Wishes
from engine.served_items import ServedItems
from engine.settings import Settings
from engine.window import BehaviorWindow
from tests.builders import make_click
from tests.test_served_items import ITEM_IDS, Shop

K, D = 2, 16
NO_WISHES = Wishes(())


class Recalling:
    """A recaller over 200 items, lists of 20."""

    def __init__(self, shop: Shop, *, keeps_pools: bool = True, **changed: Any) -> None:
        self.settings = Settings(**{"index_backend": "exact", "list_size": 20, "window_max_clicks": 10, **changed})
        self.served = ServedItems(self.settings, shop.snapshot, shop.catalog)
        self.served.catch_up()
        self.recaller = Recaller(self.settings, self.served, interests=K, keeps_pools=keeps_pools)

    def recall(
        self, vectors: np.ndarray, *, users: Sequence[str] = (), mask: Any = None, wishes: Wishes = NO_WISHES
    ) -> list[list[RankedItem]]:
        used = np.ones(vectors.shape[:2], dtype=np.bool_) if mask is None else np.array(mask)
        one_click = np.ones((len(vectors), 1, K), dtype=np.float32)
        interests = Interests(vectors, used, one_click, np.zeros((len(vectors), 1), dtype=np.int64))
        self.served.catch_up()
        keys = users or [f"u{at}" for at in range(len(vectors))]
        return self.recaller.recall(keys, interests, [wishes] * len(vectors))


@pytest.fixture
def shop() -> Shop:
    return Shop()


def interests(users: int, *, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(users, K, D)).astype(np.float32)


def ids(items: Sequence[RankedItem]) -> list[str]:
    return [item.item_id for item in items]


def test_lists_are_full_and_leave_out_what_is_unwanted(shop: Shop) -> None:
    recalling, vectors = Recalling(shop), interests(3)
    before = recalling.recall(vectors)

    lists = recalling.recall(vectors, wishes=Wishes(ids(before[0])[:10]))

    assert [len(items) for items in lists] == [20, 20, 20]
    assert not set(ids(lists[0])) & set(ids(before[0])[:10])


def test_the_best_item_of_each_interest_is_in_whichever_scores_it_better(shop: Shop) -> None:
    vectors = interests(3) * np.array([[[0.1], [1.0]], [[1.0], [0.1]], [[1.0], [1.0]]], dtype=np.float32)
    recalling = Recalling(shop)

    lists = recalling.recall(vectors)

    rows = [recalling.served.row(item_id) for item_id in ITEM_IDS]
    own = vectors @ recalling.served.index.vectors[rows].T  # (B, K, N)
    for made, scores in zip(lists, own, strict=True):
        assert {ITEM_IDS[at] for at in scores.argmax(axis=1)} <= set(ids(made))


def test_interest_not_in_use_finds_nothing_and_a_user_without_any_gets_nothing(shop: Shop) -> None:
    lists = Recalling(shop).recall(interests(3), mask=[[True, False], [False, False], [True, True]])

    assert {item.interest for item in lists[0]} == {0}
    assert lists[1] == []
    assert {item.interest for item in lists[2]} <= {0, 1}


def test_interests_keep_their_numbers_where_a_lower_one_is_not_in_use(shop: Shop) -> None:
    assert {item.interest for item in Recalling(shop).recall(interests(1), mask=[[False, True]])[0]} == {1}


def test_what_was_remembered_gives_the_scores_of_now(shop: Shop) -> None:
    vectors = interests(4)
    now = vectors * np.float32(1.05)
    recalling = Recalling(shop)
    recalling.recall(vectors)
    searched = metrics.INTERESTS.labels("searched")._value.get()

    lists = recalling.recall(now)

    assert metrics.INTERESTS.labels("searched")._value.get() == searched
    assert lists == Recalling(shop, keeps_pools=False).recall(now)


def test_without_pools_every_interest_searches_each_time(shop: Shop) -> None:
    recalling, vectors = Recalling(shop, pool_mb=0), interests(2)
    first = recalling.recall(vectors)
    searched = metrics.INTERESTS.labels("searched")._value.get()

    assert recalling.recall(vectors) == first
    assert metrics.INTERESTS.labels("searched")._value.get() == searched + 4


def test_more_users_than_there_is_room_for_are_done_in_turns(shop: Shop) -> None:
    vectors = interests(5)

    lists = Recalling(shop, pool_mb=0, refresh_batch_size=2).recall(vectors)

    assert lists == Recalling(shop).recall(vectors)


def test_list_that_would_be_short_is_made_of_all_items(shop: Shop) -> None:
    recalling, vectors = Recalling(shop, index_ef=10, window_max_clicks=1), interests(1)
    found = ids(recalling.recall(vectors)[0])
    everything = ids(Recalling(shop, keeps_pools=False, list_size=150).recall(vectors)[0])

    left = ids(recalling.recall(vectors, wishes=Wishes([*found, *everything[:90]]))[0])

    assert len(left) == 20
    assert not {*found, *everything[:90]} & set(left)


def test_what_was_turned_down_takes_its_neighbors_down_as_in_the_exact_list(shop: Shop) -> None:
    recalling, vectors = Recalling(shop, list_size=150), interests(1)
    before = recalling.recall(vectors)[0]
    first = before[0].item_id

    after = recalling.recall(vectors, wishes=Wishes({first}, negative={first}))[0]

    was = {item.item_id: item.score for item in before}
    assert first not in ids(after)
    assert all(item.score <= was.get(item.item_id, np.inf) for item in after)
    assert [item.score for item in after] == sorted((item.score for item in after), reverse=True)
    near = [item for item in after if item.score < was.get(item.item_id, -np.inf)]
    assert len(near) > 3
    # Made of all 200 items, the pushed ones in their places: the list that the candidates gave.
    exact = Recalling(shop, list_size=150, index_ef=200, keeps_pools=False)
    assert exact.recall(vectors, wishes=Wishes({first}, negative={first}))[0] == after


def test_without_a_push_what_was_turned_down_stays_out_alone(shop: Shop) -> None:
    vectors, quiet = interests(1), Recalling(shop, negative_push=0.0)
    first = quiet.recall(vectors)[0][0].item_id

    turned_down = quiet.recall(vectors, wishes=Wishes({first}, negative={first}))

    assert turned_down == quiet.recall(vectors, wishes=Wishes({first}))


def test_removed_items_are_in_no_list_made_of_all_items(shop: Shop) -> None:
    recalling, vectors = Recalling(shop), interests(1)
    recalling.recall(vectors)
    shop.tell(*(ItemEvent(item_id=each, removed=True) for each in ITEM_IDS[:190]))

    assert sorted(ids(recalling.recall(vectors)[0])) == list(ITEM_IDS[190:])


def test_wider_searches_follow_when_much_becomes_unavailable(shop: Shop) -> None:
    recalling, vectors = Recalling(shop, index_ef=10), interests(1)
    recalling.recall(vectors)
    narrow = recalling.recaller._search.width
    shop.tell(*(ItemEvent(item_id=each, category="lamps", available=False) for each in ITEM_IDS[::2]))

    items = ids(recalling.recall(vectors)[0])

    assert recalling.recaller._search.width > narrow
    assert len(items) == 20
    assert not set(items) & set(ITEM_IDS[::2])


def test_one_list_in_so_many_is_compared_with_an_exact_one(shop: Shop) -> None:
    recalling = Recalling(shop)
    noted: list[tuple[float, bool]] = []
    audit: Any = recalling.recaller._audit
    audit.note = lambda held, *, all_searched: noted.append((held, all_searched))
    vectors = interests(AUDIT_EVERY)

    recalling.recall(vectors)
    recalling.recall(vectors)

    assert noted == [(1.0, True), (1.0, False)]


def test_a_list_that_misses_what_came_near_is_noted_as_such(shop: Shop) -> None:
    recalling = Recalling(shop, pool_bound=1.0, index_ef=10)
    noted: list[float] = []
    audit: Any = recalling.recaller._audit
    audit.note = lambda held, *, all_searched: noted.append(held)
    vectors = interests(AUDIT_EVERY)
    recalling.recall(vectors)
    steps = interests(AUDIT_EVERY, seed=2)

    recalling.recall((vectors + 0.9 * steps).astype(np.float32))

    assert noted[0] == 1.0
    assert 0.0 < noted[1] < 1.0


def test_somebody_forgotten_searches_again(shop: Shop) -> None:
    recalling, vectors = Recalling(shop), interests(1)
    recalling.recall(vectors)

    recalling.recaller.forget("u0")
    searched = metrics.INTERESTS.labels("searched")._value.get()
    recalling.recall(vectors)

    assert metrics.INTERESTS.labels("searched")._value.get() == searched + K


def test_catalog_without_items_gives_empty_lists(shop: Shop) -> None:
    shop.tell(*(ItemEvent(item_id=each, removed=True) for each in ITEM_IDS))

    assert Recalling(shop).recall(interests(2)) == [[], []]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_click_on_something_new_has_its_interest_search_whether_or_not_clicked_items_are_listed(
    shop: Shop, exclude_seen: bool
) -> None:
    vectors, used = interests(1), [[True, False]]
    served = Recalling(shop).served
    items = served.index.vectors
    scores = items @ vectors[0, 0]
    row = int(np.argsort(-scores)[125])  # just below what is found
    now = vectors.copy()
    now[0, 0] += items[row] * (np.sort(scores)[-5] + 0.1 - scores[row]) / np.square(items[row]).sum()
    click = make_click(item_id=str(served.rows.item_ids[row]))
    told = Wishes.of(BehaviorWindow((click,)), [click], exclude_seen=exclude_seen)

    searched = []
    for wishes in (Wishes(()), told):
        recalling = Recalling(shop, list_size=5, index_ef=120, window_max_clicks=5)
        recalling.recall(vectors, mask=used)
        recalling.recall(now, mask=used, wishes=wishes)
        searched.append(recalling.recaller.searched)

    assert searched == [0, 1]
