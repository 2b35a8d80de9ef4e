"""Where the greatest of many scores stand, row by row.

Numbers that hold a score's bits and its place are sorted many times as fast as places by scores. Of many scores only
the blocks with the greatest maxima are looked into: the k greatest lie in the first k of these.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Kind = TypeVar("Kind", bound=np.generic)
Places = npt.NDArray[np.int64]

BLOCK = 16
"""Scores in a block, of which the greatest alone is looked at first."""


def top_places(scores: npt.NDArray[Any], k: int) -> Places:
    """Return (Q, k) places of the *k* greatest of each row of (Q, n) *scores*, in no order; of equal ones any.

    Args:
        scores: float32, or int16, where the bits of a float may stand for it; none is NaN.
        k: at most n.
    """
    if not has_many_blocks(scores.shape[1], k):
        return _partition(scores, k)
    _, _, places, chosen = best_blocks(scores, k)
    return np.take_along_axis(places, _partition(chosen, k), axis=1)


def has_many_blocks(count: int, k: int) -> bool:
    """Return whether looking at blocks first is worth it for the *k* greatest of *count*."""
    return count // BLOCK > 2 * k


def best_blocks(scores: npt.NDArray[Kind], k: int) -> tuple[npt.NDArray[Kind], Places, Places, npt.NDArray[Kind]]:
    """Return the (Q, blocks) maxima, the (Q, k) blocks with the greatest, and places and scores of all in these.

    Those behind the last block are among these.
    """
    queries, count = scores.shape
    blocks = count // BLOCK
    whole = blocks * BLOCK
    # A block is what stands `blocks` apart: then the maxima are taken of whole stretches of memory.
    maxima = scores[:, :whole].reshape(queries, BLOCK, blocks).max(axis=1)
    chosen = _partition(maxima, k)
    places = (np.arange(0, whole, blocks)[:, None] + chosen[:, None, :]).reshape(queries, -1)
    if whole < count:
        places = np.concatenate([places, np.broadcast_to(np.arange(whole, count), (queries, count - whole))], axis=1)
    return maxima, chosen, places, scores.ravel().take(places + count * np.arange(queries)[:, None])


def _partition(scores: npt.NDArray[Any], k: int) -> Places:
    count = scores.shape[1]
    is_narrow = scores.dtype == np.int16 and count <= 2**16  # and sorted in half the time
    keys: npt.NDArray[np.signedinteger] = _rising(scores).astype(np.int32 if is_narrow else np.int64)
    keys <<= 16 if is_narrow else 32
    keys |= np.arange(count, dtype=keys.dtype)
    keys.partition(count - k, axis=1)
    places: Places = (keys[:, count - k :] & (2**16 - 1 if is_narrow else 2**32 - 1)).astype(np.int64)
    return places


def _rising(scores: npt.NDArray[Any]) -> npt.NDArray[np.signedinteger]:
    """Return whole numbers in the order of float32 *scores*; whole numbers as they are."""
    if scores.dtype == np.int16:
        return scores
    bits = scores.view(np.int32)
    return bits ^ (bits >> 31 & 0x7FFFFFFF)  # the bits of negative ones fall
