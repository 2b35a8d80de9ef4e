from __future__ import annotations

import hashlib
from pathlib import Path

from engine.store.codec import DerivedRow
from engine.store.windows import LoggedClick, PartitionStore, Refreshed
from engine.window import BehaviorWindow
from tests.builders import make_click
from tests.store.stores import HEADER, apply, settle_all


def reopened(store: PartitionStore, tmp_path: Path) -> PartitionStore:
    store.close()
    return PartitionStore.open(tmp_path / "store", HEADER)


def fill(store: PartitionStore) -> None:
    """Give "ab" a window and a profile between two users whose ids surround it, and a list."""
    for user in ("a", "ab", "ab2", "b"):
        apply(store, make_click(user_id=user, item_id="x", clicked_at_ms=5, profile={"country": "FR"}))
    settle_all(store)


def test_nothing_of_the_user_is_left_and_the_others_are_untouched(store: PartitionStore) -> None:
    fill(store)

    store.erase({"ab": 3}, [], topic_id="t", place=7)

    assert (store.read_window("ab"), store.read_profile("ab"), store.holds("ab")) == (BehaviorWindow(), {}, False)
    for user in ("a", "ab2", "b"):
        assert store.read_window(user).item_ids == ["x"]
        assert store.read_profile(user) == {"country": "FR"}
        assert store.holds(user)


def test_an_empty_list_is_due_once_and_then_nothing_is_known_of_the_user(store: PartitionStore) -> None:
    fill(store)
    store.erase({"ab": 3, "unknown": 3}, [])

    batch = store.take_dirty(10)
    assert [user.user_id for user in batch.users] == ["ab", "unknown"]
    assert all(batch.has_list(user.user_id) for user in batch.users)
    assert [batch.read_window(user.user_id) for user in batch.users] == [BehaviorWindow(), BehaviorWindow()]
    assert [user.accepted_at_ms for user in batch.users] == [None, None]
    store.settle(batch, [Refreshed(u.user_id, 0, 1, is_published=True, has_window=False) for u in batch.users])

    assert store.count_dirty() == 0
    assert store._read_derived("ab") is None
    assert store.count_lists(1) == (3, 3)
    assert store.take_behind(2, 10).users[0].user_id != "ab"


def test_a_list_that_could_not_be_published_stays_due(store: PartitionStore) -> None:
    fill(store)
    store.erase({"ab": 3}, [])

    store.release(store.take_dirty(10))

    assert [user.user_id for user in store.take_dirty(10).users] == ["ab"]


def test_clicks_that_are_not_erased_stay_with_their_profile(store: PartitionStore) -> None:
    apply(store, make_click(user_id="u", item_id="old", clicked_at_ms=50, profile={"country": "FR", "age": 3.0}))
    newer = make_click(user_id="u", item_id="new", clicked_at_ms=40, profile={"country": "DE"})
    apply(store, newer)

    store.erase({"u": 0}, [LoggedClick(1, 1_001, newer)])

    assert store.read_window("u").item_ids == ["new"]
    assert store.read_profile("u") == {"country": "DE"}


def test_who_waited_for_a_list_waits_with_the_older_mark(store: PartitionStore) -> None:
    apply(store, make_click(user_id="u"))

    store.erase({"u": 0}, [])

    assert [user.marks for user in store.take_dirty(10).users] == [(0,)]


def test_an_erased_user_who_clicks_again_is_a_user_like_any_other(store: PartitionStore) -> None:
    fill(store)
    store.erase({"ab": 3}, [])
    settle_all(store)

    apply(store, make_click(user_id="ab", item_id="y"))

    batch = store.take_dirty(10)
    assert batch.read_window("ab").item_ids == ["y"]
    assert batch.has_list("ab")
    store.release(batch)


def test_an_erasure_outlives_the_process(store: PartitionStore, tmp_path: Path) -> None:
    fill(store)
    store.erase({"ab": 3}, [], topic_id="t", place=7)

    again = reopened(store, tmp_path)

    assert again.read_window("ab") == BehaviorWindow()
    assert (again.erased_through("t"), again.erased_through("another"), again.erasures_done) == (7, -1, 7)
    assert [user.user_id for user in again.take_dirty(10).users] == ["ab"]
    assert again._read_derived("ab") == DerivedRow(0, -1, 3)
    again.close()


def test_a_store_that_never_heard_of_one_has_carried_out_none(store: PartitionStore) -> None:
    assert (store.erased_through("t"), store.erasures_done) == (-1, -1)


def test_the_bytes_leave_the_disk(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path / "store", HEADER)
    words = {user: hashlib.sha256(user.encode()).hexdigest() for user in ("canary", "other")}  # nothing to compress
    for at in range(3):
        for user, word in words.items():
            apply(store, make_click(user_id=user, item_id=f"{word}{at}", event_id=f"e{at}"))
    settle_all(store)
    store = reopened(store, tmp_path)  # what was in the write-ahead log is a table now

    def files_with(user: str) -> list[str]:
        return [path.name for path in (tmp_path / "store").iterdir() if words[user].encode() in path.read_bytes()]

    assert files_with("canary")
    store.erase({"canary": 99}, [])
    batch = store.take_dirty(10)
    store.settle(batch, [Refreshed("canary", 0, 1, is_published=True, has_window=False)])

    store.compact(["canary"])

    assert files_with("canary") == []
    assert files_with("other")
    assert store.read_window("other").item_ids == [f"{words['other']}{at}" for at in range(3)]
    store.close()
    store.compact(["canary"])  # nothing to do, and no error
