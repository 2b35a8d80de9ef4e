"""Where the greatest of many scores stand, row by row; of equal ones the first.

The scores lie in blocks, and the greatest of each block is found first: as many blocks as are asked for reach a bound
that at least as many scores reach then. So only what stands in these blocks is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.ann.index import order_keys, rows_of
from engine.ann.products import plain
from engine.compiled import compiled
from engine.item_rows import NO_ROW

Scores = npt.NDArray[Any]
"""float32, or int16, the bits of bfloat16; none is NaN."""
Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

BLOCK = 16
"""Scores in a block, of which the greatest alone is looked at first."""
_HALF_ROUNDING = np.float32(1.01 * 2.0**-8)
"""A bfloat16 differs from what it was rounded from by this part of itself at the most."""


def top_places(scores: Scores, k: int) -> Places:
    """Return (Q, k) places of the *k* greatest of each row of (Q, n) *scores*, in no order; of equal ones the first.

    Args:
        scores: C-contiguous, or copied.
        k: at least 1, at most n.
    """
    places = _reaching(scores, k, lambda bounds: bounds)
    values = np.take_along_axis(scores, places, axis=1)
    values = np.where(places == NO_ROW, np.float32(-np.inf), _floats(values))
    keys = order_keys(values, places.astype(np.uint32))
    keys.partition(k - 1, axis=1)
    return rows_of(keys[:, :k])


def reaching(scores: Scores, k: int, errors: npt.NDArray[np.float32]) -> Places:
    """Return (Q, m) places of all that may be among the *k* greatest of each row, in no order; -1 fills.

    Args:
        scores: C-contiguous, or copied; of bfloat16 as rounding left them.
        k: at least 1, at most n.
        errors: (Q,) by how much a score may differ from the true one, beside rounding to bfloat16.
    """

    def lowered(bounds: Floats) -> Floats:
        rounded: Floats = _HALF_ROUNDING * np.abs(bounds) if scores.dtype == np.int16 else np.zeros_like(bounds)
        return bounds - 2 * (errors + rounded)

    return _reaching(scores, k, lowered)


def _reaching(scores: Scores, k: int, lowered: Callable[[Floats], Floats]) -> Places:
    """Return (Q, m) places of all scores that reach a bound which at least k reach, *lowered*; -1 fills."""
    queries, count = scores.shape
    size = BLOCK if count // BLOCK > 2 * k else 1
    blocks = count // size
    # A block is what stands `blocks` apart: then the maxima are taken of whole stretches of memory.
    maxima = scores[:, : size * blocks].reshape(queries, size, blocks).max(axis=1)
    bounds = lowered(_floats(np.partition(maxima, blocks - k, axis=1)[:, blocks - k]))
    if scores.dtype == np.int16:
        if bounds.min(initial=1.0) <= 0.0:  # bits have the order of the floats above zero alone
            return _reaching(_floats(scores), k, lowered)
        bounds = (bounds.view(np.int32) >> 16).astype(np.int16)  # downwards
    given = (plain(scores), plain(maxima), plain(bounds))  # all of one kind: each other kind would be compiled as well
    counts = np.empty(queries, dtype=np.int64)
    width = 2 * k + BLOCK
    while True:
        places = np.empty((queries, width), dtype=np.int32)
        _take_reaching(*given, size, places, counts)
        most = int(counts.max(initial=k))
        if most <= width:
            return places[:, :most].astype(np.int64)
        width = most  # many are alike


@compiled
def _take_reaching(
    scores: Scores,
    maxima: Scores,
    bounds: Scores,
    size: int,
    places: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int64],
) -> None:
    """Write where scores are at least the bound, as many as there is room for and -1 behind them, and how many.

    *maxima* are those of blocks of *size* scores.
    """
    blocks, room = maxima.shape[1], places.shape[1]
    for query in range(len(scores)):
        bound, count = bounds[query], 0
        for block in range(blocks):
            if maxima[query, block] >= bound:
                for place in range(block, size * blocks, blocks):
                    if scores[query, place] >= bound:
                        if count < room:
                            places[query, count] = place
                        count += 1
        for place in range(size * blocks, scores.shape[1]):  # behind the last block
            if scores[query, place] >= bound:
                if count < room:
                    places[query, count] = place
                count += 1
        counts[query] = count
        for unused in range(count, room):
            places[query, unused] = NO_ROW


def _floats(scores: Scores) -> Floats:
    """Return *scores*, or what they are the bits of, as float32."""
    return (scores.astype(np.int32) << 16).view(np.float32) if scores.dtype == np.int16 else scores
