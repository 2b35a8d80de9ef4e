"""Whether what a user found before will do for an interest, or the index must be searched.

An interest must search unless one of these holds:

1. It is nearer than the bound to what one of the user's pools was searched with.
2. A pool reaches down so far that an item it left out would have to be lifted into the list by more than a movement
   from there to here lifts the items that lie in its direction; and no clicked item that is in no pool, and stands for
   those around it, would itself be in the list.
3. It is nearer than the bound to another interest that must search now.

A movement by d lifts an item by d's inner product with it: by the item's length times that of d times their cosine. How
great a cosine is feared follows from the bound, so that whoever lowers it is missing less by both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.ann.index import Rows, Vectors
from engine.ann.products import plain
from engine.compiled import compiled_sum
from engine.item_rows import FlatRows


@dataclass(frozen=True, slots=True)
class Pools:
    """What B users found before, one pool an interest at the most."""

    vectors: Vectors
    """(B, K, D) what each was searched with; zero where there is no pool."""
    least: Vectors
    """(B, K) the lowest score of what was found, by that; infinity where what was left out may score more."""
    cuts: Vectors
    """(B, K) the lowest score of an interest's items in the last list; minus infinity where any would be in."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who must search, and what is to be kept for the others."""

    searches: npt.NDArray[np.bool_]
    """(B, K) True for interests that must."""
    relies_on: Rows
    """(B, K) whose pool does for an interest that need not; its own number for the others."""


def judge(
    vectors: Vectors,
    used: npt.NDArray[np.bool_],
    pools: Pools,
    *,
    bound: float,
    items: Vectors,
    item_length: float,
    clicked: FlatRows,
) -> Verdict:
    """Return which interests must search.

    Args:
        vectors: (B, K, D) float32, finite.
        used: (B, K) bool, True for those in use.
        pools: of the same users.
        bound: share of its length.
        items: (N, D) float32.
        item_length: of a typical item.
        clicked: B times the rows of items that the user clicked; -1 for none.
    """
    lengths = np.square(vectors).sum(axis=2)
    near = bound**2 * lengths[:, :, None]
    distances = _distances(vectors, lengths, pools.vectors)  # (B, K, K), squared
    is_pool = (pools.vectors != 0.0).any(axis=2)[:, None, :]
    does = (distances < near) & is_pool
    moved = used & ~does.any(axis=2)
    lifts = least_cosine(bound) * item_length * np.sqrt(distances)
    reaches = (pools.cuts[:, :, None] - pools.least[:, None, :] >= lifts) & is_pool
    searches: npt.NDArray[np.bool_] = moved & ~reaches.any(axis=2)
    asked = moved & ~searches
    if asked.any():
        _look_at_clicked(
            plain(items),
            vectors,
            pools.vectors,
            pools.least,
            pools.cuts,
            clicked.rows,
            clicked.starts,
            asked,
            searches,
        )
    does |= reaches
    beside = _distances(vectors, lengths, vectors) < near
    for slot in range(1, searches.shape[1]):
        searches[:, slot] &= ~(beside[:, slot, :slot] & searches[:, :slot]).any(axis=1)
    return Verdict(searches, _find_support(does, distances, used & ~searches))


def least_cosine(bound: float) -> float:
    """Return the cosine with a movement that is feared of items left out: 1, none, at a bound of 0, .44 at .25."""
    return 1.0 / (1.0 + 5.0 * bound)


def typical_length(items: Vectors) -> float:
    """Return the root mean square of the (N, D) items' lengths; 0 of none."""
    return float(np.sqrt(np.vecdot(items, items).mean())) if len(items) else 0.0


def _distances(vectors: Vectors, lengths: Vectors, others: Vectors) -> Vectors:
    """Return (B, K, J) squared distances of (B, K, D) *vectors*, (B, K) *lengths* squared, from (B, J, D) *others*."""
    products = vectors @ others.transpose(0, 2, 1)
    distances: Vectors = lengths[:, :, None] + np.square(others).sum(axis=2)[:, None, :] - 2.0 * products
    return np.maximum(distances, 0.0)  # rounding may leave less


def _find_support(does: npt.NDArray[np.bool_], distances: Vectors, stays: npt.NDArray[np.bool_]) -> Rows:
    """Return (B, K) whose pool each interest relies on: its own where that does, or else the nearest that does."""
    own = np.arange(does.shape[1])
    nearest = np.where(does, distances, np.inf).argmin(axis=2)
    elsewhere = stays & ~does[:, own, own] & does.any(axis=2)
    support: Rows = np.where(elsewhere, nearest, own)
    return support


@compiled_sum
def _look_at_clicked(
    items: Vectors,
    vectors: Vectors,
    held: Vectors,
    least: Vectors,
    cuts: Vectors,
    clicked: Rows,
    starts: Rows,
    asked: npt.NDArray[np.bool_],
    risen: npt.NDArray[np.bool_],
) -> None:
    """Make *risen* True for interests *asked* about that score a clicked item, in no pool, as those of their list."""
    for user in range(len(vectors)):
        for interest in range(vectors.shape[1]):
            for at in range(starts[user], starts[user + 1]):
                row = clicked[at]
                if not asked[user, interest] or row < 0:
                    continue
                score = np.float32(0.0)
                for dimension in range(vectors.shape[2]):
                    score += items[row, dimension] * vectors[user, interest, dimension]
                is_held = False
                for pool in range(held.shape[1] if score >= cuts[user, interest] else 0):
                    before = np.float32(0.0)
                    for dimension in range(vectors.shape[2]):
                        before += items[row, dimension] * held[user, pool, dimension]
                    is_held = is_held or before >= least[user, pool]
                if score >= cuts[user, interest] and not is_held:
                    risen[user, interest] = True
