"""ItemRows: which item stands in which row, and how the items' ids order.

Rows are what an index answers with and what vectors are kept by. They are this process's own and never leave it.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Self

import numpy as np
from numpy.typing import NDArray

NO_ROW = -1
"""Stands where there is no item; its score is minus infinity."""
RANKS = 2**32
"""Ranks of item ids are below this: they are the low half of a sort key."""
APART, LEAST_REACH = 1_024, 32
"""How far apart ranks are made where they have met, and of how many items to either side at least."""


@dataclass(frozen=True, slots=True)
class FlatRows:
    """B times some rows, one after the other."""

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    """(B + 1,) where each begins, and where the last one ends."""

    @classmethod
    def of(cls, rows: NDArray[np.int64], counts: Sequence[int]) -> Self:
        """Return *rows* as belonging together by *counts*."""
        starts = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=starts[1:])
        return cls(rows, starts)

    def part(self, first: int, end: int) -> Self:
        """Return those from *first* to before *end* of the B."""
        starts = self.starts[first : end + 1]
        return type(self)(self.rows[starts[0] : starts[-1]], starts - starts[0])


class ItemRows:
    """Items by row: their ids, and the bytewise order of the ids. Rows are stable; new items come behind the others."""

    def __init__(self, item_ids: Sequence[str], numbers: Mapping[str, int] | None = None) -> None:
        """Put *item_ids*, each once, in the rows from 0.

        Whoever numbers these and other items already, from 1 without a gap, gives *numbers*: ids are looked up there,
        and not kept a second time.
        """
        known = {item_id: number for number, item_id in enumerate(item_ids, start=1)} if numbers is None else numbers
        self._numbers = known
        self._row_of_number = np.full(len(known) + 1, NO_ROW, dtype=np.int32)
        """By number, from 1; none for 0."""
        given = np.fromiter(map(known.get, item_ids, repeat(0)), dtype=np.int64, count=len(item_ids))
        self._row_of_number[given] = np.arange(len(item_ids), dtype=np.int32)
        self._row_of_number[0] = NO_ROW
        self._row_of_others = {item_ids[row]: row for row in np.flatnonzero(given == 0).tolist()}
        self._ids = np.array(item_ids, dtype=np.object_)
        self._count = len(item_ids)
        # Code points order as UTF-8 bytes do, so sorting the strings is sorting the bytes.
        self._sorted = sorted(item_ids)
        self._ranks: NDArray[np.uint64] = np.zeros(len(item_ids), dtype=np.uint64)
        self._spread(0, len(self._sorted), 0, RANKS)

    @property
    def item_ids(self) -> NDArray[np.object_]:
        """(N,) the items' ids by row, as texts; an array, for `take` reads many faster than a loop does."""
        return self._ids[: self._count]

    @property
    def ranks(self) -> NDArray[np.uint64]:
        """(N,) below 2^32, ascending as the items' ids are, bytewise."""
        return self._ranks[: self._count]

    def __len__(self) -> int:
        return self._count

    def __contains__(self, item_id: str) -> bool:
        return self.row(item_id) is not None

    def row(self, item_id: str) -> int | None:
        """Return the row of *item_id*; None where it has none."""
        number = self._numbers.get(item_id, 0)
        row = self._row_of_number.item(number) if number else self._row_of_others.get(item_id, NO_ROW)
        return None if row == NO_ROW else row

    def flat_rows(self, item_ids: Sequence[Collection[str]]) -> FlatRows:
        """Return the rows of all of B times some items; -1 for those that are not known here."""
        counts = [len(own) for own in item_ids]
        return FlatRows.of(self._rows_of(chain.from_iterable(item_ids), sum(counts)), counts)

    def mask(self, item_ids: Collection[str]) -> NDArray[np.bool_]:
        """Return (N,) bool, True at the rows of *item_ids*."""
        mask = np.zeros(len(self), dtype=np.bool_)
        rows = self._rows_of(item_ids, len(item_ids))
        mask[rows[rows != NO_ROW]] = True
        return mask

    def add(self, item_id: str) -> int:
        """Return the row of *item_id*, the next one where it had none."""
        known = self.row(item_id)
        if known is not None:
            return known
        row = self._count
        number = self._numbers.get(item_id, 0)
        if number:
            self._row_of_number[number] = row
        else:
            self._row_of_others[item_id] = row
        if row == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(row // 4 + 1, dtype=np.object_)])
            self._ranks = np.concatenate([self._ranks, np.zeros(row // 4 + 1, dtype=np.uint64)])
        self._ids[row] = item_id
        self._count += 1
        place = bisect.bisect_left(self._sorted, item_id)
        below, above = self._rank_before(place), self._rank_before(place + 1)
        self._sorted.insert(place, item_id)
        if above - below < 2:
            self._make_room(place)
        else:
            self._ranks[row] = (below + above) // 2
        return row

    def _rows_of(self, item_ids: Iterable[str], count: int) -> NDArray[np.int64]:
        """Return the rows of so many *item_ids*; -1 for those that are not known here."""
        if self._row_of_others:
            item_ids = list(item_ids)
        numbers = np.fromiter(map(self._numbers.get, item_ids, repeat(0)), dtype=np.int64, count=count)
        rows = self._row_of_number[numbers].astype(np.int64)
        if self._row_of_others:
            others = [*map(self._row_of_others.get, item_ids, repeat(NO_ROW))]
            rows = np.where(numbers > 0, rows, others)
        return rows

    def _rank_before(self, place: int) -> int:
        """Return the rank of the item before *place* in the order of ids; 0 before the first, RANKS behind the last."""
        if place == 0:
            return 0
        return int(self._ranks[self.row(self._sorted[place - 1])]) if place <= len(self._sorted) else RANKS

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
        rows = self._rows_of(self._sorted[first:end], end - first)
        apart = (above - below) // (len(rows) + 1)
        self._ranks[rows] = below + np.arange(1, len(rows) + 1, dtype=np.uint64) * np.uint64(apart)
