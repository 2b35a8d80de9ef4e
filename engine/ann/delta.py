"""Items beside an index: their rows and vectors without gaps, so that they are searched exactly and at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from engine.ann.index import Rows, Vectors
from engine.ann.selection import top_places

NO_PLACE = -1
LEAST_ROOM = 64


class Delta:
    """Vectors by row; rows come and go, and keep no order."""

    def __init__(self, dimensions: int) -> None:
        self._place_of = np.full(0, NO_PLACE, dtype=np.int32)
        """By row, its place in the two arrays below."""
        self._rows: Rows = np.empty(LEAST_ROOM, dtype=np.int64)
        self._vectors: Vectors = np.empty((LEAST_ROOM, dimensions), dtype=np.float32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Rows:
        """(n,) which rows are here; not to be written to, and only good until the next change."""
        return self._rows[: self._count]

    @property
    def vectors(self) -> Vectors:
        """(n, D) the vectors of `rows`, likewise."""
        return self._vectors[: self._count]

    def holds(self, rows: npt.NDArray[np.signedinteger]) -> npt.NDArray[np.bool_]:
        """Return which of *rows*, all within what was reserved, are here; for -1 anything."""
        held: npt.NDArray[np.bool_] = self._place_of[rows] != NO_PLACE
        return held

    def reserve(self, rows: int) -> None:
        """Have room for the rows below *rows*; only those may be put, removed and asked for."""
        if rows > len(self._place_of):
            more = np.full(rows - len(self._place_of), NO_PLACE, dtype=np.int32)
            self._place_of = np.concatenate([self._place_of, more])

    def put(self, rows: Rows, vectors: Vectors) -> None:
        """Take in (n,) *rows*, each once, with their (n, D) *vectors*."""
        new = rows[self._place_of[rows] == NO_PLACE]
        count = self._count + len(new)
        if count > len(self._rows):
            self._rows = np.concatenate([self.rows, np.empty(count, dtype=np.int64)])
            room = np.empty((count, self._vectors.shape[1]), dtype=np.float32)
            self._vectors = np.concatenate([self.vectors, room])
        self._rows[self._count : count] = new
        self._place_of[new] = np.arange(self._count, count)
        self._count = count
        self._vectors[self._place_of[rows]] = vectors

    def remove(self, rows: Iterable[int]) -> None:
        """Let go of *rows*, those that are not here left out; the last one takes the place of each."""
        for row in rows:
            place = int(self._place_of[row])
            if place != NO_PLACE:
                self._count -= 1
                last = self._rows[self._count]
                self._rows[place], self._vectors[place] = last, self._vectors[self._count]
                self._place_of[last] = place
                self._place_of[row] = NO_PLACE

    def keep(self, rows: Collection[int]) -> None:
        """Let go of all but *rows*."""
        kept = np.isin(self.rows, np.fromiter(rows, dtype=np.int64, count=len(rows)))
        left, vectors = self.rows[kept], self.vectors[kept]
        self._place_of[self.rows] = NO_PLACE
        self._count = 0
        if len(left):
            self.put(left, vectors)

    def nearest(self, interests: Vectors, k: int) -> Rows:
        """Return (Q, at most k) places with the greatest inner products with (Q, D) *interests*, in no order."""
        if self._count <= k:
            return np.broadcast_to(np.arange(self._count), (len(interests), self._count))
        return top_places(interests @ self.vectors.T, k)
