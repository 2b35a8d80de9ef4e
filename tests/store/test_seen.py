"""Clicks behind the window that stay for the items they saw."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.settings import Settings
from engine.store.windows import PartitionStore
from engine.window import DAY_MS, BehaviorWindow, SeenRule
from tests.builders import make_click
from tests.store.stores import HEADER, apply
from tests.store.test_negative_clicks import hide, keys_of_clicks, refresh

RULE = SeenRule(within_ms=10, max_clicks=7)


def open_store(path: Path, rule: SeenRule | None = RULE) -> PartitionStore:
    return PartitionStore.open(path / "store", HEADER, seen=rule)


def test_items_of_the_last_days_are_seen_up_to_the_bound(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    apply(store, *(make_click(item_id=f"i{at % 6}", clicked_at_ms=at) for at in range(100)))

    window = store.read_window("u1")

    #  .. 93 94 95 96 | 97 98 99    seven clicks count, three of them the window
    assert (window.item_ids, window.seen) == (["i1", "i2", "i3"], ("i0", "i5", "i4", "i3"))
    store.close()


def test_what_is_older_than_the_days_is_not_seen(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    apply(store, *(make_click(item_id=f"i{at}", clicked_at_ms=at * 5) for at in range(10)))

    #  30 35 40 45: the newest three are the window, 35 is ten before 45
    assert store.read_window("u1").seen == ()

    apply(store, make_click(item_id="late", clicked_at_ms=36))

    assert store.read_window("u1").seen == ("i7",)
    store.close()


def test_what_nobody_needs_is_trimmed_and_the_seen_ones_stay(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    apply(store, hide("hidden", 0), *(make_click(item_id=f"i{at}", clicked_at_ms=at) for at in range(100)))

    [window] = refresh(store)

    assert keys_of_clicks(store) == 1 + RULE.max_clicks
    assert store.read_window("u1") == window
    assert window.seen == ("i96", "i95", "i94", "i93")
    store.close()


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.sampled_from(["click", "click", "hide"]))))
def test_a_store_reads_the_window_that_the_clicks_make(made: list[tuple[int, int, str]]) -> None:
    clicks = [make_click(item_id=f"i{item}", clicked_at_ms=at, event_type=kind) for at, item, kind in made]
    with TemporaryDirectory() as folder:
        store = open_store(Path(folder))
        apply(store, *clicks)
        window = store.read_window("u1")
        store.close()

    assert window == BehaviorWindow.of(clicks, max_clicks=HEADER.max_clicks, seen=RULE)


def test_without_a_rule_nothing_is_seen_and_everything_behind_the_window_goes(tmp_path: Path) -> None:
    store = open_store(tmp_path, None)
    apply(store, *(make_click(item_id=f"i{at}", clicked_at_ms=at) for at in range(100)))

    [window] = refresh(store)

    assert window.seen == ()
    assert keys_of_clicks(store) == HEADER.max_clicks
    store.close()


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({}, None),
        ({"seen_days": 0.5}, SeenRule(DAY_MS // 2, 500)),
        ({"seen_days": 2, "seen_max_clicks": 60}, SeenRule(2 * DAY_MS, 60)),
        ({"seen_days": 2, "exclude_seen": False}, None),
    ],
)
def test_the_rule_is_that_of_the_settings(changed: dict[str, object], rule: SeenRule | None) -> None:
    assert SeenRule.of(Settings(**changed)) == rule
