"""How varied lists and interests are.

- catalog coverage: the share of all items that stands in some user's top 50.
- target category coverage: of the categories of a user's targets, the share that the top 50 holds an item of, each
  weighted by the inverse of its frequency, so that rare categories weigh more. The frequency of a category is its share
  of the training clicks, one added; an item with several categories counts for each.
- categories in the list: how many distinct ones the top 50 holds, and the share of pairs of its items that have
  different first categories (intra-list diversity).
- interests: the mean cosine between the pairs of a user's interests in use, the share of the K interests in use, and
  how many of them have an item in the top 50, an item belonging to the interest that scores it best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.offline.metrics import PerQuestion
from trainer.offline.sets import OfflineSet, Part, Question


@dataclass(frozen=True)
class Categories:
    """The categories of all items as rows of arrays; C categories."""

    starts: np.ndarray
    """(N + 2,) int64, where the categories of each item row start."""
    members: np.ndarray
    """int64 category numbers."""
    weights: np.ndarray
    """(C,) float64 inverse frequencies."""

    @classmethod
    def of(cls, made: OfflineSet, part: Part) -> Categories | None:
        """Return the categories of the items of *made*, weighed by the clicks of *part*; None where there are none."""
        numbers: dict[str, int] = {}
        listed: list[list[int]] = [[]]
        for row in range(1, made.item_count + 1):
            names = made.item_categories(row)
            listed.append([numbers.setdefault(name, len(numbers)) for name in names])
        if not numbers:
            return None
        lengths = np.array([len(members) for members in listed])
        members = np.array([member for several in listed for member in several], dtype=np.int64)
        clicks = np.repeat(part.counts(made.item_count), lengths)
        counts = np.bincount(members, weights=clicks, minlength=len(numbers)) + 1.0
        return cls(np.append(0, np.cumsum(lengths)), members, counts.sum() / counts)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the distinct categories of the items in *rows*, ascending."""
        spans = [self.members[self.starts[row] : self.starts[row + 1]] for row in rows.tolist()]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *spans]))

    def first_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the first category of each item, -1 for none."""
        has = self.starts[rows + 1] > self.starts[rows]
        places = np.minimum(self.starts[rows], len(self.members) - 1)
        return np.where(has, self.members[places], -1)


def catalog_coverage(lists: np.ndarray, *, items: int) -> float:
    """Return the share of the items 1 to *items* that stand in some list."""
    return len(np.unique(lists[lists > 0])) / items


def category_figures(lists: np.ndarray, questions: Sequence[Question], categories: Categories) -> PerQuestion:
    """Return category figures of (Q, 50) *lists*; the coverage is NaN where no target has a category."""
    coverage, distinct, diversity = (np.full(len(questions), np.nan) for _ in range(3))
    for place, (rows, question) in enumerate(zip(lists, questions, strict=True)):
        rows = rows[rows > 0]
        held, wanted = categories.of_rows(rows), categories.of_rows(question.targets)
        if len(wanted):
            weights = categories.weights[wanted]
            coverage[place] = weights[np.isin(wanted, held)].sum() / weights.sum()
        distinct[place] = len(held)
        diversity[place] = _different_pairs(categories.first_of(rows))
    return {
        "target_category_coverage_at_50": coverage,
        "categories_at_50": distinct,
        "intra_list_diversity_at_50": diversity,
    }


def _different_pairs(firsts: np.ndarray) -> float:
    pairs = len(firsts) * (len(firsts) - 1)
    same = sum(count * (count - 1) for category, count in Counter(firsts.tolist()).items() if category >= 0)
    return 1.0 - same / pairs if pairs else 0.0


def interest_figures(vectors: np.ndarray, used: np.ndarray, lists: np.ndarray, items: np.ndarray) -> PerQuestion:
    """Return the interest figures of each question; the cosine is NaN for a user with one interest.

    Args:
        vectors: (Q, K, D) float32 interests.
        used: (Q, K) bool.
        lists: (Q, 50) int64 item rows, 0 for none.
        items: (N + 1, D) float32 item vectors.
    """
    lengths = np.linalg.norm(vectors, axis=2, keepdims=True)
    directions = vectors / np.maximum(lengths, 1e-12)
    cosines = np.einsum("qkd,qld->qkl", directions, directions)
    pairs = used[:, :, None] & used[:, None, :] & ~np.eye(used.shape[1], dtype=bool)
    number = pairs.sum(axis=(1, 2))
    cosine = np.where(number > 0, (cosines * pairs).sum(axis=(1, 2)) / np.maximum(number, 1), np.nan)
    contributing = np.zeros(len(lists))
    for start in range(0, len(lists), 512):
        part = slice(start, start + 512)
        scores = np.einsum("qkd,qnd->qkn", vectors[part], items[lists[part]])
        best = np.where(used[part][:, :, None], scores, -np.inf).argmax(axis=1)  # (Q, 50)
        taken = (best[:, None, :] == np.arange(used.shape[1])[:, None]) & (lists[part] > 0)[:, None, :]
        contributing[part] = taken.any(axis=2).sum(axis=1)
    return {
        "interest_cosine": cosine,
        "interests_used_share": used.mean(axis=1),
        "interests_in_top_50": contributing,
    }
