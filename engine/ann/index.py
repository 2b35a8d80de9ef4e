"""The contract of an item index: interests in, the nearest items and their scores out.

Stands between the model, which makes interest vectors, and `engine/recall.py`, which merges candidates into a list. The
score is the inner product, larger is better, and both backends take it from the same vectors by the same sum, so a list
is the same whichever backend found an item. An index is immutable: a new model version brings a new one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.errors import DimensionMismatch, ItemIndexError

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

NO_ROW = -1
"""Fills the places of an answer for which there is no item; its score is minus infinity."""
_QUERIES_AT_ONCE = 256


class ItemIndex(Protocol):
    """Searches the item vectors of one model version."""

    @property
    def dimensions(self) -> int:
        """D, the length of an item vector and of an interest."""

    @property
    def size(self) -> int:
        """N, the number of items."""

    def search(self, interests: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return the *k* items with the greatest inner product for each interest.

        Args:
            interests: (Q, D) float32. An interest that isn't finite finds nothing.
            k: how many items to find, at least 1.

        Returns:
            rows: (Q, k) int64, rows of the version's item vectors, best first, equal scores by ascending row; where
                fewer than *k* items exist the rest is -1.
            scores: (Q, k) float32, minus infinity where the row is -1.

        Raises:
            DimensionMismatch: the interests have another D than the items.

        Any number of threads may search at once.
        """


def check_item_vectors(vectors: npt.ArrayLike) -> Vectors:
    """Return *vectors* as a contiguous (N, D) float32 array that nobody can write to.

    Raises:
        ItemIndexError: they are not two-dimensional, have no dimensions, or hold NaN or infinity. One item in a hundred
            with NaN takes a graph's recall from 1.0 to 0.2 without an error, so none is let in.
    """
    checked = np.ascontiguousarray(vectors, dtype=np.float32)
    if checked.ndim != 2 or checked.shape[1] == 0:
        raise ItemIndexError(f"item vectors must have the shape (N, D) with D at least 1, got {checked.shape}")
    bad = np.flatnonzero(~np.isfinite(checked).all(axis=1))
    if len(bad):
        raise ItemIndexError(
            f"item vectors must be finite, got NaN or infinity in {len(bad)} of {len(checked)} rows, "
            f"the first is row {bad[0]}; train the version again"
        )
    if checked is vectors:
        checked = checked.view()
    checked.flags.writeable = False
    return checked


def check_interests(interests: npt.ArrayLike, dimensions: int) -> tuple[Vectors, npt.NDArray[np.bool_]]:
    """Return *interests* as contiguous (Q, D) float32 with the non-finite ones zeroed, and (Q,) which are finite.

    Raises:
        DimensionMismatch: they are not two-dimensional with *dimensions* columns; hnswlib would read out of bounds.
    """
    checked: Vectors = np.ascontiguousarray(interests, dtype=np.float32)
    if checked.ndim != 2 or checked.shape[1] != dimensions:
        raise DimensionMismatch(got=checked.shape[-1] if checked.ndim else 0, expected=dimensions)
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(checked).all(axis=1))
    if not finite.all():
        checked = np.where(finite[:, None], checked, np.float32(0.0))
    return checked, finite


def rank(vectors: Vectors, interests: Vectors, rows: Rows) -> tuple[Rows, Vectors]:
    """Score the candidates *rows* exactly and put them in order.

    Args:
        vectors: (N, D) float32, the version's item vectors.
        interests: (Q, D) float32.
        rows: (Q, k) int64 candidates in any order, -1 where there is none.

    Returns:
        (Q, k) rows and scores, ordered as `ItemIndex.search` promises.
    """
    scores = np.empty(rows.shape, dtype=np.float32)
    for start in range(0, len(rows), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        scores[part] = np.einsum("qkd,qd->qk", vectors[rows[part]], interests[part])
    scores[rows == NO_ROW] = -np.inf
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def nothing_found(queries: int, k: int) -> tuple[Rows, Vectors]:
    """Return an answer of (Q, k) without any item."""
    return np.full((queries, k), NO_ROW, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32)
