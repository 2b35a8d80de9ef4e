from __future__ import annotations

import contextlib
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rocksdict import RdictIter

from engine.errors import DamagedStore, StoreBusy, StoreFormatError, StoreNotWritten
from engine.events import ClickEvent
from engine.settings import Settings
from engine.store import codec, windows
from engine.store.codec import DerivedRow
from engine.store.dump import dump_windows
from engine.store.header import StoreHeader, stores_dir
from engine.store.windows import LoggedClick, PartitionStore, Refreshed
from engine.window import BehaviorWindow
from tests.builders import make_click

HEADER = StoreHeader(cluster_id="c", topic="clicks", topic_id="t", partitions=4, partition=0, max_clicks=3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PartitionStore]:
    opened = PartitionStore.open(tmp_path / "store", HEADER)
    yield opened
    opened.close()


def logged(clicks: Sequence[ClickEvent], *, first_offset: int = 0) -> list[LoggedClick]:
    return [LoggedClick(offset, 1_000 + offset, click) for offset, click in enumerate(clicks, first_offset)]


def apply(store: PartitionStore, *clicks: ClickEvent) -> None:
    first = store.applied_offset + 1
    store.apply(logged(clicks, first_offset=first), through_offset=first + len(clicks) - 1)


def published(user_id: str, last_activity_ms: int, activation: int) -> Refreshed:
    return Refreshed(user_id, last_activity_ms, activation, is_published=True)


def settle_all(store: PartitionStore, *, activation: int = 1) -> list[str]:
    batch = store.take_dirty(1_000)
    users = [user.user_id for user in batch.users]
    store.settle(batch, [published(user, 5, activation) for user in users])
    return users


def reopen(store: PartitionStore, path: Path) -> PartitionStore:
    store.close()
    return PartitionStore.open(path / "store", store.header)


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


def test_dirty_users_come_oldest_click_first_with_the_time_the_log_accepted_it(store: PartitionStore) -> None:
    apply(store, make_click(user_id="b"), make_click(user_id="a"), make_click(user_id="b", item_id="i2"))

    batch = store.take_dirty(10)

    assert [(user.user_id, user.accepted_at_ms) for user in batch.users] == [("b", 1_000), ("a", 1_001)]
    assert batch.applied_offset == 2
    store.release(batch)


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


@pytest.mark.parametrize(
    ("field", "value"),
    [("topic_id", "other"), ("partitions", 8), ("max_clicks", 4)],
)
def test_a_store_made_for_something_else_is_refused_by_name(
    store: PartitionStore, tmp_path: Path, field: str, value: object
) -> None:
    store.close()
    wanted = StoreHeader(**{name: getattr(HEADER, name) for name in HEADER.__slots__} | {field: value})  # type: ignore[arg-type]

    with pytest.raises(StoreFormatError, match=rf"has {field} .* this process expects {value!r}"):
        PartitionStore.open(tmp_path / "store", wanted)

    PartitionStore.open(tmp_path / "store", HEADER).close()


def test_a_store_in_use_by_another_process_is_named(store: PartitionStore, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from engine.errors import StoreBusy;"
        "from engine.store.rocksdb import open_for_writing\n"
        "try: open_for_writing(Path(sys.argv[1]))\n"
        "except StoreBusy: sys.exit(7)"
    )

    other = subprocess.run([sys.executable, "-c", script, str(tmp_path / "store")], check=False)

    assert other.returncode == 7
    with pytest.raises(StoreBusy, match="MINDSTREAM_DATA_DIR"):
        PartitionStore.open(tmp_path / "store", HEADER)


