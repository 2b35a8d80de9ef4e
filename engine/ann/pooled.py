"""Search only what moved: an interest near to where its user searched before scores what was found then.

A click moves the interest that it belongs to, and the others little. So only interests search for which what their user
found before will not do (`engine/ann/reach.py`). The candidates of a user are then all that the user's searches found,
the last one of each interest, to be scored by every interest in use. Delta and removals of the live index count for
those who don't search too.

What is missed: items that came near while no interest moved by the bound at once, and those that a movement lifted more
than was feared. The bound sets how many they are (benchmarks/README.md has the curve), and audits watch it
(`engine/recall_audit.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.ann.index import Rows, Vectors, check_interests, score
from engine.ann.live import LiveIndex, room_for
from engine.ann.pools import CandidatePools, Places
from engine.ann.reach import Pools, judge, typical_length
from engine.compiled import compiled
from engine.item_rows import NO_ROW, FlatRows

_MOST_ROUNDS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Found:
    """What B users' interests found together, M places each."""

    rows: Rows
    """(B, M) candidates, each row of a user once; -1 for none."""
    searched: npt.NDArray[np.bool_]
    """(B, K) True for interests that searched the index; the others in use score again."""


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
        self._generation, self._item_length = index.generation, typical_length(index.vectors)
        self._met_in, self._rounds = np.zeros(0, dtype=np.int32), 0

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

    def find(self, users: Sequence[str], interests: Vectors, mask: npt.NDArray[np.bool_], clicked: FlatRows) -> Found:
        """Return the candidates of each of *users*.

        Args:
            users: B keys, each once; at most as many as the pools hold.
            interests: (B, K, D) float32. One that isn't finite finds nothing.
            mask: (B, K) bool, True for interests in use.
            clicked: B times the rows of items that the user clicked; -1 for none.

        Raises:
            DimensionMismatch: the interests have another D than the items.
        """
        if not self.bound or self._index.generation != self._generation:
            self._pools.clear()
        if self._index.generation != self._generation:
            self._generation, self._item_length = self._index.generation, typical_length(self._index.vectors)
        count, slots, dimensions = interests.shape
        queries, finite = check_interests(interests.reshape(count * slots, dimensions), self._index.dimensions)
        vectors, used = queries.reshape(interests.shape), mask & finite.reshape(mask.shape)
        places = self._pools.claim(users)
        verdict = judge(
            vectors,
            used,
            Pools(self._pools.vectors[places], self._pools.least[places], self._pools.cuts[places]),
            bound=self.bound,
            items=self._index.vectors,
            item_length=self._item_length,
            clicked=clicked,
        )
        self._keep(places, verdict.relies_on)
        self._search(vectors, places, verdict.searches)
        return Found(self._gather(vectors, places, used), verdict.searches)

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

    def _keep(self, places: Places, relies_on: Rows) -> None:
        """Give every interest the pool that it relies on, before what it was another's is searched anew."""
        users, slots = np.nonzero(relies_on != np.arange(relies_on.shape[1]))
        if len(users):
            at, kept, pools = places[users], relies_on[users, slots], self._pools
            for part in (pools.vectors, pools.rows, pools.least):
                part[at, slots] = part[at, kept]

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
        """Return (B, M) candidate rows, each once a user, then -1."""
        rows = self._pools.rows[places].reshape(len(places), -1)
        rows[self._index.is_gone(rows)] = NO_ROW
        if self._index.delta_size:
            rows = np.concatenate([rows, self._delta(vectors, used)], axis=1)
        count = len(self._index.vectors)
        if self._rounds + len(rows) > _MOST_ROUNDS or count > len(self._met_in):
            self._met_in, self._rounds = np.zeros(room_for(count), dtype=np.int32), 0
        distinct = np.full(rows.shape, NO_ROW, dtype=np.int64)
        widest = _take_once(rows, self._met_in, self._rounds, distinct)
        self._rounds += len(rows)
        return np.ascontiguousarray(distinct[:, :widest])

    def _delta(self, vectors: Vectors, used: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        users, slots = np.nonzero(used)
        near = self._index.delta_candidates(vectors[used], self._pools.width)
        rows = np.full((*used.shape, near.shape[1]), NO_ROW, dtype=np.int32)
        rows[users, slots] = near
        return rows.reshape(len(used), -1)


@compiled
def _take_once(rows: npt.NDArray[np.int32], met_in: npt.NDArray[np.int32], rounds: int, distinct: Rows) -> int:
    """Write each row of (B, W) *rows* once a user to the front of *distinct*; return the most that a user has.

    *met_in* tells of every item in which round it was met last, of *rounds* before; every user is one more.
    """
    widest = 0
    for user in range(len(rows)):
        count = 0
        for place in range(rows.shape[1]):
            row = rows[user, place]
            if row >= 0 and met_in[row] != rounds + user + 1:
                met_in[row] = rounds + user + 1
                distinct[user, count] = row
                count += 1
        widest = max(widest, count)
    return widest
