"""Item-based collaborative filtering, the plain method that a model has to beat.

Cosine of co-occurrence over users, a user's last 20 clicks, each older click weighing 0.8 of the next newer one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LAST_CLICKS = 20
DECAY = 0.8
MAX_HISTORY = 1_000
"""Only a user's newest 1,000 items count as co-occurring, which bounds the cost of a bot."""


class ItemCooccurrence:
    """Who clicked what, both ways; similarities are computed for the items that are asked for, and kept."""

    def __init__(self, histories: Sequence[np.ndarray], *, items: int) -> None:
        """Keep *histories*: each user's item rows, 1 to *items*, oldest first, repeats allowed."""
        self._items = items
        self._users = [np.unique(history[-MAX_HISTORY:]) for history in histories]
        lengths = [len(rows) for rows in self._users]
        rows = np.concatenate([*self._users, np.zeros(0, dtype=np.int64)])
        owners = np.repeat(np.arange(len(self._users)), lengths)[np.argsort(rows, kind="stable")]
        self._counts = np.bincount(rows, minlength=items + 1).astype(np.float64)
        self._owners = np.split(owners, np.cumsum(self._counts)[:-1].astype(np.int64))
        self._similar: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def scores(self, window: np.ndarray) -> np.ndarray:
        """Return (N + 1,) float64 scores of all items for item rows *window*, oldest first; 0 for no evidence."""
        scores = np.zeros(self._items + 1)
        for age, row in enumerate(window[::-1][:LAST_CLICKS].tolist()):
            rows, cosines = self._similar_to(row)
            scores[rows] += DECAY**age * cosines
        return scores

    def _similar_to(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        if row not in self._similar:
            owners = self._owners[row]
            company = np.concatenate([self._users[owner] for owner in owners] or [np.zeros(0, dtype=np.int64)])
            together = np.bincount(company, minlength=self._items + 1)
            together[row] = 0
            rows = np.flatnonzero(together)
            self._similar[row] = (rows, together[rows] / np.sqrt(self._counts[row] * self._counts[rows]))
        return self._similar[row]
