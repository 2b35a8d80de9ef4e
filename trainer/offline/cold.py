"""Items that training never saw: does the model find them through their fields?

The candidates are the cold items alone. Recall@50 among them is set beside chance, 50 over their number, and beside
popular-in-category: cold items have no clicks of their own, so an item's score is how often its category was clicked in
the history, newer clicks weighing more, ties by how often it was clicked in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainer.item_cf import DECAY
from trainer.offline.diversity import Categories
from trainer.offline.metrics import Figure, figure, judge, paired
from trainer.offline.search import Method, chunks, top_rows
from trainer.offline.sets import OfflineSet, Part, Question


@dataclass(frozen=True, slots=True)
class ColdFigures:
    """Recall@50 among the cold items."""

    items: int
    """Cold items: the candidates."""
    questions: int
    """Questions with a cold target and a history."""
    recall_at_50: Figure
    chance: float
    popular_in_category: Figure | None
    """None where no item has a category."""
    gain_over_popular_in_category: Figure | None

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        popular, gain = self.popular_in_category, self.gain_over_popular_in_category
        return {
            "items": self.items,
            "questions": self.questions,
            "recall_at_50": self.recall_at_50.to_dict(),
            "chance": self.chance,
            "popular_in_category_recall_at_50": popular and popular.to_dict(),
            "gain_over_popular_in_category": gain and gain.to_dict(),
        }


def withhold(made: OfflineSet, share: float, *, seed: int) -> tuple[OfflineSet, np.ndarray]:
    """Return *made* without a random *share* of its items in training and histories, and their rows, ascending."""
    count = max(1, round(share * made.item_count))
    rows = np.sort(np.random.default_rng(seed).choice(made.item_count, size=count, replace=False) + 1)
    return made.without(rows), rows


def cold_rows(made: OfflineSet, part: Part) -> np.ndarray:
    """Return the rows of the items that *part* never saw, ascending."""
    return np.flatnonzero(part.counts(made.item_count)[1:] == 0) + 1


def judge_cold(method: Method, made: OfflineSet, part: Part, questions: Sequence[Question]) -> ColdFigures | None:
    """Return how well *method* finds cold targets among the cold items; None where no question has one."""
    rows = cold_rows(made, part)
    asked = _cold_questions(questions, rows)
    if not asked:
        return None
    categories = Categories.of(made, part)
    ours = judge(_lists(method, asked, rows, made.item_count), asked)
    popular = gain = None
    if categories is not None:
        other = _PopularInCategory(categories, part.counts(made.item_count))
        theirs = judge(_lists(other, asked, rows, made.item_count), asked)
        popular = figure(theirs["recall_at_50"])
        gain = paired(ours, theirs)["recall_at_50"]
    chance = min(1.0, 50 / len(rows))
    return ColdFigures(len(rows), len(asked), figure(ours["recall_at_50"]), chance, popular, gain)


def _cold_questions(questions: Sequence[Question], rows: np.ndarray) -> list[Question]:
    kept = []
    for question in questions:
        targets = question.targets[np.isin(question.targets, rows)]
        if len(targets) and len(question.history):
            kept.append(replace(question, targets=targets))
    return kept


def _lists(method: Method, questions: Sequence[Question], rows: np.ndarray, items: int) -> np.ndarray:
    candidates = torch.from_numpy(rows)
    lists = np.zeros((len(questions), 50), dtype=np.int64)
    for start, batch in chunks(questions, items):
        scores = torch.full((len(batch), len(rows) + 1), -torch.inf)
        scores[:, 1:] = method.scores(batch)[:, candidates]
        found = top_rows(scores, 50)
        lists[start : start + len(batch)] = np.append(0, rows)[found]
    return lists


class _PopularInCategory:
    name = "popular in category"

    def __init__(self, categories: Categories, counts: np.ndarray) -> None:
        lengths = np.diff(categories.starts)
        self._firsts = categories.first_of(np.arange(len(counts)))
        clicks = np.bincount(categories.members, weights=np.repeat(counts, lengths))
        self._shares = clicks / max(clicks.sum(), 1.0)

    def scores(self, questions: Sequence[Question]) -> Tensor:
        scores = np.zeros((len(questions), len(self._firsts)), dtype=np.float32)
        for place, question in enumerate(questions):
            liked = self._shares * 1e-3  # breaks ties only: a click weighs at least DECAY ** age
            firsts = self._firsts[question.history[::-1]]
            np.add.at(liked, firsts[firsts >= 0], DECAY ** np.flatnonzero(firsts >= 0))
            scores[place] = np.where(self._firsts >= 0, liked[self._firsts], 0.0)
        return torch.from_numpy(scores)
