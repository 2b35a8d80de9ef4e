"""How many users clicked both of two items, as a sparse matrix in rows: the ground of item-CF and of EASE.

Small catalogs are counted in a dense square, large ones by sorting the pairs; both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

DENSE_ITEMS = 8_000
"""Up to this many items the square fits (256 MB)."""
CHUNK_PAIRS = 20_000_000


@dataclass(frozen=True, slots=True)
class Cooccurrence:
    """A symmetric matrix of counts without its diagonal, row by row."""

    starts: np.ndarray
    """(N + 2,) int64, where the neighbors of each row start."""
    neighbors: np.ndarray
    """(E,) int64 item rows, ascending within a row."""
    together: np.ndarray
    """(E,) float32 users who clicked both."""
    users: np.ndarray
    """(N + 1,) float32 users who clicked the item."""


def count_cooccurrence(
    sequences: Sequence[np.ndarray], *, items: int, dense_items: int = DENSE_ITEMS, chunk_pairs: int = CHUNK_PAIRS
) -> Cooccurrence:
    """Return the counts over *sequences* of item rows 1 to *items*; repeats within a sequence count once.

    Args:
        sequences: one a user.
        items: N.
        dense_items: up to so many items are counted in a square.
        chunk_pairs: about so many pairs are held at a time.
    """
    distinct = [np.unique(rows) for rows in sequences]
    users = np.bincount(np.concatenate([np.zeros(0, dtype=np.int64), *distinct]), minlength=items + 1)
    pairs = _pair_keys(distinct, items + 1, chunk_pairs)
    keys, together = _count_dense(pairs, items + 1) if items <= dense_items else _count_sorted(pairs)
    starts = np.searchsorted(keys, np.arange(items + 2, dtype=np.int64) * (items + 1))
    return Cooccurrence(starts, keys % (items + 1), together.astype(np.float32), users.astype(np.float32))


def _count_dense(pairs: Iterator[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    square = torch.zeros(width * width)
    for keys in pairs:
        square.scatter_add_(0, torch.from_numpy(keys), torch.ones(len(keys)))
    found = torch.nonzero(square).squeeze(1)
    return found.numpy(), square[found].numpy()


def _count_sorted(pairs: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    keys, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for chunk in pairs:
        more, number = np.unique(chunk, return_counts=True)
        every, places = np.unique(np.concatenate([keys, more]), return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate([counts, number]), minlength=len(every))
        keys = every
    return keys, counts


def _pair_keys(distinct: Sequence[np.ndarray], width: int, chunk_pairs: int) -> Iterator[np.ndarray]:
    """Yield row * width + neighbor of all ordered pairs of different items of one sequence, in chunks.

    Sequences of one length are paired at once, so that the loop is over lengths and not over users.
    """
    lengths = np.array([len(rows) for rows in distinct])
    pending: list[np.ndarray] = []
    size = 0
    for length in np.unique(lengths[lengths > 1]).tolist():
        left, right = np.nonzero(~np.eye(length, dtype=bool))
        members = np.flatnonzero(lengths == length)
        step = max(1, chunk_pairs // len(left))
        for start in range(0, len(members), step):
            rows = np.stack([distinct[user] for user in members[start : start + step].tolist()])
            pending.append((rows[:, left] * width + rows[:, right]).ravel())
            size += len(pending[-1])
            if size >= chunk_pairs:
                yield np.concatenate(pending)
                pending, size = [], 0
    if pending:
        yield np.concatenate(pending)
