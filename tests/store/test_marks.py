"""Dirty marks: one value for all of a write, which goes with the last of its users."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.store.codec import MARKS
from engine.store.rocksdb import scan
from engine.store.windows import PartitionStore
from tests.builders import make_click
from tests.store.stores import apply, published, reopen, settle_all


def waiting(store: PartitionStore) -> list[tuple[str, int | None]]:
    """Return who waits, and since when, without taking them."""
    batch = store.take_dirty(1_000)
    store.release(batch)
    return [(user.user_id, user.accepted_at_ms) for user in batch.users]


def settle(store: PartitionStore, users: int, *, has_list: bool = True) -> None:
    batch = store.take_dirty(users)
    store.settle(batch, [published(user.user_id, 5, 1) for user in batch.users] if has_list else [])


def values(store: PartitionStore) -> int:
    return len(list(scan(store._db.iter(), MARKS)))


def test_a_click_during_the_refresh_keeps_a_mark_of_its_own(store: PartitionStore) -> None:
    apply(store, make_click(item_id="before"))
    batch = store.take_dirty(10)
    apply(store, make_click(item_id="meanwhile"))

    store.settle(batch, [published("u1", 1, 1)])

    assert settle_all(store) == ["u1"]
    assert store.count_dirty() == 0


def test_marks_not_settled_are_offered_again_after_a_restart(store: PartitionStore, tmp_path: Path) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    store.take_dirty(1)
    apply(store, make_click(user_id="a", item_id="i2"))

    again = reopen(store, tmp_path)

    batch = again.take_dirty(10)
    assert [(user.user_id, user.accepted_at_ms, user.marks) for user in batch.users] == [
        ("a", 1_000, (0, 1)),
        ("b", 1_001, (0,)),
    ]
    again.settle(batch, [])
    last = reopen(again, tmp_path)
    assert last.count_dirty() == 0
    last.close()


def test_released_users_come_first_again_and_keep_the_older_time(store: PartitionStore) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"), make_click(user_id="c"))
    batch = store.take_dirty(2)
    apply(store, make_click(user_id="b", item_id="i2"))

    store.release(batch)

    assert [(u.user_id, u.accepted_at_ms) for u in store.take_dirty(10).users] == [
        ("a", 1_000),
        ("b", 1_001),
        ("c", 1_002),
    ]


def test_many_clicks_of_one_user_make_one_mark(store: PartitionStore, tmp_path: Path) -> None:
    for at in range(50):
        apply(store, make_click(clicked_at_ms=at))

    again = reopen(store, tmp_path)
    assert [user.marks for user in again.take_dirty(10).users] == [(0,)]
    again.close()


def test_the_marks_of_a_write_go_with_the_last_of_its_users(store: PartitionStore) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    apply(store, make_click(user_id="c"))

    assert values(store) == 2
    settle(store, 1)
    assert values(store) == 2
    settle(store, 1)
    assert values(store) == 1
    settle(store, 1)
    assert values(store) == 0


def test_whoever_was_settled_does_not_wait_after_a_crash_for_those_who_were_not(
    store: PartitionStore, tmp_path: Path
) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    settle(store, 1)

    again = reopen(store, tmp_path)

    assert waiting(again) == [("b", 1_001)]
    settle(again, 1)
    assert values(again) == 0
    again.close()


def test_marks_that_are_all_settled_though_a_crash_left_them_go_with_the_next_batch(
    store: PartitionStore, tmp_path: Path
) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    [(key, value)] = scan(store._db.iter(), MARKS)
    settle(store, 2)
    store._db.put(key, value)

    again = reopen(store, tmp_path)

    assert (waiting(again), values(again)) == ([], 1)
    apply(again, make_click(user_id="c"))
    settle(again, 1)
    assert values(again) == 0
    again.close()


def test_a_click_after_the_list_waits_since_its_own_time_after_a_crash(store: PartitionStore, tmp_path: Path) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    settle(store, 1)
    apply(store, make_click(user_id="a", item_id="i2"))

    again = reopen(store, tmp_path)

    assert waiting(again) == [("b", 1_001), ("a", 1_002)]
    again.close()


def test_a_user_of_whom_no_list_was_made_is_tried_again_after_a_crash(store: PartitionStore, tmp_path: Path) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    settle(store, 1, has_list=False)

    again = reopen(store, tmp_path)

    assert waiting(again) == [("a", 1_000), ("b", 1_001)]
    again.close()


def test_an_erased_user_waits_after_a_crash_whatever_list_was_out(store: PartitionStore, tmp_path: Path) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    settle(store, 2)
    apply(store, make_click(user_id="a", item_id="i2"))
    store.erase({"a": 2, "b": 2}, [])

    again = reopen(store, tmp_path)

    assert [user for user, _ in waiting(again)] == ["a", "b"]
    settle_all(again)
    last = reopen(again, tmp_path)
    assert waiting(last) == []
    last.close()


def test_users_marked_again_wait_after_a_crash_though_their_list_is_out(store: PartitionStore, tmp_path: Path) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    settle(store, 2)
    store.mark_again(["b", "b"])

    again = reopen(store, tmp_path)

    assert waiting(again) == [("b", None)]
    settle(again, 1)
    assert values(again) == 0
    again.close()


def test_marks_stay_when_the_write_that_settles_them_fails(store: PartitionStore) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    batch = store.take_dirty(1)
    read_derived = store._read_derived
    store._read_derived = _fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        store.settle(batch, [published("a", 5, 1)])
    store._read_derived = read_derived  # type: ignore[method-assign]
    store.release(batch)

    settle(store, 2)

    assert values(store) == 0


def _fails(_user_id: str) -> None:
    raise RuntimeError("the disk is gone")
