"""What a user turned down pushes down what lies near it.

An item loses of its score as much as it is nearer to something the user turned down than to anything the user clicked:

    score - min(1, push * max(0, nearest negative - nearest click)) * |score|

with cosines of item vectors. So whoever hides one shoe and clicks many keeps the shoes, and loses those that look like
the hidden one more than like the clicked ones. docs/recall.md has what other rules cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.ann.index import Rows, Vectors


def push_down(
    scores: Vectors, rows: Rows, items: Vectors, *, negative: Sequence[int], clicked: Sequence[int], push: float
) -> Vectors:
    """Return what is left of one user's *scores*; greater ones stay the greater, of equally near items.

    Computed in float64, so that an item's score doesn't depend on what stands beside it.

    Args:
        scores: (..., M) float32; minus infinity stays.
        rows: (M,) int64 item rows, -1 for none.
        items: (N, D) float32 item vectors.
        negative: rows of the items that the user turned down.
        clicked: rows of the items that the user clicked.
        push: share of the score that a difference of 1 between the cosines takes; 0 for none.
    """
    if not push or not negative or not len(rows):
        return scores
    cosines = _directions(items, rows) @ _directions(items, [*negative, *clicked]).T
    nearer = cosines[:, : len(negative)].max(axis=1)
    nearer -= cosines[:, len(negative) :].max(axis=1, initial=0.0)
    lost = np.minimum(push * np.maximum(nearer, 0.0), 1.0).astype(np.float32)
    finite = np.where(np.isfinite(scores), scores, np.float32(0.0))
    left: Vectors = scores - lost * np.abs(finite)
    return left


def _directions(items: Vectors, rows: Sequence[int] | Rows) -> np.ndarray:
    vectors = items[np.asarray(rows, dtype=np.int64)].astype(np.float64)
    lengths = np.sqrt(np.einsum("md,md->m", vectors, vectors))
    directions: np.ndarray = vectors / np.maximum(lengths, 1e-12)[:, None]
    return directions
