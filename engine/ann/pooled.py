"""Search only what moved: an interest near to where its user searched before scores what was found then.

A click moves the interest that it belongs to, and the others little. The candidates of a user are all that the user's
searches found, the last one of each interest, scored exactly by every interest in use. Delta and removals of the live
index count for those who don't search too. The index is searched by an interest for which none of these holds:

1. It is nearer than a bound to something its user searched with before.
2. What a search of before found reaches down so far that an item it left out would have to be lifted by more than a
   movement from there to here lifts the items that lie in its direction.
3. It is nearer than the bound to another interest that searches now.

What is missed: items that came near while no interest moved by the bound at once, and those that the movement lifted
more than others. The bound sets how many they are (benchmarks/README.md has the curve), and audits watch it
(`engine/recall_audit.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.ann.index import NO_ROW, Rows, Vectors, check_interests, score
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
            bound: an interest may search when it is farther than this share of its length from all that its user
                searched with; 0 for always.
        """
        self._index, self._pools, self.bound = index, pools, bound
        self._generation, self._item_length = index.generation, _typical_length(index.vectors)

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
            self._pools.clear()
        if self._index.generation != self._generation:
            self._generation, self._item_length = self._index.generation, _typical_length(self._index.vectors)
        count, slots, dimensions = interests.shape
        queries, finite = check_interests(interests.reshape(count * slots, dimensions), self._index.dimensions)
        vectors, used = queries.reshape(interests.shape), mask & finite.reshape(mask.shape)
        places = self._pools.claim(users)
        searched = self._must_search(vectors, used, places)
        self._search(vectors, places, searched)
        rows = self._gather(vectors, places, used)
        return Found(rows, *score_all(self._index.vectors, vectors, used, rows), searched)

    def note_cuts(self, users: Sequence[str], cuts: Vectors) -> None:
        """Remember what an item had to score to be in the lists that were made of the last call's candidates.

        Args:
            users: those of the last `find`.
            cuts: (B, K) float32, by interest; minus infinity where any item would have been in.
        """
        self._pools.cuts[self._pools.claim(users)] = cuts

    def forget(self, user: str) -> None:
        """Forget what *user* searched with and found."""
        self._pools.forget(user)

    def _must_search(self, vectors: Vectors, used: npt.NDArray[np.bool_], places: Places) -> npt.NDArray[np.bool_]:
        """Return (B, K), True for interests in use that what their user found before won't do for."""
        pools, lengths = self._pools, np.square(vectors).sum(axis=2)
        held = pools.vectors[places]
        near = self.bound**2 * lengths[:, :, None]
        distances = _distances(vectors, lengths, held)  # (B, K, K), squared
        lifts = self._least_cosine() * self._item_length * np.sqrt(distances)
        does = (distances < near) | (pools.cuts[places][:, :, None] - pools.least[places][:, None, :] >= lifts)
        does &= (np.square(held).sum(axis=2) > 0.0)[:, None, :]  # of an empty pool nothing does
        searched: npt.NDArray[np.bool_] = used & ~does.any(axis=2)
        beside = _distances(vectors, lengths, vectors) < near
        for slot in range(1, searched.shape[1]):
            searched[:, slot] &= ~(beside[:, slot, :slot] & searched[:, :slot]).any(axis=1)
        return searched

    def _least_cosine(self) -> float:
        """Return the cosine that an item left out may have with a movement: 1 at a bound of 0, a half at .25."""
        return 1.0 / (1.0 + 4.0 * self.bound)

    def _search(self, vectors: Vectors, places: Places, searched: npt.NDArray[np.bool_]) -> None:
        if not searched.any():
            return
        users, slots = np.nonzero(searched)
        queries = vectors[searched]
        found = self._index.base_candidates(queries, self._pools.width)
        self._pools.rows[places[users], slots] = found
        self._pools.vectors[places[users], slots] = queries
        least = score(self._index.vectors, queries, found).min(axis=1)
        least[(found == NO_ROW).any(axis=1)] = np.inf  # nothing is known of what was left out
        self._pools.least[places[users], slots] = least

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


def _distances(vectors: Vectors, lengths: Vectors, others: Vectors) -> Vectors:
    """Return (B, K, J) squared distances of (B, K, D) *vectors*, (B, K) *lengths* squared, from (B, J, D) *others*."""
    products = vectors @ others.transpose(0, 2, 1)
    distances: Vectors = lengths[:, :, None] + np.square(others).sum(axis=2)[:, None, :] - 2.0 * products
    return np.maximum(distances, 0.0)  # rounding may leave less


def _typical_length(items: Vectors) -> float:
    """Return the root mean square of the (N, D) items' lengths; 0 of none."""
    return float(np.sqrt(np.vecdot(items, items).mean())) if len(items) else 0.0


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
