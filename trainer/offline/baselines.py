"""The plain methods that count: popular items, item-CF and user-CF with recency decay.

Each scores all items for a batch of questions (`trainer/offline/search.py`). Where a method has no evidence the score
is 0 and ties go by row, which is by popularity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.item_cf import DECAY, LAST_CLICKS
from trainer.offline.cooccurrence import Cooccurrence
from trainer.offline.search import flat_histories
from trainer.offline.sets import Part, Question

NEIGHBORS = 200
"""User-CF: as many of the most similar users speak."""
LAST_USER_CLICKS = 100
"""User-CF: a user's newest distinct items, in similarity and in what a neighbor recommends."""


class Popular:
    """The same for everybody: how often each item was clicked in training."""

    name = "popular"

    def __init__(self, part: Part, *, items: int) -> None:
        self._counts = torch.from_numpy(part.counts(items)).float()

    def scores(self, questions: Sequence[Question]) -> Tensor:
        """Return the click counts of all items, for each question."""
        return self._counts.repeat(len(questions), 1)


class ItemCf:
    """Cosine of co-occurrence over users, of the last clicks, each older one weighing less."""

    name = "item-CF"

    def __init__(self, counts: Cooccurrence, *, last: int = LAST_CLICKS, decay: float = DECAY) -> None:
        self._counts, self._last, self._decay = counts, last, decay
        owners = np.repeat(np.arange(len(counts.users)), np.diff(counts.starts))
        self._cosines = counts.together / np.sqrt(counts.users[owners] * counts.users[counts.neighbors])

    def scores(self, questions: Sequence[Question]) -> Tensor:
        """Return the sums of cosines to the last clicks, decayed."""
        places, rows = flat_histories(questions, last=self._last)
        weights = decayed(questions, last=self._last, decay=self._decay)
        return spread(
            places,
            weights,
            rows,
            starts=self._counts.starts,
            columns=self._counts.neighbors,
            values=self._cosines,
            shape=(len(questions), len(self._counts.users)),
        )


class UserCf:
    """What the most similar users clicked; similar is a decayed cosine of clicked items."""

    name = "user-CF"

    def __init__(self, part: Part, *, items: int, last: int = LAST_CLICKS, decay: float = DECAY) -> None:
        self._items, self._last, self._decay = items, last, decay
        clicked = [np.unique(rows[-LAST_USER_CLICKS:]) for rows in part.sequences]
        lengths = np.array([len(rows) for rows in clicked], dtype=np.int64)
        self._rows = np.concatenate([np.zeros(0, dtype=np.int64), *clicked])
        self._starts = np.append(0, np.cumsum(lengths))
        owners = np.repeat(np.arange(len(clicked)), lengths)
        by_item = np.argsort(self._rows, kind="stable")
        self._clickers = owners[by_item]
        self._clicker_starts = np.append(0, np.cumsum(np.bincount(self._rows, minlength=items + 1)))
        self._shares = (1.0 / np.sqrt(np.maximum(lengths, 1)))[self._clickers].astype(np.float32)

    def scores(self, questions: Sequence[Question]) -> Tensor:
        """Return the sums of the similarities of the neighbors who clicked each item."""
        places, rows = flat_histories(questions, last=self._last)
        similarities = spread(
            places,
            decayed(questions, last=self._last, decay=self._decay),
            rows,
            starts=self._clicker_starts,
            columns=self._clickers,
            values=self._shares,
            shape=(len(questions), len(self._starts) - 1),
        )
        count = min(NEIGHBORS, similarities.shape[1])
        weights, neighbors = torch.topk(similarities, count, dim=1)
        return spread(
            np.repeat(np.arange(len(questions)), count),
            weights.numpy().ravel(),
            neighbors.numpy().ravel(),
            starts=self._starts,
            columns=self._rows,
            values=np.ones(len(self._rows), dtype=np.float32),
            shape=(len(questions), self._items + 1),
        )


def decayed(questions: Sequence[Question], *, last: int, decay: float) -> np.ndarray:
    """Return the float32 weight of each click that `flat_histories` gives: decay to the power of its age."""
    lengths = [min(len(question.history), last) for question in questions]
    ages = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(length)[::-1] for length in lengths)])
    weights: np.ndarray = np.power(decay, ages).astype(np.float32)
    return weights


def spread(
    places: np.ndarray,
    weights: np.ndarray,
    rows: np.ndarray,
    *,
    starts: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    shape: tuple[int, int],
) -> Tensor:
    """Return the dense product of two sparse matrices: entry (place, row) = weight, times rows of columns and values.

    Args:
        places: (E,) int64 rows of the answer.
        weights: (E,) float32.
        rows: (E,) int64 rows of the second matrix.
        starts: where each row of the second matrix starts in *columns* and *values*.
        columns: int64 columns of its entries.
        values: float32 entries.
        shape: of the answer.
    """
    lengths = starts[rows + 1] - starts[rows]
    offsets = np.repeat(starts[rows] - np.append(0, np.cumsum(lengths))[:-1], lengths)
    entries = offsets + np.arange(int(lengths.sum()))
    targets = np.repeat(places * shape[1], lengths) + columns[entries]
    added = np.repeat(weights, lengths) * values[entries]
    answer = torch.zeros(shape[0] * shape[1])
    answer.scatter_add_(0, torch.from_numpy(targets), torch.from_numpy(added.astype(np.float32)))
    return answer.view(shape)
