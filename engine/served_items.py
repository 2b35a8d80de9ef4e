"""The items that lists are made of: those of a model version, and what the catalog has added or changed since.

Stands between the catalog, which changes at any moment, and whoever makes lists, one thread at a time. `catch_up` is
called between two micro-batches or queries, and nothing here changes in between. An item that the version doesn't know
gets a vector from its category, brand, shop and features; one whose fields are others than in training a new vector. A
user's clicks on an item form interests only from the next version on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from engine import metrics
from engine.ann.live import LiveIndex
from engine.catalog import Catalog
from engine.item_rows import ItemRows
from engine.merge import NO_CATEGORY
from engine.model import InterestModel
from engine.model.features import ItemInput
from engine.settings import Settings
from engine.snapshot import ServingSnapshot, builder_of

AT_ONCE = 10_000
"""So many items are looked at together."""


class ServedItems:
    """Rows, index and availability of the items under one snapshot."""

    def __init__(self, settings: Settings, snapshot: ServingSnapshot, catalog: Catalog) -> None:
        """Begin with the items of *snapshot* as they were in training; `catch_up` brings them to the present."""
        assert snapshot.model is not None
        self._model: InterestModel = snapshot.model
        self._catalog = catalog
        self._trained = len(snapshot.item_ids)
        self.rows = ItemRows(snapshot.item_ids, self._model.vocabulary.item_rows)
        base = snapshot.index
        if base is None:  # somebody took it over before
            vectors = self._model.all_item_vectors()[1]
            base = builder_of(settings)(vectors, rows=np.arange(len(vectors)))
        self.index = LiveIndex(
            base, build=builder_of(settings, like=base), rebuild_at=settings.index_rebuild_at, room=snapshot.room
        )
        self.unavailable: NDArray[np.bool_] = np.zeros(len(self.rows), dtype=np.bool_)
        """(N,) bool, True where an item is removed, not available, or no longer found by anything."""
        self.categories: NDArray[np.int32] = np.full(len(self.rows), NO_CATEGORY, dtype=np.int32)
        """(N,) a number for each item's category in the catalog, `NO_CATEGORY` for none."""
        self._category_numbers: dict[str, int] = {}
        self._changed_rows: set[int] = set()
        self._without_vector: set[str] = set()
        self._mark: int | None = None

    def catch_up(self) -> None:
        """Take in what the catalog was told since the last call."""
        changed, self._mark = self._catalog.changes_since(self._mark)
        if changed:
            self._take(changed)
        self.index.catch_up()
        metrics.INDEX_DELTA.set(self.index.delta_size)
        metrics.ITEMS_WITHOUT_VECTOR.set(len(self._without_vector))

    def row(self, item_id: str) -> int | None:
        """Return the row of an item that has a vector now; None of any other."""
        row = self.rows.row(item_id)
        return row if row is not None and (row < self._trained or row in self._changed_rows) else None

    def _take(self, changed: Collection[str]) -> None:
        known = [(item_id, self._catalog.get(item_id)) for item_id in sorted(changed)]
        inputs = [
            ItemInput(item.item_id, item.category, item.brand, item.shop, item.features)
            for _, item in known
            if item is not None
        ]
        for start in range(0, len(inputs), AT_ONCE):
            self._take_described(inputs[start : start + AT_ONCE])
        self._take_back([item_id for item_id, item in known if item is None])
        self._note_availability(changed)
        self._note_categories(changed)

    def _take_described(self, items: Sequence[ItemInput]) -> None:
        differs = self._model.differ(items)
        self._take_back([item.item_id for item, is_other in zip(items, differs, strict=True) if not is_other])
        others = [item for item, is_other in zip(items, differs, strict=True) if is_other]
        if not others:
            return
        vectors = self._model.item_vectors(others)
        rows = [self.rows.add(item.item_id) for item in others]
        self.index.put(rows, vectors)
        self._changed_rows.update(rows)
        self._without_vector.difference_update(item.item_id for item in others)

    def _take_back(self, item_ids: Sequence[str]) -> None:
        """Give items the vector of their training again; those that training didn't know have none."""
        rows = {row for item_id in item_ids if (row := self.rows.row(item_id)) in self._changed_rows}
        trained = sorted(row for row in rows if row < self._trained)
        if trained:
            self.index.put(trained, self._model.item_vectors([ItemInput(self.rows.item_ids[row]) for row in trained]))
        self.index.remove(sorted(row for row in rows if row >= self._trained))
        self._changed_rows -= rows
        for item_id in item_ids:
            row = self.rows.row(item_id)
            if (row is None or row >= self._trained) and self._catalog.get(item_id) is not None:
                self._without_vector.add(item_id)
            else:
                self._without_vector.discard(item_id)

    def _note_categories(self, changed: Collection[str]) -> None:
        more = len(self.rows) - len(self.categories)
        if more:
            self.categories = np.concatenate([self.categories, np.full(more, NO_CATEGORY, dtype=np.int32)])
        for item_id in changed:
            row, category = self.rows.row(item_id), self._catalog.category(item_id)
            if row is not None:
                numbers = self._category_numbers
                number = NO_CATEGORY if category is None else numbers.setdefault(category, len(numbers))
                self.categories[row] = number

    def _note_availability(self, changed: Collection[str]) -> None:
        more = len(self.rows) - len(self.unavailable)
        if more:
            self.unavailable = np.concatenate([self.unavailable, np.zeros(more, dtype=np.bool_)])
        for item_id in changed:
            row = self.rows.row(item_id)
            if row is not None:
                is_lost = row >= self._trained and row not in self._changed_rows
                self.unavailable[row] = is_lost or not self._catalog.is_available(item_id)
