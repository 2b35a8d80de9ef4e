"""OfflineSet: a data set after its split, ready to learn from and to be asked about.

Item rows are final here: row i + 1 is `item_ids[i]`, row 0 is padding. Where the file fixes them they are the file's,
else they go by falling count in training, ties by id, so that items training never saw come last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from engine.events import ItemEvent
from trainer.offline.sequences import Profile


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a user did, and what came after: any method answers it with item rows."""

    user_id: str
    history: np.ndarray
    """(L,) int64 item rows, oldest first, repeats kept."""
    targets: np.ndarray
    """(T,) int64 distinct item rows, ascending."""
    profile: Profile = field(default_factory=dict)
    weights: np.ndarray | None = None
    """(L,) float32 weights of the clicks in the history; None: all 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What is learned from: one sequence of item rows a user, oldest first; equal to itself alone."""

    sequences: Sequence[np.ndarray]
    user_ids: Sequence[str]
    profiles: Sequence[Profile] = ()
    """One a sequence, or empty where no user has one."""
    weights: Sequence[np.ndarray] = ()
    """float32, one a click of each sequence; empty: all 1."""

    @property
    def click_count(self) -> int:
        """Clicks of all users."""
        return sum(len(rows) for rows in self.sequences)

    def flat(self) -> np.ndarray:
        """Return the rows of all clicks in one array, user by user."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.sequences])

    def flat_weights(self) -> np.ndarray:
        """Return the float32 weights of all clicks in one array, user by user."""
        if not self.weights:
            return np.ones(self.click_count, dtype=np.float32)
        return np.concatenate([np.zeros(0, dtype=np.float32), *self.weights])

    def counts(self, items: int) -> np.ndarray:
        """Return (N + 1,) int64, how often each item was clicked."""
        return np.bincount(self.flat(), minlength=items + 1)


@dataclass(frozen=True)
class OfflineSet:
    """One data set under one split."""

    name: str
    split: str
    item_ids: Sequence[str]
    train: Part
    """What is learned from to be asked about `valid`."""
    final_train: Part
    """What is learned from to be asked about `test`; `train` itself where valid users are never trained on."""
    valid: Sequence[Question]
    test: Sequence[Question]
    items: Mapping[str, ItemEvent] = field(default_factory=dict)
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    of_sessions: bool = False
    """Whether what is learned from are sessions, not the histories of users."""

    @property
    def item_count(self) -> int:
        """N."""
        return len(self.item_ids)

    @cached_property
    def ranks(self) -> np.ndarray:
        """The items' ranks by id, which break ties; see `ranks_of`."""
        return ranks_of(self.item_ids)

    def training(self, *, valid: bool) -> Part:
        """Return what is learned from to be asked about the valid or the test questions."""
        return self.train if valid else self.final_train

    def questions(self, *, valid: bool) -> Sequence[Question]:
        """Return the valid or the test questions."""
        return self.valid if valid else self.test

    def item_categories(self, row: int) -> Sequence[str]:
        """Return the categories of the item in *row*: all that are known, or none."""
        item_id = self.item_ids[row - 1]
        if item_id in self.categories:
            return self.categories[item_id]
        item = self.items.get(item_id)
        return (item.category,) if item is not None and item.category else ()

    def without(self, rows: np.ndarray) -> Self:
        """Return the set with the items in *rows* taken out of training and histories, but not out of the targets."""
        train = _without(self.train, rows)
        return replace(
            self,
            train=train,
            final_train=train if self.final_train is self.train else _without(self.final_train, rows),
            valid=[_forget(question, rows) for question in self.valid],
            test=[_forget(question, rows) for question in self.test],
        )


def ranks_of(item_ids: Sequence[str]) -> np.ndarray:
    """Return (N + 1,) uint64 ranks of the rows from 1, ascending as their ids are, bytewise; 0 for row 0."""
    ranks = np.zeros(len(item_ids) + 1, dtype=np.uint64)
    # Code points order as UTF-8 bytes do, so sorting the strings is sorting the bytes.
    order = sorted(range(len(item_ids)), key=item_ids.__getitem__)
    ranks[np.array(order, dtype=np.int64) + 1] = np.arange(len(item_ids))
    return ranks


def _without(part: Part, rows: np.ndarray) -> Part:
    stays = [~np.isin(own, rows) for own in part.sequences]
    sequences, weights = (
        [own[kept] for own, kept in zip(lists, stays, strict=True)] if lists else []
        for lists in (part.sequences, part.weights)
    )
    return replace(part, sequences=sequences, weights=weights)


def _forget(question: Question, rows: np.ndarray) -> Question:
    stays = ~np.isin(question.history, rows)
    weights = None if question.weights is None else question.weights[stays]
    return replace(question, history=question.history[stays], weights=weights)
