"""Negative clicks on disk: a range of their own, bounded, trimmed and erased with the user's others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StoreFormatError
from engine.events import ClickEvent
from engine.store import codec
from engine.store.rocksdb import open_for_writing
from engine.store.windows import PartitionStore
from engine.window import BehaviorWindow
from tests.builders import make_click
from tests.store.stores import HEADER, apply
from tests.store.test_golden import raw, stored_by

CLICKS = st.lists(
    st.tuples(st.sampled_from(["u", "u1", "ü"]), st.integers(0, 9), st.sampled_from(["click", "hide", "dislike"])),
    max_size=80,
)


def hide(item_id: str, at: int) -> ClickEvent:
    return make_click(item_id=item_id, clicked_at_ms=at, event_type="hide")


def keys_of_clicks(store: PartitionStore) -> int:
    return sum(1 for key in store._db.keys(from_key=b"w") if key[:1] == b"w")  # type: ignore[index]


def refresh(store: PartitionStore) -> list[BehaviorWindow]:
    batch = store.take_dirty(100)
    windows = [batch.read_window(user.user_id) for user in batch.users]
    store.settle(batch, [])
    return windows


def test_a_hidden_item_is_still_there_after_hundreds_of_clicks_on_others(store: PartitionStore) -> None:
    apply(store, hide("hidden", 0))
    for start in range(1, 900, 100):  # the first batch and the ninth trim
        apply(store, *(make_click(item_id=f"i{at}", clicked_at_ms=at) for at in range(start, start + 100)))
        (window,) = refresh(store)
        assert (window.item_ids[0], len(window)) == ("hidden", HEADER.max_clicks + 1)

    assert store.read_window("u1").item_ids == ["hidden", "i898", "i899", "i900"]
    assert keys_of_clicks(store) == HEADER.max_clicks + 1


def test_surplus_of_both_sorts_is_deleted_and_nothing_else(store: PartitionStore) -> None:
    apply(store, *(hide(f"h{at}", at) for at in range(500)), *(make_click(item_id="i", clicked_at_ms=1),) * 2)
    apply(store, *(make_click(user_id="other", item_id=f"i{at}", clicked_at_ms=at) for at in range(3)))
    apply(store, *(make_click(user_id="t", item_id=f"i{at}", clicked_at_ms=at) for at in range(500)))
    expected = [["i", "h497", "h498", "h499"], ["i0", "i1", "i2"], ["i497", "i498", "i499"]]

    assert [window.item_ids for window in refresh(store)] == expected
    assert [store.read_window(user).item_ids for user in ("u1", "other", "t")] == expected
    assert keys_of_clicks(store) == 4 + 3 + 3


def test_a_user_with_negative_clicks_alone_is_listed_held_and_erased(store: PartitionStore) -> None:
    apply(store, hide("h", 5), make_click(user_id="other"))

    assert (list(store.users()), store.holds("u1")) == (["other", "u1"], True)

    store.erase({"u1": store.applied_offset}, [])

    assert (list(store.users()), store.holds("u1")) == (["other"], False)


@settings(max_examples=30, deadline=None)
@given(CLICKS, st.booleans())
def test_any_order_leaves_the_window_of_the_rule(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int, str]], is_trimmed: bool
) -> None:
    clicks = [make_click(user_id=u, clicked_at_ms=at, item_id=f"i{at % 3}", event_type=kind) for u, at, kind in drawn]
    store = PartitionStore.open(tmp_path_factory.mktemp("stores") / "store", HEADER)
    for click in clicks:
        apply(store, click)
        if is_trimmed:
            refresh(store)

    for user in {click.user_id for click in clicks}:
        expected = BehaviorWindow.of([c for c in clicks if c.user_id == user], max_clicks=HEADER.max_clicks)
        assert store.read_window(user) == expected
    store.close()


def test_a_store_of_format_1_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    db = open_for_writing(tmp_path / "store")
    header = (
        b'{"cluster_id":"c","topic":"clicks","topic_id":"t","partitions":1,"partition":0,"max_clicks":3,"format":1}'
    )
    db.put(codec.HEADER_KEY, header)
    for entry in stored_by(1)["clicks"]:
        db.put(*raw(entry))
    db.close()
    wanted = type(HEADER)("c", "clicks", "t", 1, 0, 3)

    for _ in range(2):
        with pytest.raises(StoreFormatError, match=r"has format 1, this process expects 3; .*let the log rebuild it"):
            PartitionStore.open(tmp_path / "store", wanted)
