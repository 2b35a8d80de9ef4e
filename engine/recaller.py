"""Recaller: from many users' interests to their ranked items, under one snapshot.

Stands between the model and the micro-batch. Interests that moved search the index, the others score again what their
user's searches found (`engine/ann/pooled.py`); what the user turned down pushes its neighbors down
(`engine/ann/negative.py`); the candidates are merged by the rules of `engine/merge.py`. A share of the lists is also
made exactly, and what that shows decides how hard is searched (`engine/recall_audit.py`). One thread at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np

from engine import metrics
from engine.ann.exact import ExactIndex
from engine.ann.live import LiveIndex
from engine.ann.negative import push_down
from engine.ann.pooled import Found, PooledSearch
from engine.ann.pools import CandidatePools
from engine.ann.products import inner_products
from engine.event_types import NEGATIVE_EVENT_TYPES
from engine.events import ClickEvent
from engine.item_rows import FlatRows
from engine.merge import Candidates, ListLimits, Merged, merge_many
from engine.model import Interests
from engine.recall import RankedItem
from engine.recall_audit import RecallAudit
from engine.served_items import ServedItems
from engine.settings import Settings
from engine.window import BehaviorWindow

AUDIT_EVERY = 200
"""One list of so many is also made exactly; fewer on large catalogs, where that takes longer."""
ITEMS_PER_AUDIT = 200
MEGABYTE = 10**6
_USERS_AT_ONCE = 32
"""Few, so that what is computed of their candidates stays in a core's cache until the lists are made."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user's window says of the items of the list, by their ids."""

    unwanted: Collection[str]
    """They stay out."""
    negative: Collection[str] = ()
    """The user turned them down."""
    clicked: Collection[str] = ()
    """The user clicked them, and did not turn them down; needed beside negative ones, or where they may be listed."""

    @classmethod
    def of(cls, window: BehaviorWindow, standing: Sequence[ClickEvent], *, exclude_seen: bool) -> Self:
        """Return what *window* says, and of the *standing* items, which are not removed, what the user made of them.

        With *exclude_seen* all items of the window stay out, and those seen before it.
        """
        unwanted = {click.item_id for click in window.clicks if exclude_seen or click.is_negative}
        if exclude_seen:
            unwanted.update(window.seen)
        if exclude_seen and NEGATIVE_EVENT_TYPES.isdisjoint([click.event_type for click in standing]):
            return cls(unwanted)
        negative = {click.item_id for click in standing if click.is_negative}
        return cls(unwanted, negative, {click.item_id for click in standing} - negative)


@dataclass(frozen=True, slots=True)
class _Users:
    """B users who want lists."""

    vectors: np.ndarray
    """(B, K, D) float32 interests."""
    mask: np.ndarray
    """(B, K) bool, True for those in use."""
    claims: np.ndarray
    """(B, K) float64, the part of a list that each claims."""
    wishes: Sequence[Wishes]
    seen: FlatRows
    """B times the rows that stay out."""
    clicked: FlatRows
    """B times the rows that the user clicked."""

    def part(self, first: int, end: int) -> _Users:
        """Return those from *first* to before *end*."""
        at = slice(first, end)
        seen, clicked = self.seen.part(first, end), self.clicked.part(first, end)
        return _Users(self.vectors[at], self.mask[at], self.claims[at], self.wishes[at], seen, clicked)


class Recaller:
    """Finds and ranks the items of users; what it returns depends on the interests alone, up to what searches miss."""

    def __init__(self, settings: Settings, served: ServedItems, *, interests: int, keeps_pools: bool) -> None:
        """Recall from *served*.

        Args:
            settings: the list's size and shares, and how much memory the pools take.
            served: the items; the caller has it catch up between two calls.
            interests: K, the most interests of a user.
            keeps_pools: remember what users found, and audit; for whoever meets the same users again.
        """
        _compile_loops()  # in the thread that loads a version, while no user waits
        self._settings, self._served, self._interests = settings, served, interests
        self._keeps_pools = keeps_pools and settings.pool_mb > 0
        self._limits = ListLimits.of(settings)
        self._search = self._new_search()
        self._audit = RecallAudit(settings, served.index, self._search) if keeps_pools else None
        self._until_audit = 0
        self.searched = 0
        """Interests that searched in the last call; the others in use scored again."""

    def recall(self, users: Sequence[str], interests: Interests, wishes: Sequence[Wishes]) -> list[list[RankedItem]]:
        """Return the items of B users, each with interests in use as long a list as there are items for.

        Args:
            users: their keys, each once.
            interests: of those users.
            wishes: B times what the user's window says of items.
        """
        if self._width() > self._search.width:
            self._search = self._new_search()
            if self._audit is not None:
                self._audit.watch(self._search)
        lists: list[list[RankedItem]] = []
        self.searched = 0
        # Before the searches: what the model just looked up of the same items is still at hand.
        seen = clicked = self._served.rows.flat_rows([one.unwanted for one in wishes])
        if any(one.clicked for one in wishes):
            clicked = self._served.rows.flat_rows([one.clicked or one.unwanted for one in wishes])
        every = _Users(interests.vectors, interests.mask, interests.claims, wishes, seen, clicked)
        for start in range(0, len(users), self._search.users):
            end = min(start + self._search.users, len(users))
            lists += self._recall(users[start:end], every.part(start, end))
        return lists

    def forget(self, user: str) -> None:
        """Forget what *user* found: nothing is left of somebody erased."""
        self._search.forget(user)

    def _recall(self, names: Sequence[str], users: _Users) -> list[list[RankedItem]]:
        found = self._search.find(names, users.vectors, users.mask, users.clicked)
        self.searched += int(found.searched.sum())
        lists: list[list[RankedItem]] = []
        for start in range(0, len(names), _USERS_AT_ONCE):
            end = min(start + _USERS_AT_ONCE, len(names))
            merged = self._merge(found.rows[start:end], users.part(start, end))
            if self._keeps_pools:
                self._search.note_cuts(names[start:end], merged.cuts(self._interests))
            lists += merged.ranked(self._served.rows)
        for at, ranked in enumerate(lists):
            is_short = len(ranked) < self._limits.size and found.rows.shape[1] < len(self._served.rows)
            if is_short and users.mask[at].any():
                lists[at] = self._exactly(users.part(at, at + 1), every=True)
        if self._audit is not None:
            self._audit_some(self._audit, lists, found, users)
        return lists

    def push_down(self, scores: np.ndarray, rows: np.ndarray, wishes: Wishes) -> np.ndarray:
        """Return what one user's negative clicks leave of (..., M) *scores* of the items in (M,) *rows*."""
        if not wishes.negative:
            return scores
        negative, clicked = (
            sorted(row for item_id in item_ids if (row := self._served.row(item_id)) is not None)
            for item_ids in (wishes.negative, wishes.clicked)
        )
        push, items = self._settings.negative_push, self._served.index.vectors
        return push_down(scores, rows, items, negative=negative, clicked=clicked, push=push)

    def _merge(self, rows: np.ndarray, users: _Users) -> Merged:
        """Return the lists of B users who found (B, M) *rows*."""
        each = inner_products(self._served.index.vectors, users.vectors, users.mask, rows)
        for at, wishes in enumerate(users.wishes):
            if wishes.negative:
                each[at] = self.push_down(each[at], rows[at], wishes)
        return merge_many(
            Candidates(rows, each),
            users.mask,
            ranks=self._served.rows.ranks,
            unavailable=self._served.unavailable,
            seen=users.seen,
            limits=self._limits,
            claims=users.claims,
            categories=self._served.categories,
        )

    def _exactly(self, user: _Users, *, every: bool = False) -> list[RankedItem]:
        """Return one user's items by a look at all of them: of *every* item, or of those that exact searches find."""
        index = self._served.index
        count = len(self._served.rows)
        depth = count if every else min(self._search.width, count)
        rows = np.unique(index.search_exactly(user.vectors[user.mask], depth))
        return self._merge(rows[~index.is_absent(rows)][None], user).ranked(self._served.rows)[0]

    def _audit_some(
        self,
        audit: RecallAudit,
        lists: Sequence[list[RankedItem]],
        found: Found,
        users: _Users,
    ) -> None:
        metrics.INTERESTS.labels("searched").inc(int(found.searched.sum()))
        metrics.INTERESTS.labels("scored_again").inc(int((users.mask & ~found.searched).sum()))
        metrics.CANDIDATE_POOLS.set(len(self._search))
        every = max(AUDIT_EVERY, len(self._served.rows) // ITEMS_PER_AUDIT)
        due = range(self._until_audit, len(lists), every)
        self._until_audit = due.start + len(due) * every - len(lists)
        for at in (at for at in due if users.mask[at].any()):
            exact = {item.item_id for item in self._exactly(users.part(at, at + 1))}
            if exact:
                held = sum(item.item_id in exact for item in lists[at])
                audit.note(held / len(exact), all_searched=bool((found.searched[at] == users.mask[at]).all()))

    def _width(self) -> int:
        """Return how many items each interest finds, so that the list is full without the seen and unavailable."""
        count, available = len(self._served.rows), len(self._served.rows) - int(self._served.unavailable.sum())
        return max(1, min(count, math.ceil(self._settings.candidates * count / max(available, 1))))

    def _new_search(self) -> PooledSearch:
        index = self._served.index
        width = max(self._width(), min(self._settings.index_ef, len(self._served.rows)))
        each = CandidatePools.bytes_a_user(interests=self._interests, dimensions=index.dimensions, width=width)
        users = self._settings.refresh_batch_size
        if self._keeps_pools:
            users = max(1, self._settings.pool_mb * MEGABYTE // each)
        pools = CandidatePools(users=users, interests=self._interests, dimensions=index.dimensions, width=width)
        return PooledSearch(index, pools, bound=self._settings.pool_bound if self._keeps_pools else 0.0)


@cache
def _compile_loops() -> None:
    """Have everything compiled that a list goes through, by making one of one item; takes a second or two, once."""
    vectors, used = np.ones((1, 1, 1), dtype=np.float32), np.ones((1, 1), dtype=np.bool_)
    seen = FlatRows.of(np.zeros(1, dtype=np.int64), [1])
    index = LiveIndex(ExactIndex(vectors[0]), build=ExactIndex, rebuild_at=2)
    ExactIndex(vectors[0], is_half=True).candidates(vectors[0], 1)
    search = PooledSearch(index, CandidatePools(users=1, interests=1, dimensions=1, width=1), bound=0.5)
    search.find([""], vectors, used, seen)
    search.note_cuts([""], np.full((1, 1), 1e9, dtype=np.float32))
    rows = search.find([""], 3.0 * vectors, used, seen).rows
    merge_many(
        Candidates(rows, inner_products(index.vectors, vectors, used, rows)),
        used,
        ranks=np.zeros(1, dtype=np.uint64),
        unavailable=np.zeros(1, dtype=np.bool_),
        seen=seen,
        limits=ListLimits(size=1, floor=0.1, cap=0.9),
    ).cuts(1)
