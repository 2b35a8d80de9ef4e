"""What a target is compared with: all items, or negatives drawn once a step and shared by the batch."""

from __future__ import annotations

import math

import numpy as np

FULL_SOFTMAX_ITEMS = 2_048
"""Up to this many items every one of them is a negative: exact, and as cheap as sampling."""
NEGATIVES = 2_048
"""Drawn negatives of a step in larger catalogs."""
SAMPLINGS = ("uniform", "log-uniform", "in-batch", "mixed")
"""Where negatives come from: all items alike; popular ones more, by rank; the batch's targets; uniform and in-batch."""


class Sampler:
    """Draws the negatives of a step, with how often each is drawn on average: (M,) rows, (M,) float32 counts."""

    def __init__(self, sampling: str, *, items: int, count: int, target_counts: np.ndarray) -> None:
        """Prepare to draw *count* negatives a step, besides those of the batch.

        Args:
            sampling: one of `SAMPLINGS`.
            items: N, the rows are 1 to N, the most clicked first.
            count: M, of the negatives that don't come from the batch.
            target_counts: (N + 1,) how often each row is a target in one pass; a target itself has at least 1.
        """
        self._sampling, self._items, self._count = sampling, items, count
        self._shares = target_counts / max(target_counts.sum(), 1)

    def draw(self, random: np.random.Generator, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the negatives for a batch of (B,) *targets*, repeats kept."""
        if self._sampling == "in-batch":
            return targets, self._in_batch(targets, len(targets))
        if self._sampling == "log-uniform":
            rows = draw_by_rank(random, items=self._items, count=self._count)
            return rows, (self._count * rank_shares(rows, items=self._items)).astype(np.float32)
        rows = draw_negatives(random, items=self._items, count=self._count)
        each = self._count / self._items
        if self._sampling == "uniform":
            return rows, np.full(len(rows), each, dtype=np.float32)
        rows = np.concatenate([rows, targets])
        return rows, self._in_batch(rows, len(targets)) + np.float32(each)

    def _in_batch(self, rows: np.ndarray, batch: int) -> np.ndarray:
        counts: np.ndarray = (batch * self._shares[rows]).astype(np.float32)
        return counts


def draw_negatives(generator: np.random.Generator, *, items: int, count: int) -> np.ndarray:
    """Return (count,) int64 item rows from 1 to *items*, uniform, with replacement."""
    return generator.integers(1, items + 1, size=count)


def draw_by_rank(generator: np.random.Generator, *, items: int, count: int) -> np.ndarray:
    """Return (count,) int64 item rows from 1 to *items*, log-uniform, with replacement: row r about as 1 / r."""
    rows = np.exp(generator.random(count) * math.log(items + 1.0)).astype(np.int64)
    return np.minimum(rows, items)


def rank_shares(rows: np.ndarray, *, items: int) -> np.ndarray:
    """Return the chance of each row in one log-uniform draw: log((r + 1) / r) / log(N + 1)."""
    shares: np.ndarray = np.log1p(1.0 / rows) / math.log(items + 1.0)
    return shares
