"""Who is refreshed: dirty users, users behind a swap, and what their batches read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rocksdict import RdictIter

from engine.store import codec, windows
from engine.store.codec import DerivedRow
from engine.store.windows import PartitionStore, Refreshed
from engine.window import BehaviorWindow
from tests.builders import make_click
from tests.store.stores import apply, published, reopen, settle_all


def test_dirty_users_come_oldest_click_first_with_the_time_the_log_accepted_it(store: PartitionStore) -> None:
    apply(store, make_click(user_id="b"), make_click(user_id="a"), make_click(user_id="b", item_id="i2"))

    batch = store.take_dirty(10)

    assert [(user.user_id, user.accepted_at_ms) for user in batch.users] == [("b", 1_000), ("a", 1_001)]
    assert batch.applied_offset == 2
    store.release(batch)


def taken(store: PartitionStore, limit: int) -> list[str]:
    """Take at most *limit* users, settle them, and return who they were."""
    batch = store.take_dirty(limit)
    users = [user.user_id for user in batch.users]
    store.settle(batch, [published(user, 1, 1) for user in users])
    return users


def test_who_clicks_goes_before_the_backlog_which_gets_its_share(store: PartitionStore) -> None:
    apply(store, *(make_click(user_id=f"old{at}") for at in range(6)))
    store.set_back()
    apply(store, *(make_click(user_id=f"new{at}") for at in range(10)))

    assert taken(store, 4) == ["new0", "new1", "new2", "old0"]
    assert taken(store, 8) == ["new3", "new4", "new5", "new6", "new7", "new8", "old1", "old2"]
    assert taken(store, 4) == ["new9", "old3", "old4", "old5"]
    assert store.count_dirty() == 0


def test_one_at_a_time_the_backlog_gets_its_share_too(store: PartitionStore) -> None:
    apply(store, make_click(user_id="old0"), make_click(user_id="old1"))
    store.set_back()
    apply(store, *(make_click(user_id=f"new{at}") for at in range(8)))

    order = [taken(store, 1)[0] for _ in range(9)]

    assert order == ["new0", "new1", "new2", "old0", "new3", "new4", "new5", "old1", "new6"]


def test_who_clicks_again_is_backlog_no_more_and_the_first_click_is_what_waits(store: PartitionStore) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"), make_click(user_id="c"))
    store.set_back()
    apply(store, make_click(user_id="d"), make_click(user_id="c", item_id="i2"))

    batch = store.take_dirty(2)

    assert [(user.user_id, user.accepted_at_ms) for user in batch.users] == [("d", 1_003), ("c", 1_002)]
    store.settle(batch, [])
    assert taken(store, 10) == ["a", "b"]


def test_backlog_that_is_set_back_again_stays_in_its_order_and_survives_the_process(
    store: PartitionStore, tmp_path: Path
) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    store.set_back()
    apply(store, make_click(user_id="c"))
    store.set_back()
    batch = store.take_dirty(1)
    assert [user.user_id for user in batch.users] == ["a"]
    store.release(batch)
    again = reopen(store, tmp_path)

    assert taken(again, 10) == ["a", "b", "c"]
    again.close()


def test_a_batch_given_back_is_joined_with_a_newer_mark_of_the_backlog(store: PartitionStore) -> None:
    apply(store, make_click(user_id="a"))
    batch = store.take_dirty(1)
    apply(store, make_click(user_id="a", item_id="i2"), make_click(user_id="b"))
    store.set_back()

    store.release(batch)

    assert store.count_dirty() == 2
    joined = store.take_dirty(1)
    assert [(user.user_id, user.accepted_at_ms, len(user.marks)) for user in joined.users] == [("a", 1_000, 2)]
    store.settle(joined, [])
    assert taken(store, 10) == ["b"]


def test_a_dirty_batch_reads_the_store_as_it_was_when_taken(store: PartitionStore) -> None:
    apply(store, make_click(item_id="before", clicked_at_ms=1, profile={"country": "FR"}))
    batch = store.take_dirty(10)
    apply(store, make_click(item_id="after", clicked_at_ms=2, profile={"country": "DE"}))

    assert batch.read_window("u1").item_ids == ["before"]
    assert batch.read_profile("u1", ["country"]) == {"country": "FR"}
    store.settle(batch, [])


def test_a_dirty_batch_reads_the_attributes_asked_for_however_many_there_are(
    store: PartitionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in range(0, 3_000, 30):
        apply(store, make_click(clicked_at_ms=start, profile={f"a{at}": float(at) for at in range(start, start + 30)}))
    apply(store, make_click(clicked_at_ms=9_000, profile={"a": "FR", "a10": "last"}))
    read: list[bytes] = []
    monkeypatch.setattr(
        codec, "decode_profile", lambda value, decode=codec.decode_profile: read.append(value) or decode(value)
    )
    batch = store.take_dirty(1)

    assert batch.read_profile("u1", ["a10", "a", "b", "a2999", "zz"]) == {"a": "FR", "a10": "last", "a2999": 2_999.0}
    assert len(read) == 3
    assert batch.read_profile("nobody", ["a"]) == {}
    store.settle(batch, [])


def test_lists_behind_the_model_are_swept_most_recently_active_first(store: PartitionStore) -> None:
    apply(store, *(make_click(user_id=user) for user in "abc"))
    batch = store.take_dirty(10)
    store.settle(batch, [published("a", 10, 1), published("b", 30, 1), published("c", 20, 2)])
    assert store.count_lists(2) == (1, 3)

    first = store.take_behind(2, 1)
    assert [user.user_id for user in first.users] == ["b"]
    store.release(first)
    swept = store.take_behind(2, 10)
    assert [user.user_id for user in swept.users] == ["b", "a"]

    store.settle(swept, [published("b", 30, 2), published("a", 10, 2)])
    assert store.count_lists(2) == (3, 3)
    assert not store.take_behind(2, 10).users


def test_a_user_has_a_list_from_the_first_one_that_was_published(store: PartitionStore, tmp_path: Path) -> None:
    outcomes, found = [False, True, False, False], []
    for at, is_published in enumerate(outcomes):
        apply(store, make_click(clicked_at_ms=at))
        batch = store.take_dirty(1)
        found.append(batch.has_list("u1"))
        store.settle(batch, [Refreshed("u1", at, 1, is_published=is_published)])

    assert found == [False, False, True, True]
    again = reopen(store, tmp_path)
    assert again.count_lists(1) == (1, 1)
    again.close()


def test_users_without_a_list_are_swept_and_are_no_lists(store: PartitionStore, tmp_path: Path) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    batch = store.take_dirty(10)
    store.settle(batch, [published("a", 1, 1), Refreshed("b", 2, 1, is_published=False)])

    again = reopen(store, tmp_path)

    assert (again.count_lists(2), again.count_behind(2)) == ((0, 1), 2)
    swept = again.take_behind(2, 10)
    assert [user.user_id for user in swept.users] == ["b", "a"]
    again.settle(swept, [published("a", 1, 2), Refreshed("b", 2, 2, is_published=False)])
    assert (again.count_lists(2), again.count_behind(2)) == ((1, 1), 0)
    again.close()


def test_the_sweep_skips_a_user_whom_a_click_has_refreshed_meanwhile(store: PartitionStore) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    settle_all(store, activation=1)
    store.release(store.take_behind(2, 1))
    apply(store, make_click(user_id="a", item_id="i2"))
    settle_all(store, activation=2)

    assert [user.user_id for user in store.take_behind(2, 10).users] == ["b"]


def test_a_list_of_the_old_model_settled_after_the_swap_is_swept_too(store: PartitionStore) -> None:
    apply(store, make_click(user_id="a"))
    late = store.take_dirty(1)
    assert not store.take_behind(2, 10).users

    store.settle(late, [published("a", 1, 1)])

    assert [user.user_id for user in store.take_behind(2, 10).users] == ["a"]


def test_clicks_are_applied_while_a_sweep_looks_for_its_users(
    store: PartitionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(store, make_click(user_id="a"), make_click(user_id="b"))
    settle_all(store, activation=1)
    scan = windows.scan_derived

    def slow_scan(view: RdictIter) -> Iterator[tuple[str, DerivedRow]]:
        for row in scan(view):
            ingest = threading.Thread(target=apply, args=(store, make_click(user_id="c")), daemon=True)
            ingest.start()
            ingest.join(5.0)
            assert not ingest.is_alive(), "ingest waits for the whole scan"
            yield row

    monkeypatch.setattr(windows, "scan_derived", slow_scan)

    assert [user.user_id for user in store.take_behind(2, 10).users] == ["a", "b"]


def test_user_queued_twice_for_the_sweep_is_taken_once(store: PartitionStore) -> None:
    apply(store, make_click(user_id="a"))
    settle_all(store, activation=1)
    apply(store, make_click(user_id="a"))
    late = store.take_dirty(1)
    store.release(store.take_behind(2, 1))
    store.settle(late, [published("a", 1, 1)])

    swept = store.take_behind(2, 10)
    store.settle(swept, [published(user.user_id, 1, 2) for user in swept.users])

    assert len(swept.users) == 1
    assert store.count_lists(2) == (1, 1)


def test_live_refreshes_after_a_swap_that_left_nothing_to_sweep_queue_nobody(store: PartitionStore) -> None:
    apply(store, make_click(user_id="a"))
    settle_all(store, activation=1)
    store.release(store.take_behind(1, 1))  # the sweep of 1 has begun, and found everybody current

    for at in range(5):  # 2 serves now; every list of this store is made by live clicks
        apply(store, make_click(user_id="a", clicked_at_ms=1_000 + at))
        settle_all(store, activation=2)

    assert not store._behind


def test_ingest_and_refresh_may_run_at_once_and_no_click_stays_unseen(store: PartitionStore) -> None:
    clicks = [make_click(user_id=f"u{at % 20}", item_id=f"i{at}", clicked_at_ms=at) for at in range(4_000)]
    last_seen: dict[str, BehaviorWindow] = {}
    done = threading.Event()

    def refresh() -> None:
        while not done.is_set() or store.count_dirty():
            batch = store.take_dirty(8)
            for user in batch.users:
                last_seen[user.user_id] = batch.read_window(user.user_id)
            store.settle(batch, [published(user.user_id, 0, 1) for user in batch.users])

    reader = threading.Thread(target=refresh)
    reader.start()
    for start in range(0, 4_000, 25):
        apply(store, *clicks[start : start + 25])
    done.set()
    reader.join()

    assert last_seen == {user: store.read_window(user) for user in store.users()}
