"""Lists on the spot: what the query service works out itself, with the micro-batch's own rules.

An engine makes a list when a user clicks. Here lists are made when somebody asks: of clicks that no log holds, of a
window without one of its clicks, or under a filter that would leave a stored list short. Routing, search and merge are
those of `engine/microbatch.py`, so the same clicks give the same items, interests and bytes under the same version.

What a filter leaves is scored exactly: a graph finds little in a small part of the catalog. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.ann.index import rank
from engine.ann.selection import top_places
from engine.events import ClickEvent
from engine.merge import ListLimits, merge
from engine.microbatch import Behavior, ListMaker
from engine.recall import RankedItem, RecallList
from engine.recaller import Wishes
from engine.window import BehaviorWindow

Profile = Mapping[str, str | float]
SMALL_PART = 4
"""Where fewer than one item in so many may be shown, those alone are scored, and not the whole catalog."""
DEEPER = 2
"""Where the user turned items down, so many times as many are looked at, since those pushed down make room."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items may be in a list: those of one category, and none of the excluded."""

    category: str | None = None
    exclude: Collection[str] = ()


class AdHocLists(ListMaker):
    """Makes lists under one snapshot for whoever asks; see `ListMaker` for the rules of a list."""

    KEEPS_POOLS = False

    def recall(self, window: BehaviorWindow, profile: Profile) -> RecallList | None:
        """Return the list that an engine makes of *window*; None where no click in it forms an interest.

        Raises:
            UnusableInterests: the version makes NaN or infinity of the window.
        """
        behavior = self._behave(window, profile)
        return self._make_lists([behavior], self._route([behavior.to_input()]))[0]

    def recall_filtered(self, window: BehaviorWindow, profile: Profile, keep: Filter) -> RecallList | None:
        """Return the list of *window* among the items that *keep* lets through; None as for `recall`."""
        behavior = self._behave(window, profile)
        interests = self._route([behavior.to_input()])
        numbers = np.flatnonzero(interests.mask[0]).tolist()
        if not numbers:
            return None
        self._served.catch_up()
        wishes = self._wishes(behavior)
        blocked = self._served.unavailable | self._items.mask([*keep.exclude, *wishes.unwanted])
        if keep.category is not None:
            blocked |= ~self._items.mask(self._catalog.items_in(keep.category))
        vectors, limits = interests.vectors[0][interests.mask[0]], ListLimits.of(self._settings)
        claims = interests.claims[0][interests.mask[0]].tolist()
        items = self._best(vectors, numbers, blocked, limits, wishes, claims=claims)
        return self._describe(behavior, items, self._summarize([behavior], interests)[0])

    def recall_without(
        self, window: BehaviorWindow, profile: Profile, clicks: Sequence[ClickEvent], *, reach: int
    ) -> list[list[str]]:
        """Return for each of *clicks* which of the list's first *reach* items leave them when the click is undone.

        Args:
            window: the window that holds the clicks.
            profile: the user's attributes.
            clicks: clicks of *window*; an undone click forms no interest, its item still stays out of the list.
            reach: how many of the best items are compared.

        Returns:
            (len(clicks),) item ids, best first.
        """
        whole = self._behave(window, profile)
        behaviors = [whole, *(self._behave(window, profile, undone=click) for click in clicks)]
        interests = self._route([behavior.to_input() for behavior in behaviors])
        lists = self._make_lists(behaviors, interests)
        tops = [[item.item_id for item in made.items[:reach]] if made is not None else [] for made in lists]
        return [[item_id for item_id in tops[0] if item_id not in frozenset(left)] for left in tops[1:]]

    def neighbors(self, item_id: str, limit: int) -> list[RankedItem] | None:
        """Return the *limit* items with the greatest inner product with *item_id*; None for an item that is none here.

        Removed and unavailable items are left out, and so is the item itself.
        """
        self._served.catch_up()
        row = self._served.row(item_id)
        if row is None or self._catalog.is_removed(item_id):
            return None
        blocked = self._served.unavailable.copy()
        blocked[row] = True
        limits = ListLimits(size=limit, floor=0.0, cap=1.0)
        return self._best(self._index.vectors[row : row + 1], [0], blocked, limits, Wishes(()))

    def _behave(self, window: BehaviorWindow, profile: Profile, *, undone: ClickEvent | None = None) -> Behavior:
        standing = [click for click in self._standing(window.clicks) if click is not undone]
        return Behavior(
            user_id="",
            accepted_at_ms=None,
            window_offset=-1,
            window=window,
            standing=standing,
            item_ids=[click.item_id for click in standing],
            profile=profile,
            has_list=False,
        )

    def _best(
        self,
        vectors: np.ndarray,
        numbers: Sequence[int],
        blocked: np.ndarray,
        limits: ListLimits,
        wishes: Wishes,
        *,
        claims: Sequence[float] | None = None,
    ) -> list[RankedItem]:
        """Return the merged best of all items that are not *blocked*, (N,) bool, for (Q, D) *vectors*."""
        allowed = np.flatnonzero(~blocked)
        if not len(allowed):
            return []
        if len(allowed) * SMALL_PART < len(blocked):
            scores = vectors @ self._index.vectors[allowed].T
        else:
            scores = (vectors @ self._index.vectors.T)[:, allowed]
        depth = min(limits.size * (DEEPER if wishes.negative else 1), len(allowed))
        # The product only selects; the scores that leave are those of every search.
        chosen = allowed[top_places(scores, depth)]
        rows, exact = rank(self._index.vectors, vectors, chosen)
        if wishes.negative:
            exact = np.stack([self._recaller.push_down(*each, wishes) for each in zip(exact, rows, strict=True)])
        return merge(
            rows,
            exact,
            numbers,
            items=self._items,
            unavailable=blocked,
            seen=(),
            limits=limits,
            claims=claims,
            categories=self._served.categories,
        )

    def _keys(self, behaviors: Sequence[Behavior]) -> list[str]:
        return [str(place) for place in range(len(behaviors))]  # variants of one window, kept for no later call
