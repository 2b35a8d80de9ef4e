"""Clicks into windows: which are kept, and which are deleted."""

from __future__ import annotations

import random
from pathlib import Path

from engine.store.windows import PartitionStore
from engine.window import BehaviorWindow
from tests.builders import make_click
from tests.store.stores import apply, logged, reopen, settle_all


def test_the_window_is_the_newest_clicks_by_event_time_whatever_the_order_of_arrival(store: PartitionStore) -> None:
    #  4 s    1 s    3 s    2 s     keeps three
    apply(store, *(make_click(item_id=f"i{at}", clicked_at_ms=at) for at in (4_000, 1_000, 3_000, 2_000)))

    assert store.read_window("u1").item_ids == ["i2000", "i3000", "i4000"]


def test_any_order_and_any_repeats_leave_the_window_of_the_rule(store: PartitionStore) -> None:
    shuffle = random.Random(7)
    clicks = [
        make_click(
            user_id=f"u{shuffle.randrange(5)}",
            item_id=f"i{shuffle.randrange(4)}",
            clicked_at_ms=shuffle.randrange(6),
            event_id=shuffle.choice([None, "a", "b"]),
            weight=float(shuffle.randrange(9)),
        )
        for _ in range(400)
    ]
    for start in range(0, 400, 37):
        apply(store, *clicks[start : start + 37])

    for user in store.users():
        expected = BehaviorWindow.of([c for c in clicks if c.user_id == user], max_clicks=3)
        assert store.read_window(user) == expected


def test_of_two_clicks_with_one_time_and_identity_the_later_in_the_log_is_kept(store: PartitionStore) -> None:
    apply(store, make_click(event_id="e", item_id="first"), make_click(event_id="e", item_id="second"))

    assert store.read_window("u1").item_ids == ["second"]


def test_a_user_never_seen_has_an_empty_window_and_profile(store: PartitionStore) -> None:
    assert store.read_window("nobody") == BehaviorWindow()
    assert store.read_profile("nobody") == {}


def test_a_redelivered_batch_changes_nothing_and_says_so(store: PartitionStore) -> None:
    batch = logged([make_click(item_id="a", profile={"country": "FR"}), make_click(item_id="b")])
    assert store.apply(batch, through_offset=1) == 2
    settle_all(store)

    assert store.apply(batch, through_offset=1) == 0
    assert store.applied_offset == 1
    assert store.count_dirty() == 0


def test_a_batch_that_overlaps_applies_only_what_is_new(store: PartitionStore) -> None:
    clicks = [make_click(clicked_at_ms=at, item_id=f"i{at}") for at in range(3)]
    store.apply(logged(clicks[:2]), through_offset=1)

    assert store.apply(logged(clicks), through_offset=2) == 1
    assert store.read_window("u1").item_ids == ["i0", "i1", "i2"]


def test_a_batch_of_bad_records_only_still_moves_the_applied_offset(store: PartitionStore, tmp_path: Path) -> None:
    store.apply([], through_offset=41)

    again = reopen(store, tmp_path)
    assert again.applied_offset == 41
    again.close()


def test_profile_attributes_are_decided_one_by_one_by_the_greatest_click(store: PartitionStore) -> None:
    apply(
        store,
        make_click(clicked_at_ms=2, profile={"country": "FR", "age": 30.0}),
        make_click(clicked_at_ms=1, profile={"country": "DE", "plan": "free"}),
    )
    apply(store, make_click(clicked_at_ms=3, profile={"age": 31.0}))

    assert store.read_profile("u1") == {"country": "FR", "age": 31.0, "plan": "free"}


def test_of_equal_clicks_the_later_profile_in_the_log_wins(store: PartitionStore) -> None:
    apply(store, make_click(event_id="e", profile={"country": "FR"}))
    apply(store, make_click(event_id="e", profile={"country": "DE"}))

    assert store.read_profile("u1") == {"country": "DE"}


def test_surplus_clicks_are_deleted_once_there_are_as_many_as_the_window_keeps(store: PartitionStore) -> None:
    apply(store, *(make_click(item_id=f"i{at}", clicked_at_ms=at) for at in range(1_000)))
    apply(store, *(make_click(user_id="other", item_id=f"i{at}", clicked_at_ms=at) for at in range(4)))
    batch = store.take_dirty(10)
    windows = [batch.read_window(user.user_id) for user in batch.users]
    store.settle(batch, [])

    assert [window.item_ids for window in windows] == [["i997", "i998", "i999"], ["i1", "i2", "i3"]]
    assert [store.read_window(user) for user in ("u1", "other")] == windows
    assert sum(1 for key in store._db.keys(from_key=b"w") if key[:1] == b"w") == 3 + 4  # type: ignore[index]


def test_one_batch_in_eight_looks_for_surplus_clicks(store: PartitionStore) -> None:
    held = []
    for start in range(0, 160, 10):
        apply(store, *(make_click(item_id=f"i{at}", clicked_at_ms=at) for at in range(start, start + 10)))
        batch = store.take_dirty(1)
        assert batch.read_window("u1").item_ids == [f"i{start + at}" for at in (7, 8, 9)]
        store.settle(batch, [])
        held.append(sum(1 for key in store._db.keys(from_key=b"w") if key[:1] == b"w"))  # type: ignore[index]

    assert held == [3, 13, 23, 33, 43, 53, 63, 73] * 2


def test_a_late_click_after_the_trim_still_finds_the_right_window(store: PartitionStore) -> None:
    clicks = [make_click(item_id=f"i{at}", clicked_at_ms=at) for at in range(10)]
    apply(store, *clicks)
    batch = store.take_dirty(1)
    batch.read_window("u1")
    late = [make_click(item_id="late", clicked_at_ms=8), make_click(item_id="too-late", clicked_at_ms=1)]
    apply(store, *late)
    store.settle(batch, [])

    assert store.read_window("u1") == BehaviorWindow.of([*clicks, *late], max_clicks=3)


def test_users_are_listed_once_each(store: PartitionStore) -> None:
    apply(store, *(make_click(user_id=user, item_id=item) for user in ("b", "a", "ab", "a b") for item in "xy"))

    assert list(store.users()) == ["a", "a b", "ab", "b"]
