"""ItemRows: which item stands in which row, and how the items' ids order.

Rows are what an index answers with and what vectors are kept by. They are this process's own and never leave it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

RANKS = 2**32
"""Ranks of item ids are below this: they are the low half of a sort key."""


class ItemRows:
    """Items by row: their ids, and the bytewise order of the ids. Rows are stable; new items come behind the others."""

    def __init__(self, item_ids: Sequence[str]) -> None:
        self.item_ids = list(item_ids)
        self._row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        self._sorted: list[str] = []
        self._ranks: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._spread_ranks()

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
        return {self._row_of[item_id] for item_id in item_ids if item_id in self._row_of}

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
        below = int(self._ranks[self._row_of[self._sorted[place - 1]]]) if place else 0
        above = int(self._ranks[self._row_of[self._sorted[place]]]) if place < len(self._sorted) else RANKS
        self._sorted.insert(place, item_id)
        if above - below < 2:
            self._spread_ranks()
        else:
            self._ranks[row] = (below + above) // 2
        return row

    def _spread_ranks(self) -> None:
        """Give the items ranks far apart, so that a new one finds room between two others."""
        # Code points order as UTF-8 bytes do, so sorting the strings is sorting the bytes.
        self._sorted = sorted(self.item_ids)
        rows = np.array([self._row_of[item_id] for item_id in self._sorted], dtype=np.int64)
        apart = RANKS // (len(rows) + 1)
        self._ranks = np.zeros(len(rows), dtype=np.uint64)
        self._ranks[rows] = np.arange(1, len(rows) + 1, dtype=np.uint64) * np.uint64(apart)
