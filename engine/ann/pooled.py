"""Search only what moved: an interest near to where its user searched before scores what was found then.

A click moves the interest that it belongs to, and the others little. So the index is searched by interests that are
farther than a bound from everything their user searched with before; the candidates of a user are then all that the
user's searches found, the last one of each interest, scored exactly by every interest in use. Delta and removals of the
live index count for those who don't search too.

What is missed: items that came near while no interest moved by the bound at once. The bound sets how many they are
(benchmarks/README.md has the curve), and audits watch it (`engine/recaller.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.ann.index import NO_ROW, Rows, Vectors, check_interests
from engine.ann.live import LiveIndex
from engine.ann.pools import CandidatePools, Places

_NOTHING = np.iinfo(np.int32).max
"""Stands for no row while rows are sorted, so that it comes last."""
_USERS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Found:
    """What B users' interests found together; M places each, those without an item have row -1 and score -inf."""

    rows: Rows
    """(B, M), each row of a user once."""
    scores: Vectors
    """(B, M) inner product with the user's best interest for the item."""
    slots: Rows
    """(B, M) which interest that is, counted among all K."""
    each: Vectors
    """(B, K, M) inner product with every interest, -inf with those not in use and where there is no item."""
    searched: npt.NDArray[np.bool_]
    """(B, K) True for interests that searched the index; the others in use scored again."""


class PooledSearch:
    """Finds the candidates of users who come again and again; one thread at a time."""

    def __init__(self, index: LiveIndex, pools: CandidatePools, *, bound: float) -> None:
        """Search *index*, and keep what is found in *pools*.

        Args:
            index: may change between two calls.
            pools: empty, and nobody else's.
            bound: an interest searches when it is farther than this share of its length from all that its user
                searched with; 0 for always.
        """
        self._index, self._pools, self.bound = index, pools, bound
        self._generation = index.generation

    @property
    def users(self) -> int:
        """How many users there is room for."""
        return self._pools.users

    @property
    def width(self) -> int:
        """Candidates of an interest."""
        return self._pools.width

    def __len__(self) -> int:
        return len(self._pools)

    def find(self, users: Sequence[str], interests: Vectors, mask: npt.NDArray[np.bool_]) -> Found:
        """Return the candidates of each of *users*.

        Args:
            users: B keys, each once; at most as many as the pools hold.
            interests: (B, K, D) float32. One that isn't finite finds nothing.
            mask: (B, K) bool, True for interests in use.

        Raises:
            DimensionMismatch: the interests have another D than the items.
        """
        if not self.bound or self._index.generation != self._generation:
            self._generation = self._index.generation
            self._pools.clear()
        count, slots, dimensions = interests.shape
        queries, finite = check_interests(interests.reshape(count * slots, dimensions), self._index.dimensions)
        vectors, used = queries.reshape(interests.shape), mask & finite.reshape(mask.shape)
        places = self._pools.claim(users)
        searched = used & self._moved(vectors, places)
        self._search(vectors, places, searched)
        rows = self._gather(vectors, places, used)
        return Found(rows, *score_all(self._index.vectors, vectors, used, rows), searched)

    def forget(self, user: str) -> None:
        """Forget what *user* searched with and found."""
        self._pools.forget(user)

    def _moved(self, vectors: Vectors, places: Places) -> npt.NDArray[np.bool_]:
        """Return (B, K), True for interests that are farther than the bound from all pools of their user."""
        held = self._pools.vectors[places]
        lengths, held_lengths = (np.square(each).sum(axis=2) for each in (vectors, held))
        distances = lengths[:, :, None] + held_lengths[:, None, :] - 2.0 * (vectors @ held.transpose(0, 2, 1))
        distances[np.broadcast_to(held_lengths[:, None, :] == 0.0, distances.shape)] = np.inf
        nearest = np.maximum(distances.min(axis=2), 0.0)  # rounding may leave less
        moved: npt.NDArray[np.bool_] = nearest >= self.bound**2 * lengths
        return moved

    def _search(self, vectors: Vectors, places: Places, searched: npt.NDArray[np.bool_]) -> None:
        if not searched.any():
            return
        users, slots = np.nonzero(searched)
        queries = vectors[searched]
        self._pools.rows[places[users], slots] = self._index.base_candidates(queries, self._pools.width)
        self._pools.vectors[places[users], slots] = queries

    def _gather(self, vectors: Vectors, places: Places, used: npt.NDArray[np.bool_]) -> Rows:
        """Return (B, M) candidate rows, each once a user, ascending, then -1."""
        rows = self._pools.rows[places].reshape(len(places), -1)
        rows[self._index.is_gone(rows)] = _NOTHING
        if self._index.delta_size:
            rows = np.concatenate([rows, self._delta(vectors, used)], axis=1)
        rows.sort(axis=1)
        rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = _NOTHING
        rows.sort(axis=1)
        width = int((rows != _NOTHING).sum(axis=1).max(initial=0))
        chosen = rows[:, :width].astype(np.int64)
        chosen[chosen == _NOTHING] = NO_ROW
        return chosen

    def _delta(self, vectors: Vectors, used: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        users, slots = np.nonzero(used)
        near = self._index.delta_candidates(vectors[used], self._pools.width)
        rows = np.full((*used.shape, near.shape[1]), _NOTHING, dtype=np.int32)
        rows[users, slots] = near
        return rows.reshape(len(used), -1)


def score_all(
    items: Vectors, vectors: Vectors, used: npt.NDArray[np.bool_], rows: Rows
) -> tuple[Vectors, Rows, Vectors]:
    """Return inner products: the (B, M) greatest over the interests in use, whose they are, and all (B, K, M).

    Of equals it is the lowest interest. As in `index.score`, the sum of one item doesn't depend on what stands beside
    it.

    Args:
        items: (N, D) float32.
        vectors: (B, K, D) float32 interests.
        used: (B, K) bool, True for those in use.
        rows: (B, M) int64 item rows, -1 for none, whose score is -inf.
    """
    best = np.empty(rows.shape, dtype=np.float32)
    slots = np.empty(rows.shape, dtype=np.int64)
    each = np.full((*used.shape, rows.shape[1]), -np.inf, dtype=np.float32)
    for start in range(0, len(rows), _USERS_AT_ONCE):
        part = slice(start, start + _USERS_AT_ONCE)
        gathered = items.take(rows[part], axis=0)  # (U, M, D), which stay in the cache for all interests
        scores = each[part]
        for slot in np.flatnonzero(used[part].any(axis=0)).tolist():
            np.vecdot(gathered, vectors[part, slot, None], out=scores[:, slot])
        scores[~used[part]] = -np.inf
        scores.argmax(axis=1, out=slots[part])
        scores.max(axis=1, out=best[part])
    is_none = rows == NO_ROW
    best[is_none] = -np.inf
    each.transpose(0, 2, 1)[is_none] = -np.inf
    return best, slots, each
