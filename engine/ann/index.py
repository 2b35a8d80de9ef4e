"""The contract of an item index: interests in, the nearest items and their scores out.

Stands between the model, which makes interest vectors, and `engine/merge.py`, which merges candidates into a list. The
score is the inner product, larger is better, and both backends take it from the same vectors by the same sum, so a list
is the same whichever backend found an item. An index is immutable: a new model version brings a new one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.ann.products import inner_products
from engine.errors import DimensionMismatch, ItemIndexError
from engine.item_rows import NO_ROW

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
OwnRows = npt.NDArray[np.int32]
"""Rows that are kept: one for each item, so they take half the room."""
Keys = npt.NDArray[np.uint64]

_SIGN, _LOW_HALF = np.uint32(1 << 31), np.uint64(2**32 - 1)


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

    def candidates(self, interests: Vectors, k: int) -> Rows:
        """Return the (Q, k) rows that `search` would, in no order and without their scores; -1 where there is none."""

    def widen(self, ef: int) -> None:
        """Look at *ef* candidates at least in every search from now on; an exact index at all, in full precision."""


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
    return best_first(rows, score(vectors, interests, rows))


def best_first(rows: Rows, scores: Vectors) -> tuple[Rows, Vectors]:
    """Return (Q, k) rows and scores in order: falling score, ties by ascending row; -1 stands behind all of its score.

    No score is NaN.
    """
    keys = np.sort(order_keys(scores, rows.astype(np.uint32)), axis=1)
    return rows_of(keys), _scores_of(keys)


def score(vectors: Vectors, interests: Vectors, rows: Rows) -> Vectors:
    """Return the (Q, k) inner products of interests (Q, D) with the items at *rows* (Q, k); -inf where a row is -1."""
    every = np.ones((len(rows), 1), dtype=np.bool_)
    return inner_products(vectors, interests[:, None], every, rows)[:, 0]


def order_keys(scores: Vectors, ranks: npt.NDArray[np.unsignedinteger]) -> Keys:
    """Return uint64 keys that sort ascending as (score descending, rank ascending) does; ranks are below 2^32.

    A float's bits, with the sign bit flipped (all bits, of a negative one), order as the floats do. No score is NaN.
    """
    bits = (scores + np.float32(0.0)).view(np.uint32)  # -0.0 becomes 0.0: they are a tie
    ascending = np.where(bits >> 31, ~bits, bits | _SIGN)
    return (~ascending).astype(np.uint64) << np.uint64(32) | ranks


def rows_of(keys: Keys) -> Rows:
    """Return the rows that `order_keys` made *keys* with; -1 where that was none."""
    rows = (keys & _LOW_HALF).astype(np.int64)
    rows[rows == _LOW_HALF] = NO_ROW
    return rows


def _scores_of(keys: Keys) -> Vectors:
    ascending = ~(keys >> np.uint64(32)).astype(np.uint32)
    return np.where(ascending >> 31, ascending ^ _SIGN, ~ascending).view(np.float32)


def own_rows(rows: Rows | OwnRows | None, count: int) -> OwnRows:
    """Return the *rows* of an index for it to keep, those below *count* where none are given."""
    return np.arange(count, dtype=np.int32) if rows is None else rows.astype(np.int32, copy=False)


def no_rows(queries: int, k: int) -> Rows:
    """Return (Q, k) rows without any item."""
    return np.full((queries, k), NO_ROW, dtype=np.int64)


def nothing_found(queries: int, k: int) -> tuple[Rows, Vectors]:
    """Return an answer of (Q, k) without any item."""
    return no_rows(queries, k), np.full((queries, k), -np.inf, dtype=np.float32)
