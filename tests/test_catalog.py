from __future__ import annotations

import pytest

from engine.catalog import Catalog
from engine.events import ItemEvent, encode_item
from engine.log import Record
from engine.metrics import CATALOG_ITEMS, ITEMS_REJECTED
from engine.settings import Settings
from tests.builders import NOON_MS


def record(value: bytes | None, *, key: str = "i1", offset: int = 0) -> Record:
    return Record("items", 0, offset, NOON_MS, key.encode(), value, {})


def item_record(
    item_id: str = "i1", *, title: str | None = None, category: str | None = None, available: bool = True
) -> Record:
    item = ItemEvent(item_id=item_id, title=title, category=category, available=available)
    return record(encode_item(item), key=item_id)


def removal(item_id: str = "i1") -> Record:
    return record(encode_item(ItemEvent(item_id=item_id, removed=True)), key=item_id)


async def catalog_of(*records: Record) -> Catalog:
    catalog = Catalog(Settings())
    await catalog.apply(records)
    return catalog


async def test_item_is_answered_with_its_title_and_category():
    catalog = await catalog_of(item_record(title="Mug", category="kitchen"))

    assert (catalog.title("i1"), catalog.category("i1"), catalog.is_available("i1")) == ("Mug", "kitchen", True)


async def test_last_record_of_an_item_wins():
    catalog = await catalog_of(item_record(title="Mug"), item_record(title="Cup"))

    assert catalog.title("i1") == "Cup"
    assert len(catalog) == 1


async def test_item_never_seen_is_available_and_nothing_more_is_known():
    catalog = await catalog_of()

    assert (catalog.get("i1"), catalog.title("i1"), catalog.category("i1")) == (None, None, None)
    assert catalog.is_available("i1")


async def test_removed_item_is_gone_and_not_available():
    catalog = await catalog_of(item_record(title="Mug"), removal())

    assert (catalog.get("i1"), catalog.is_removed("i1"), catalog.is_available("i1")) == (None, True, False)


async def test_item_sent_again_after_its_removal_is_back():
    catalog = await catalog_of(removal(), item_record(title="Mug"))

    assert (catalog.title("i1"), catalog.is_removed("i1"), catalog.is_available("i1")) == ("Mug", False, True)


async def test_unavailable_item_keeps_its_title():
    catalog = await catalog_of(item_record(title="Mug", available=False))

    assert (catalog.title("i1"), catalog.is_removed("i1"), catalog.is_available("i1")) == ("Mug", False, False)


async def test_unavailable_ids_hold_removed_and_unavailable_items():
    catalog = await catalog_of(item_record("a"), item_record("b", available=False), removal("c"))

    assert catalog.unavailable_ids() == {"b", "c"}


async def test_a_category_holds_the_items_whose_last_record_names_it():
    catalog = await catalog_of(
        *(item_record(item_id, category="kitchen") for item_id in ("i1", "i2", "i3", "i4")),
        item_record("i2", category="garden"),
        removal("i3"),
        record(None, key="i4"),
    )

    assert catalog.items_in("kitchen") == {"i1"}
    assert catalog.items_in("garden") == {"i2"}
    assert catalog.items_in("none") == frozenset()


async def test_who_asks_is_told_what_changed_since():
    catalog = await catalog_of(item_record("a"), removal("b"), item_record("c", available=False), record(None, key="d"))
    everything, mark = catalog.changes_since(None)
    await catalog.apply(
        [item_record("a", title="Cup"), item_record("e"), record(None, key="c"), record(b"}{", key="f")]
    )

    changed, later = catalog.changes_since(mark)

    assert set(everything) == {"a", "b", "c"}
    assert changed == {"a", "c", "e"}
    assert catalog.changes_since(later) == (set(), later)


async def test_who_asks_too_late_is_told_everything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.catalog.REMEMBERED_CHANGES", 3)
    catalog = await catalog_of(item_record("a"))
    _, mark = catalog.changes_since(None)
    await catalog.apply([item_record(f"i{at}") for at in range(4)])

    assert set(catalog.changes_since(mark)[0]) == {"a", "i0", "i1", "i2", "i3"}
    assert catalog.changes_since(mark + 1)[0] == {"i1", "i2", "i3"}


async def test_null_value_forgets_the_item_as_compaction_would():
    catalog = await catalog_of(removal(), record(None))

    assert (catalog.get("i1"), catalog.is_removed("i1"), catalog.is_available("i1")) == (None, False, True)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(b"", "empty"), (b"{", "json"), (b'{"item_id": 7}', "type"), (b"\xff", "encoding"), (b"[]", "type")],
)
async def test_bad_record_is_counted_and_good_ones_beside_it_are_taken(value: bytes, reason: str):
    before = ITEMS_REJECTED.labels(reason)._value.get()

    catalog = await catalog_of(item_record("a"), record(value, key="b"), item_record("c"))

    assert [catalog.get(item_id) is not None for item_id in "abc"] == [True, False, True]
    assert ITEMS_REJECTED.labels(reason)._value.get() - before == 1


async def test_gauge_counts_items_without_the_removed():
    await catalog_of(item_record("a"), item_record("b"), removal("b"))

    assert CATALOG_ITEMS._value.get() == 1
