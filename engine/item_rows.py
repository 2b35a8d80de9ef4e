"""ItemRows: which item stands in which row, and how the items' ids order.

Rows are what an index answers with and what vectors are kept by. They are this process's own and never leave it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

RANKS = 2**32
"""Ranks of item ids are below this: they are the low half of a sort key."""
APART, LEAST_REACH = 1_024, 32
"""How far apart ranks are made where they have met, and of how many items to either side at least."""


class ItemRows:
    """Items by row: their ids, and the bytewise order of the ids. Rows are stable; new items come behind the others."""

    def __init__(self, item_ids: Sequence[str]) -> None:
        self.item_ids = list(item_ids)
        self._row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        # Code points order as UTF-8 bytes do, so sorting the strings is sorting the bytes.
        self._sorted = sorted(self.item_ids)
        self._ranks: NDArray[np.uint64] = np.zeros(len(self.item_ids), dtype=np.uint64)
        self._spread(0, len(self._sorted), 0, RANKS)

    @property
    def ranks(self) -> NDArray[np.uint64]:
        """(N,) below 2^32, ascending as the items' ids are, bytewise."""
        return self._ranks[: len(self.item_ids)]

    def __len__(self) -> int:
        return len(self.item_ids)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._row_of

    def row(self, item_id: str) -> int | None:
        """Return the row of *item_id*; None where it has none."""
        return self._row_of.get(item_id)

    def rows(self, item_ids: Iterable[str]) -> set[int]:
        """Return the rows of those *item_ids* that are known here."""
        rows = set(map(self._row_of.get, item_ids))
        rows.discard(None)
        return cast(set[int], rows)

    def mask(self, item_ids: Iterable[str]) -> NDArray[np.bool_]:
        """Return (N,) bool, True at the rows of *item_ids*."""
        mask = np.zeros(len(self), dtype=np.bool_)
        mask[list(self.rows(item_ids))] = True
        return mask

    def add(self, item_id: str) -> int:
        """Return the row of *item_id*, the next one where it had none."""
        known = self._row_of.get(item_id)
        if known is not None:
            return known
        row = self._row_of[item_id] = len(self.item_ids)
        self.item_ids.append(item_id)
        if row == len(self._ranks):
            self._ranks = np.concatenate([self._ranks, np.zeros(row // 4 + 1, dtype=np.uint64)])
        place = bisect.bisect_left(self._sorted, item_id)
        below, above = self._rank_before(place), self._rank_before(place + 1)
        self._sorted.insert(place, item_id)
        if above - below < 2:
            self._make_room(place)
        else:
            self._ranks[row] = (below + above) // 2
        return row

    def _rank_before(self, place: int) -> int:
        """Return the rank of the item before *place* in the order of ids; 0 before the first, RANKS behind the last."""
        if place == 0:
            return 0
        return int(self._ranks[self._row_of[self._sorted[place - 1]]]) if place <= len(self._sorted) else RANKS

    def _make_room(self, place: int) -> None:
        """Rank anew as many items around *place* as it takes to get them apart: a few, even where ids come in order."""
        reach = LEAST_REACH
        while True:
            first, end = max(0, place - reach), min(len(self._sorted), place + reach)
            below, above = self._rank_before(first), self._rank_before(end + 1)
            is_all = end - first == len(self._sorted)
            if is_all or above - below >= APART * (end - first + 1):
                self._spread(first, end, below, above)
                return
            reach *= 4

    def _spread(self, first: int, end: int, below: int, above: int) -> None:
        """Rank the items *first* to *end*, in the order of ids, evenly between *below* and *above*."""
        rows = np.array([self._row_of[item_id] for item_id in self._sorted[first:end]], dtype=np.int64)
        apart = (above - below) // (len(rows) + 1)
        self._ranks[rows] = below + np.arange(1, len(rows) + 1, dtype=np.uint64) * np.uint64(apart)
