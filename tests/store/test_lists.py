from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.errors import DamagedStore, StoreBusy, StoreNotWritten
from engine.store.lists import ABSENT_AT_MOST_MS, ListStore
from tests.builders import NOON_MS
from tests.store.stores import full_disk

TOPIC = "cluster-a/recall-lists/1/4"


@dataclass(frozen=True)
class Row:
    """A record of `recall-lists`, as the store reads it."""

    offset: int
    key: bytes | None = b"u1"
    value: bytes | None = b"{}"
    headers: dict[str, bytes] = field(default_factory=dict)
    partition: int = 0
    timestamp_ms: int = NOON_MS


def make_row(
    offset: int,
    *,
    user_id: str = "u1",
    window_offset: int = 0,
    activation: int = 0,
    epoch: str = "e1",
    partition: int = 0,
    value: bytes | None = None,
) -> Row:
    headers = {
        "epoch": epoch.encode(),
        "window_offset": str(window_offset).encode(),
        "activation": str(activation).encode(),
    }
    body = value if value is not None else f'{{"at":{offset}}}'.encode()
    return Row(offset, user_id.encode(), body, headers, partition)


def open_store(path: Path, *, topic: str = TOPIC, now_ms: int = NOON_MS) -> ListStore:
    return ListStore.open(path, topic=topic, now_ms=now_ms)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ListStore]:
    opened = open_store(tmp_path / "lists")
    yield opened
    opened.close()


def test_a_user_without_a_list_gets_none(store: ListStore):
    assert store.get("nobody") is None


def test_a_list_comes_back_byte_for_byte(store: ListStore):
    store.apply([make_row(0, value=b'{"user_id":"u1"}')])

    assert store.get("u1") == b'{"user_id":"u1"}'


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ({"window_offset": 1}, {"window_offset": 2}, 1),
        ({"window_offset": 2}, {"window_offset": 1}, 0),
        ({"window_offset": 2, "activation": 1}, {"window_offset": 2, "activation": 3}, 1),
        ({"window_offset": 2, "activation": 3}, {"window_offset": 2, "activation": 1}, 0),
        ({"window_offset": 2, "activation": 1}, {"window_offset": 1, "activation": 9}, 0),
        ({"window_offset": 2}, {"window_offset": 2}, 1),
        ({"window_offset": 9, "epoch": "e1"}, {"window_offset": 1, "epoch": "e2"}, 1),
    ],
)
@pytest.mark.parametrize("batches", [1, 2])
def test_the_greater_list_of_one_epoch_wins_and_the_later_one_of_another(
    store: ListStore, first: dict[str, object], second: dict[str, object], kept: int, batches: int
):
    rows = [make_row(0, **first), make_row(1, **second)]  # type: ignore[arg-type]

    taken = store.apply(rows) if batches == 1 else store.apply(rows[:1]) + store.apply(rows[1:])

    assert store.get("u1") == rows[kept].value
    assert [row.offset for row in taken] == ([0, 1] if kept == 1 else [0])


def test_any_order_of_one_epochs_lists_leaves_the_same_list(tmp_path: Path):
    orders = [(window_offset, activation) for window_offset in range(2) for activation in range(3)]

    left = set()
    for number, shuffled in enumerate(random.Random(7).sample(list(itertools.permutations(orders)), 12)):
        store = open_store(tmp_path / str(number))
        store.apply(
            [
                make_row(at, window_offset=order[0], activation=order[1], value=repr(order).encode())
                for at, order in enumerate(shuffled)
            ]
        )
        left.add(store.get("u1"))
        store.close()

    assert left == {b"(1, 2)"}


def test_a_record_without_a_value_removes_the_list(store: ListStore):
    store.apply([make_row(0), Row(1, value=None)])

    assert store.get("u1") is None
    assert store.count == 0


def test_a_record_taken_before_changes_nothing(store: ListStore):
    store.apply([make_row(0, window_offset=1), Row(1, value=None)])

    taken = store.apply([make_row(0, window_offset=1)])

    assert taken == []
    assert store.get("u1") is None


