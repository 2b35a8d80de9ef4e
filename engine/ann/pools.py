"""Candidate pools: what each user's interests found when they last searched, within a bound on memory.

An interest that hardly moved since would find nearly the same items again, so `engine/ann/pooled.py` scores these
instead of searching. A pool is a memory and nothing more: any of them may be lost at any time, and is after a restart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.ann.index import Vectors
from engine.item_rows import NO_ROW

Places = npt.NDArray[np.int64]


class CandidatePools:
    """The pools of the users who searched last; one thread at a time."""

    def __init__(self, *, users: int, interests: int, dimensions: int, width: int) -> None:
        """Make room for the pools of *users*, at least 1; memory is taken as they come.

        Args:
            users: for how many there is room; a further one takes the place of who was not met for the longest time.
            interests: K, the most interests of a user.
            dimensions: D.
            width: P, candidates of an interest.
        """
        self.users, self.width = users, width
        self.vectors: Vectors = np.empty((users, interests, dimensions), dtype=np.float32)
        """(users, K, D): what each pool was searched with; zero where there is no pool."""
        self.rows = np.empty((users, interests, width), dtype=np.int32)
        """(users, K, P): what was found, rows of the index; -1 for nothing."""
        self.least: Vectors = np.empty((users, interests), dtype=np.float32)
        """(users, K): the lowest score of what was found, by what it was searched with; infinity for unknown."""
        self.cuts: Vectors = np.empty((users, interests), dtype=np.float32)
        """(users, K): the lowest score of an interest's items in the last list; minus infinity for any score."""
        self._places: OrderedDict[str, int] = OrderedDict()
        self._free: list[int] = []
        self._untouched = 0  # places from here on were never anybody's

    @staticmethod
    def bytes_a_user(*, interests: int, dimensions: int, width: int) -> int:
        """Return the memory of one user's pools, their key in it."""
        return 4 * interests * (dimensions + width + 2) + 200

    def __len__(self) -> int:
        return len(self._places)

    def claim(self, users: Sequence[str]) -> Places:
        """Return the (B,) places of *users*, at most as many as there is room for; empty ones of new users."""
        places = [self._claim(user) for user in users]
        return np.array(places, dtype=np.int64)

    def forget(self, user: str) -> None:
        """Leave nothing of *user*, neither pools nor name."""
        place = self._places.pop(user, None)
        if place is not None:
            self._empty(place)
            self._free.append(place)

    def clear(self) -> None:
        """Forget everybody."""
        self._places.clear()
        self._free.clear()
        self._untouched = 0

    def _claim(self, user: str) -> int:
        place = self._places.get(user)
        if place is not None:
            self._places.move_to_end(user)
            return place
        place = self._places[user] = self._take_place()
        self._empty(place)
        return place

    def _take_place(self) -> int:
        if self._free:
            return self._free.pop()
        if self._untouched < self.users:
            self._untouched += 1
            return self._untouched - 1
        return self._places.popitem(last=False)[1]

    def _empty(self, place: int) -> None:
        self.vectors[place], self.rows[place] = 0.0, NO_ROW
        self.least[place], self.cuts[place] = np.inf, -np.inf
