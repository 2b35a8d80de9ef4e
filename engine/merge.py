"""The merge: what a user's interests found, as one ranked list.

Stands between the index and the recall list. A refresh (`engine/recaller.py`) searches or scores again with each
interest in use, and `merge_many` makes one list of what they found; it is a pure function of its arguments.

In order:

1. Candidates that are seen, unavailable, padding or not finite are gone before anything is counted.
2. An item found by several interests stays once, under the one that scores it best (then the lower interest).
3. Of a category only the best `category_cap * size` count at first; an item without a category always does.
4. The best items of each interest are in, whichever scores them better: one, and the more the greater the part of the
   list that it claims.
5. The rest goes by score; an interest may hold up to `cap * size`, and its part of what is left of the list.
6. Only where that leaves the list short do interests and categories go beyond their cap.
7. The list is ordered by score, best first, ties by ascending item id, bytewise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engine.compiled import compiled
from engine.item_rows import NO_ROW, FlatRows, ItemRows
from engine.recall import RankedItem
from engine.settings import Settings

NO_CATEGORY = -1
"""Number of the items that have no category, which no cap holds back."""
_POWERS_OF_TEN, _LEAST = np.array([10.0**power for power in range(23)]), 1e-14
"""Those that a float64 holds exactly, and the least number that they bring to nine digits."""
_ROUNDING = 1e-6
"""A count that is whole but for the last digits of a product is that whole number."""


@dataclass(frozen=True, slots=True)
class ListLimits:
    """How many items a list has, and how many of them each interest may and must have."""

    size: int
    floor: float
    """Share of the list that the best items of an interest with an even claim are in for sure."""
    cap: float
    """Share of the list that an interest may have, and its part of the rest, while others can fill what is left."""
    category_cap: float = 1.0
    """Share of the list that one category may have while others can fill the rest."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits that *settings* name."""
        return cls(settings.list_size, settings.interest_floor, settings.interest_cap, settings.category_cap)

    def floor_counts(self, claims: NDArray[np.float64], in_use: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Return (B, S) how many of its best items each interest has in the list at least.

        Args:
            claims: (B, S) the part of the list that each interest claims; they add up to 1.
            in_use: (B, S) True for the interests that there are.
        """
        together = np.minimum(self.floor * in_use.sum(axis=1, keepdims=True), 1.0)
        counts = np.floor(together * claims * self.size + _ROUNDING)
        floors: NDArray[np.int32] = np.where(in_use, np.maximum(counts, self.floor > 0), 0).astype(np.int32)
        return floors

    def cap_counts(self, claims: NDArray[np.float64]) -> NDArray[np.int32]:
        """Return (B, S) how many items each interest has at the most while others can fill the rest."""
        parts = self.cap + (1.0 - self.cap) * claims
        caps: NDArray[np.int32] = np.ceil(parts * self.size - _ROUNDING).astype(np.int32)
        return caps

    @property
    def category_cap_count(self) -> int:
        """How many items of one category there are at the most while others can fill the rest."""
        return math.ceil(self.category_cap * self.size)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the interests of B users found, M places each."""

    rows: NDArray[np.int64]
    """(B, M) item rows, each once a user; -1 for none."""
    each: NDArray[np.float32]
    """(B, K, M) inner products with every interest; not finite with those that don't count for the item."""

    def best(self) -> NDArray[np.float32]:
        """Return (B, M) the inner products with the interest that scores each item best."""
        best: NDArray[np.float32] = self.each.max(axis=1)
        return best


@dataclass(frozen=True, slots=True)
class Merged:
    """The lists of B users."""

    rows: NDArray[np.int64]
    """(B, size) item rows, best first; -1 behind the last."""
    scores: NDArray[np.float32]
    """(B, size) inner products with the interest that scores the item best."""
    interests: NDArray[np.int64]
    """(B, size) which interest that is."""
    counts: NDArray[np.int64]
    """(B,) how many items each list has."""

    @classmethod
    def empty(cls, users: int, size: int) -> Self:
        """Return lists of nothing for so many *users*."""
        rows = np.full((users, size), NO_ROW, dtype=np.int64)
        interests, counts = np.zeros_like(rows), np.zeros(users, dtype=np.int64)
        return cls(rows, np.zeros(rows.shape, dtype=np.float32), interests, counts)

    def ranked(self, items: ItemRows) -> list[list[RankedItem]]:
        """Return the lists as they are sent, of *items*, with scores of nine digits."""
        item_ids = items.item_ids.take(self.rows, mode="wrap") if len(items) else self.rows
        parts = (self.counts, item_ids, _to_nine_digits(self.scores), self.interests)
        return [
            # No comprehension: a third of a list's time went there.
            [*map(RankedItem, item_ids[:count], scores[:count], interests[:count])]
            for count, item_ids, scores, interests in zip(*(part.tolist() for part in parts), strict=True)
        ]

    def cuts(self, interests: int) -> NDArray[np.float32]:
        """Return (B, K) the lowest score of each of so many *interests* in a list; the list's of one that has none.

        Minus infinity where the list is not full: any item would be in it.
        """
        cuts = np.full((len(self.rows), interests), -np.inf, dtype=np.float32)
        _find_cuts(self.scores, self.interests, self.counts, cuts)
        return cuts


def merge(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    interests: Sequence[int],
    *,
    items: ItemRows,
    unavailable: NDArray[np.bool_],
    seen: Collection[int],
    limits: ListLimits,
    claims: Sequence[float] | None = None,
    categories: NDArray[np.int32] | None = None,
) -> list[RankedItem]:
    """Return one list of what the interests in use found, by the rules at the top of this file.

    Args:
        rows: (Q, k) item rows each interest found, each at most once an interest; -1 is padding.
        scores: (Q, k) float32, inner products, in any order.
        interests: (Q,) ascending numbers of the interests that the rows belong to.
        items: the version's items.
        unavailable: (N,) bool, True where an item is removed or not available.
        seen: rows that the user is not to get.
        limits: size, floor and caps.
        claims: (Q,) the part of the list that each interest claims; None: all alike.
        categories: (N,) a number for each item's category, `NO_CATEGORY` for none; None: no item has one.

    Returns:
        At most `limits.size` items, fewer only where the candidates run out; best first, ties by item id.
    """
    once = np.unique(rows)
    each = np.full((len(rows), len(once)), -np.inf, dtype=np.float32)
    np.put_along_axis(each, np.searchsorted(once, rows), scores, axis=1)
    merged = merge_many(
        Candidates(once[None], each[None]),
        np.ones((1, len(rows)), dtype=np.bool_),
        ranks=items.ranks,
        unavailable=unavailable,
        seen=FlatRows.of(np.fromiter(seen, dtype=np.int64, count=len(seen)), [len(seen)]),
        limits=limits,
        claims=None if claims is None else np.array([claims]),
        categories=categories,
    )
    named = Merged(merged.rows, merged.scores, np.array(interests)[merged.interests], merged.counts)
    return named.ranked(items)[0]


def merge_many(
    found: Candidates,
    in_use: NDArray[np.bool_],
    *,
    ranks: NDArray[np.uint64],
    unavailable: NDArray[np.bool_],
    seen: FlatRows,
    limits: ListLimits,
    claims: NDArray[np.float64] | None = None,
    categories: NDArray[np.int32] | None = None,
) -> Merged:
    """Return the lists of B users, each as `merge` makes it.

    Args:
        found: the candidates.
        in_use: (B, K) bool, True for the interests that there are.
        ranks: (N,) of the items, below 2^32, ascending as their ids are.
        unavailable: (N,) bool, True where an item is removed or not available.
        seen: B times the rows that the user is not to get; -1 for none.
        limits: size, floor and caps.
        claims: (B, K) the part of the list that each interest claims, 0 of those not in use; None: all alike.
        categories: (N,) a number for each item's category, `NO_CATEGORY` for none; None: no item has one.
    """
    if claims is None:
        claims = in_use / np.maximum(in_use.sum(axis=1, keepdims=True), 1)
    scores, interests = np.empty(found.rows.shape, dtype=np.float32), np.empty(found.rows.shape, dtype=np.int64)
    left_out = np.zeros_like(unavailable)
    _score_candidates(found.rows, found.each, unavailable, seen.rows, seen.starts, left_out, scores, interests)
    order, counts = _best_first(scores, found.rows, ranks)
    is_beyond = np.zeros(order.shape, dtype=np.bool_)
    if categories is not None and limits.category_cap_count < limits.size:
        of_category = np.zeros(int(categories.max(initial=NO_CATEGORY)) + 1, dtype=np.int64)
        _hold_back(found.rows, order, counts, categories, of_category, limits.category_cap_count, is_beyond)
    is_favorite = np.zeros(order.shape, dtype=np.bool_)
    floors = limits.floor_counts(claims, in_use)
    best = np.zeros(int(floors.max(initial=0)) + 1, dtype=np.int64)
    _find_favorites(found.rows, found.each, scores, order, counts, is_beyond, ranks, floors, best, is_favorite)
    merged = Merged.empty(len(order), limits.size)
    _choose(
        found.rows,
        scores,
        interests,
        order,
        counts,
        is_beyond,
        is_favorite,
        limits.cap_counts(claims),
        merged.rows,
        merged.scores,
        merged.interests,
        merged.counts,
    )
    return merged


def _to_nine_digits(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return *scores* rounded to nine significant digits, which tell each float32 from every other.

    JSON would write all sixteen of a float64: a tenth of a list's bytes, and a quarter of the compressed ones.
    """
    wide = np.where(np.isfinite(scores), scores, 0.0).astype(np.float64)
    digits = 8 - np.floor(np.log10(np.maximum(np.abs(wide), _LEAST)))
    scales = _POWERS_OF_TEN[np.clip(digits, 0, len(_POWERS_OF_TEN) - 1).astype(np.int64)]
    rounded: NDArray[np.float64] = np.rint(wide * scales) / scales
    return rounded


def _best_first(
    scores: NDArray[np.float32], rows: NDArray[np.int64], ranks: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (B, M) places by falling score, ties by the items' ranks, and the (B,) counts of those that count.

    Keys that hold the place are sorted some ten times faster than places by keys, so ties are put right afterwards.
    """
    keys = np.empty(scores.shape, dtype=np.uint64)
    _make_keys(scores.view(np.uint32), keys)
    keys.sort(axis=1)
    order, counts = np.empty(scores.shape, dtype=np.int64), np.empty(len(scores), dtype=np.int64)
    _take_order(keys, scores, rows, ranks, order, counts)
    return order, counts


@compiled
def _make_keys(bits: NDArray[np.uint32], keys: NDArray[np.uint64]) -> None:
    """Write keys that sort as falling scores with these *bits* do, with the place in their low half."""
    sign, every = np.uint32(2**31), np.uint32(2**32 - 1)
    for user in range(len(bits)):
        for place in range(bits.shape[1]):
            value = bits[user, place]
            rising = value ^ every if value >= sign else value | sign  # a float's bits, ordered as the floats are
            keys[user, place] = np.uint64(rising ^ every) << np.uint64(32) | np.uint64(place)


@compiled
def _take_order(
    keys: NDArray[np.uint64],
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    ranks: NDArray[np.uint64],
    order: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Write the places of sorted *keys* to *order*, equal scores by the items' ranks, and how many are finite."""
    for user in range(len(keys)):
        count = 0
        while count < keys.shape[1]:
            place = np.int64(keys[user, count] & np.uint64(2**32 - 1))
            if scores[user, place] == -np.inf:
                break
            order[user, count] = place
            count += 1
        counts[user] = count
        for at in range(1, count):  # ties are few, and close together
            place, behind = order[user, at], at
            while behind > 0:
                other = order[user, behind - 1]
                if scores[user, other] != scores[user, place] or ranks[rows[user, other]] < ranks[rows[user, place]]:
                    break
                order[user, behind] = other
                behind -= 1
            order[user, behind] = place


@compiled
def _score_candidates(
    rows: NDArray[np.int64],
    each: NDArray[np.float32],
    unavailable: NDArray[np.bool_],
    seen: NDArray[np.int64],
    starts: NDArray[np.int64],
    is_left_out: NDArray[np.bool_],
    scores: NDArray[np.float32],
    interests: NDArray[np.int64],
) -> None:
    """Write each candidate's best score, minus infinity for one left out, and whose it is; *is_left_out* is False."""
    for user in range(len(rows)):
        own = seen[starts[user] : starts[user + 1]]
        for row in own:
            if row >= 0:
                is_left_out[row] = True
        for place in range(rows.shape[1]):
            best, whose, row = np.float32(-np.inf), 0, rows[user, place]
            if row >= 0 and not unavailable[row] and not is_left_out[row]:
                for interest in range(each.shape[1]):
                    if best < each[user, interest, place] < np.inf:
                        best, whose = each[user, interest, place], interest
            scores[user, place], interests[user, place] = best + np.float32(0.0), whose  # never -0.0
        for row in own:
            if row >= 0:
                is_left_out[row] = False


@compiled
def _hold_back(
    rows: NDArray[np.int64],
    order: NDArray[np.int64],
    counts: NDArray[np.int64],
    categories: NDArray[np.int32],
    of_category: NDArray[np.int64],
    most: int,
    is_beyond: NDArray[np.bool_],
) -> None:
    """Make *is_beyond* True at candidates, best first, with *most* of their category before them; the counts are 0."""
    for user in range(len(order)):
        for at in range(counts[user]):
            category = categories[rows[user, order[user, at]]]
            if category != NO_CATEGORY:
                is_beyond[user, at] = of_category[category] >= most
                of_category[category] += 1
        for at in range(counts[user]):
            category = categories[rows[user, order[user, at]]]
            if category != NO_CATEGORY:
                of_category[category] = 0


@compiled
def _find_favorites(
    rows: NDArray[np.int64],
    each: NDArray[np.float32],
    scores: NDArray[np.float32],
    order: NDArray[np.int64],
    counts: NDArray[np.int64],
    is_beyond: NDArray[np.bool_],
    ranks: NDArray[np.uint64],
    floors: NDArray[np.int32],
    best: NDArray[np.int64],
    is_favorite: NDArray[np.bool_],
) -> None:
    """Make *is_favorite* True at the best items of each interest, whichever scores them better.

    *best* has room for the greatest of the floors.
    """
    for user in range(len(order)):
        for interest in range(floors.shape[1]):
            kept = 0  # `best` holds so many, best first
            for at in range(counts[user]):
                place = order[user, at]
                score = each[user, interest, place]
                if kept and kept == floors[user, interest]:
                    least = each[user, interest, order[user, best[kept - 1]]]
                    if scores[user, place] < least:
                        break  # and so does everything behind it
                    if score < least:
                        continue
                if is_beyond[user, at] or not -np.inf < score < np.inf:
                    continue
                behind = kept
                while behind > 0:
                    other = order[user, best[behind - 1]]
                    before = each[user, interest, other]
                    if score < before or (score == before and ranks[rows[user, place]] > ranks[rows[user, other]]):
                        break
                    behind -= 1
                if behind == floors[user, interest]:
                    continue
                kept = min(kept + 1, floors[user, interest])
                for one in range(kept - 1, behind, -1):
                    best[one] = best[one - 1]
                best[behind] = at
            for one in range(kept):
                is_favorite[user, best[one]] = True


@compiled
def _choose(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    interests: NDArray[np.int64],
    order: NDArray[np.int64],
    counts: NDArray[np.int64],
    is_beyond: NDArray[np.bool_],
    is_favorite: NDArray[np.bool_],
    caps: NDArray[np.int32],
    chosen_rows: NDArray[np.int64],
    chosen_scores: NDArray[np.float32],
    chosen_interests: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> None:
    """Write the chosen of the candidates, best first, to the last four."""
    held, is_in = np.zeros(caps.shape[1], dtype=np.int64), np.zeros(order.shape[1], dtype=np.bool_)
    for user in range(len(order)):
        count, room = counts[user], chosen_rows.shape[1]
        for at in range(count):  # favorites
            is_in[at] = is_favorite[user, at] and room > 0
            room -= is_in[at]
        for interest in range(len(held)):
            held[interest] = 0
        for at in range(count):  # within the caps
            if not is_beyond[user, at]:
                interest = interests[user, order[user, at]]
                held[interest] += 1
                if room > 0 and not is_in[at] and held[interest] <= caps[user, interest]:
                    is_in[at] = True
                    room -= 1
        for at in range(count):  # and beyond
            if room > 0 and not is_in[at]:
                is_in[at] = True
                room -= 1
        length = 0
        for at in range(count):
            if is_in[at]:
                place = order[user, at]
                chosen_rows[user, length], chosen_scores[user, length] = rows[user, place], scores[user, place]
                chosen_interests[user, length] = interests[user, place]
                length += 1
        lengths[user] = length


@compiled
def _find_cuts(
    scores: NDArray[np.float32], interests: NDArray[np.int64], counts: NDArray[np.int64], cuts: NDArray[np.float32]
) -> None:
    """Write the lowest score of each interest in every list that is full."""
    for user in range(len(scores)):
        if counts[user] == scores.shape[1]:
            cuts[user] = scores[user, -1]
            for at in range(counts[user]):
                cuts[user, interests[user, at]] = scores[user, at]