@pytest.mark.parametrize(
    "row",
    [
        Row(0, key=None),
        Row(0, headers={}),
        Row(0, headers={"epoch": b"e1", "window_offset": b"many", "activation": b"0"}),
        Row(0, headers={"epoch": b"e1", "window_offset": str(2**63).encode(), "activation": b"0"}),
        Row(0, headers={"epoch": b"e1", "window_offset": b"0", "activation": str(-(2**63) - 1).encode()}),
        Row(0, headers={"epoch": b"e" * 65_536, "window_offset": b"0", "activation": b"0"}),
        Row(0, headers={"epoch": None, "window_offset": b"0", "activation": b"0"}),  # type: ignore[dict-item]
    ],
)
def test_a_record_without_key_or_order_is_passed_over_and_its_neighbor_is_kept(store: ListStore, row: Row):
    store.apply([row, make_row(1)])

    assert store.count == 1
    assert store.next_offsets() == {0: 2}


def test_the_longest_epoch_and_the_greatest_numbers_are_kept(store: ListStore):
    longest = make_row(0, epoch="e" * 65_535, window_offset=2**63 - 1, activation=-(2**63))

    store.apply([longest])

    assert (store.get("u1"), store.count_at(-(2**63))) == (longest.value, 1)


def test_a_store_that_can_not_be_written_says_where(tmp_path: Path):
    store = open_store(tmp_path)

    with full_disk(), pytest.raises(StoreNotWritten, match=f"store {tmp_path} can't be written"):
        store.apply([make_row(0)])

    assert (store.get("u1"), store.count, store.next_offsets()) == (None, 0, {})
    with pytest.raises(StoreNotWritten):
        store.close()


def test_counts_follow_lists_by_activation(store: ListStore):
    store.apply([make_row(0, user_id="u1"), make_row(1, user_id="u2"), make_row(2, user_id="u3", activation=4)])
    store.apply([make_row(3, user_id="u1", window_offset=1, activation=4), make_row(4, user_id="u1", window_offset=0)])

    assert (store.count, store.count_at(0), store.count_at(4)) == (3, 1, 2)


def test_lists_offsets_and_counts_outlive_a_restart(tmp_path: Path):
    store = open_store(tmp_path)
    store.apply([make_row(0, user_id="u1", activation=2), make_row(7, user_id="u2", partition=3)])
    store.close()

    again = open_store(tmp_path)

    assert again.next_offsets() == {0: 1, 3: 8}
    assert (again.count, again.count_at(2)) == (2, 1)
    assert again.get("u2") == b'{"at":7}'
    again.close()


def test_another_topic_starts_the_store_afresh(tmp_path: Path):
    store = open_store(tmp_path)
    store.apply([make_row(0)])
    store.close()

    again = open_store(tmp_path, topic="cluster-a/recall-lists/2/4")

    assert (again.get("u1"), again.count, again.next_offsets()) == (None, 0, {})
    again.close()


def test_a_store_away_longer_than_removals_are_kept_starts_afresh(tmp_path: Path):
    store = open_store(tmp_path)
    store.apply([make_row(0)])
    store.close()

    again = open_store(tmp_path, now_ms=NOON_MS + ABSENT_AT_MOST_MS + 1)

    assert again.count == 0
    again.close()


def test_a_second_process_is_told_that_the_store_is_in_use(tmp_path: Path):
    store = open_store(tmp_path)

    with pytest.raises(StoreBusy, match="in use by another process"):
        open_store(tmp_path)
    store.close()


def test_a_damaged_store_says_what_to_do(tmp_path: Path):
    open_store(tmp_path).close()
    (tmp_path / "CURRENT").write_bytes(b"nonsense")

    with pytest.raises(DamagedStore, match="list store can be deleted"):
        open_store(tmp_path)


KILLED = """
import itertools, sys
from pathlib import Path
from tests.store.test_lists import make_row, open_store

store = open_store(Path(sys.argv[1]))
start = store.next_offsets().get(0, 0)
for at in itertools.count(start, 10):
    # Each user's list names the offset that made it, and each user is written every 50 records.
    store.apply([make_row(o, user_id=f"u{o % 50}", window_offset=o) for o in range(at, at + 10)])
    sys.stdout.write(f"{at + 10}\\n")
    sys.stdout.flush()
"""


def test_a_process_killed_while_applying_leaves_lists_and_offset_of_one_moment(tmp_path: Path):
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(40)][-1]
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        child.wait()

        store = open_store(tmp_path)
        end = store.next_offsets()[0]
        newest = {f"u{offset % 50}": offset for offset in range(end)}
        lists = {user_id: store.get(user_id) for user_id in newest}
        counted = store.count
        store.close()

        assert end >= acknowledged
        assert lists == {user_id: f'{{"at":{offset}}}'.encode() for user_id, offset in newest.items()}
        assert counted == len(newest)