def test_a_damaged_store_is_refused_with_what_to_do(store: PartitionStore, tmp_path: Path) -> None:
    store.close()
    for manifest in (tmp_path / "store").glob("MANIFEST*"):
        manifest.write_bytes(b"garbage" * 20)

    with pytest.raises(DamagedStore, match="sets a damaged store aside at its start"):
        PartitionStore.open(tmp_path / "store", HEADER)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow, as on a disk without room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_store_that_can_not_be_written_says_where_and_what_to_do(store: PartitionStore, tmp_path: Path) -> None:
    apply(store, make_click(item_id="i1"))
    batch = store.take_dirty(1)

    with full_disk():
        with pytest.raises(StoreNotWritten, match=rf"store {tmp_path / 'store'} can't be written: .*; make room"):
            apply(store, make_click(item_id="i2"))
        with pytest.raises(StoreNotWritten, match="comes from the log"):
            store.settle(batch, [published("u1", 1, 1)])

    store.release(batch)
    assert (store.applied_offset, store.count_dirty(), store.count_lists(1)) == (0, 1, (0, 0))
    with pytest.raises(StoreNotWritten):
        store.close()
    again = PartitionStore.open(tmp_path / "store", HEADER)
    assert (again.applied_offset, again.read_window("u1").item_ids, again.count_dirty()) == (0, ["i1"], 1)
    again.close()


def test_closing_drops_batches_that_are_still_out(store: PartitionStore, tmp_path: Path) -> None:
    apply(store, make_click())
    store.take_dirty(1)

    again = reopen(store, tmp_path)

    assert again.count_dirty() == 1
    again.close()


def test_a_write_ahead_log_cut_anywhere_leaves_a_prefix_of_the_batches(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path / "store", HEADER)
    clicks = [make_click(user_id=f"u{at % 7}", item_id=f"i{at}", clicked_at_ms=at) for at in range(300)]
    for start in range(0, 300, 10):
        store.apply(logged(clicks[start : start + 10], first_offset=start), through_offset=start + 9)
    for wal in (tmp_path / "store").glob("*.log"):
        whole = wal.read_bytes()
    copied = [path for path in (tmp_path / "store").iterdir() if path.name != "LOCK"]

    for cut in (0, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        target = tmp_path / f"cut{cut}"
        target.mkdir()
        for path in copied:
            data = path.read_bytes()
            (target / path.name).write_bytes(data[:cut] if path.suffix == ".log" else data)
        survivor = PartitionStore.open(target, HEADER)
        through = survivor.applied_offset
        for user in {click.user_id for click in clicks}:
            expected = BehaviorWindow.of([c for c in clicks[: through + 1] if c.user_id == user], max_clicks=3)
            assert survivor.read_window(user) == expected
        assert survivor.count_dirty() == len({click.user_id for click in clicks[: through + 1]})
        survivor.close()
    store.close()


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


def test_a_dump_reads_every_store_while_its_owner_writes(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    stores = []
    for partition in (0, 1):
        header = StoreHeader(**{name: getattr(HEADER, name) for name in HEADER.__slots__} | {"partition": partition})  # type: ignore[arg-type]
        stores.append(PartitionStore.open(stores_dir(settings) / f"clicks-{partition}", header))
        apply(stores[-1], make_click(user_id=f"u{partition}", event_id="e", profile={"country": "FR"}))

    dumped = list(dump_windows(settings))

    for store in stores:
        store.close()
    click = {"item_id": "i1", "clicked_at_ms": 1_291_204_800_000, "event_id": "e", "event_type": "click", "weight": 1.0}
    assert dumped == [
        {
            "user_id": f"u{partition}",
            "clicks": [click],
            "profile": {"country": "FR"},
            "partition": partition,
            "applied_offset": 0,
            "waiting": True,
            "refreshed": None,
            "log": {name: getattr(HEADER, name) for name in ("cluster_id", "topic_id", "partitions")},
        }
        for partition in (0, 1)
    ]


def test_a_dump_leaves_out_the_stores_of_another_prefix(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    for prefix in ("", "old-"):
        header = replace(HEADER, topic=f"{prefix}clicks")
        store = PartitionStore.open(stores_dir(settings) / f"{prefix}clicks-0", header)
        apply(store, make_click(user_id=f"{prefix}u1"))
        store.close()

    assert [window["user_id"] for window in dump_windows(settings)] == ["u1"]
    old = settings.model_copy(update={"topic_prefix": "old-"})
    assert [window["user_id"] for window in dump_windows(old)] == ["old-u1"]
