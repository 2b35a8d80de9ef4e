"""Sequences: a data set as read, before any split, whatever kind of file it came from.

Readers make it, `trainer/offline/splits.py` takes it apart. Item rows are of the reader's making here; a split ranks
them anew unless the file fixes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

import numpy as np

from engine.events import ItemEvent

TRAIN, VALID, TEST = 0, 1, 2
"""Values of `Sequences.parts`."""

Profile = Mapping[str, str | float]


class Kind(StrEnum):
    """What one sequence of a data set is."""

    PARTED = "a file that names each user's part"
    SESSIONS = "sessions"
    USERS = "users"


@dataclass(frozen=True)
class Sequences:
    """Who clicked what, in order: C clicks of U users, or sessions, on N items."""

    name: str
    kind: Kind
    item_ids: Sequence[str]
    """(N,) id of row 1, 2, ..."""
    user_ids: Sequence[str]
    """(U,)"""
    rows: np.ndarray
    """(C,) int64 item rows from 1, user by user, oldest first."""
    starts: np.ndarray
    """(U + 1,) int64, where each user's clicks start; the last entry is C."""
    times_ms: np.ndarray | None = None
    """(C,) int64 event times; None where the file has none."""
    weights: np.ndarray | None = None
    """(C,) float32 weights of the clicks; None where the file has none, which means 1."""
    parts: np.ndarray | None = None
    """(U,) int8 `TRAIN`, `VALID` or `TEST`; None where the file leaves it to the split."""
    profiles: Sequence[Profile] = ()
    """(U,), or empty where no user has one."""
    items: Mapping[str, ItemEvent] = field(default_factory=dict)
    """What is known of items, by id; may hold items that nobody clicked."""
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """All categories of an item, where there are several; elsewhere `ItemEvent.category` is the one."""
    remarks: Sequence[str] = ()
    """What was left out, as sentences for whoever runs the bench."""

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]], **parts: object) -> Self:
        """Return the sequences whose rows are *lists*, one a user."""
        starts = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(rows) for rows in lists], out=starts[1:])
        flat = np.fromiter((row for rows in lists for row in rows), dtype=np.int64, count=int(starts[-1]))
        return cls(rows=flat, starts=starts, **parts)  # type: ignore[arg-type]

    @property
    def user_count(self) -> int:
        """How many users, or sessions."""
        return len(self.starts) - 1

    def sequence(self, user: int) -> np.ndarray:
        """Return the item rows of user number *user*, oldest first; a view."""
        rows: np.ndarray = self.rows[self.starts[user] : self.starts[user + 1]]
        return rows

    def weights_of(self, user: int) -> np.ndarray | None:
        """Return the weights of the clicks of user number *user*; None where the file has none."""
        return None if self.weights is None else self.weights[self.starts[user] : self.starts[user + 1]]

    def profile(self, user: int) -> Profile:
        """Return the profile of user number *user*; empty where there is none."""
        return self.profiles[user] if self.profiles else {}

    def without_fields(self) -> Self:
        """Return the same clicks on items of which nothing but the categories is known, for the figures alone."""
        categories = {item.item_id: (item.category,) for item in self.items.values() if item.category}
        return replace(self, items={}, categories={**categories, **self.categories})

    def without_profiles(self) -> Self:
        """Return the same clicks of users of whom nothing is known."""
        return replace(self, profiles=())
