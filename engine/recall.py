"""The recall list: what a user's interests find in the item index, merged into one ranked answer.

Stands between the index and the log. A refresh (`engine/refresh.py`) searches each interest in use, `merge` makes one
list of what they found, and `encode_list` writes it in the contract's JSON: the same bytes that a query answers with
and that the topic `recall-lists` keeps. All of it is a pure function of its arguments: same input, same bytes.

The merge, in order:

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
from typing import Literal, Self

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from engine.ann.index import order_keys
from engine.errors import MalformedEvent
from engine.item_rows import ItemRows
from engine.settings import Settings
from engine.window import BehaviorWindow

NO_SLOT, _NO_TURN = -1, np.int8(3)
NO_CATEGORY = -1
"""Number of the items that have no category, which no cap holds back."""
_POWERS_OF_TEN, _LEAST = np.array([10.0**power for power in range(23)]), 1e-14
_ROUNDING = 1e-6
"""A count that is whole but for the last digits of a product is that whole number."""
"""Those that a float64 holds exactly, and the least number that they bring to nine digits."""
EXPLAINING_CLICKS = 5
"""An interest names at most this many of the clicks that formed it."""


class RankedItem(msgspec.Struct, frozen=True, gc=False):
    """One recalled item: its score (inner product), and the interest that found it; None on a popular list."""

    item_id: str
    score: float
    interest: int | None


class FormingClick(msgspec.Struct, frozen=True, gc=False):
    """A clicked item and how much routing gave of it to one interest."""

    item_id: str
    weight: float


class InterestSummary(msgspec.Struct, frozen=True):
    """One interest in use: its share of the window's routing mass, and the clicks that formed it, heaviest first."""

    interest: int
    weight: float
    clicks: Sequence[FormingClick]


class WindowClick(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One click of the window that a list was computed from; a weight of 1 is not written."""

    item_id: str
    clicked_at_ms: int
    event_type: str
    weight: float = 1.0


class RecallList(msgspec.Struct, frozen=True, kw_only=True):
    """A user's merged, ranked answer with everything needed to date and explain it; the contract of `recall-lists`."""

    user_id: str
    items: Sequence[RankedItem]
    """Best first; equal scores by ascending item id."""
    interests: Sequence[InterestSummary] = ()
    """In ascending interest number; empty on a popular list."""
    window: Sequence[WindowClick] = ()
    """Oldest click first."""
    seen: Sequence[str] | UnsetType = UNSET
    """Items that were clicked before the window and are left out too; where a setting asks for it."""
    as_of_ms: int | None = None
    """Event time of the newest click taken in; None without a window."""
    accepted_at_ms: int | None = None
    """When the log accepted the oldest click that this list is the first to reflect; None where no new click is in."""
    computed_at_ms: int
    """Wall time at which the list was made."""
    window_offset: int = -1
    """Offset in the user's partition of `clicks` up to which clicks are taken in; -1 for none."""
    activation: int
    """Offset of the model version's record on `models`."""
    epoch: str = ""
    """Cluster, topic id and partition count that `window_offset` belongs to."""
    model_version: str
    source: Literal["personal", "popular"] = "personal"


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(RecallList)


def encode_list(recall_list: RecallList) -> bytes:
    """Return the contract's JSON."""
    return _ENCODER.encode(recall_list)


def decode_list(value: bytes) -> RecallList:
    """Return the list that *value* holds.

    Raises:
        MalformedEvent: it is not JSON, or not a recall list.
    """
    try:
        return _DECODER.decode(value)
    except msgspec.ValidationError as error:
        raise MalformedEvent("type", f"not a recall list: {error}") from error
    except msgspec.DecodeError as error:
        raise MalformedEvent("json", f"not a recall list: {error}") from error


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
    """What the interests of B users found, M places each; a row of -1 or a score that isn't finite is no item."""

    rows: NDArray[np.int64]
    """(B, M) item rows, each once a user."""
    scores: NDArray[np.float32]
    """(B, M) inner products with the interest that scores the item best."""
    slots: NDArray[np.int64]
    """(B, M) which interest that is, of those that the user has in use."""
    each: NDArray[np.float32]
    """(B, S, M) inner products with every interest that the user has in use; minus infinity where none is known."""


def in_use_first(each: NDArray[np.float32], used: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return (B, K, M) *each* with the interests that are *used*, (B, K), before the others, as in `Candidates`."""
    if (used[:, 1:] <= used[:, :-1]).all():
        return each
    return np.take_along_axis(each, np.argsort(~used, axis=1, kind="stable")[:, :, None], axis=1)


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
    found, score, slots = rows.ravel(), scores.ravel(), np.repeat(np.arange(len(rows), dtype=np.int64), rows.shape[1])
    best_first = np.lexsort((slots, np.where(np.isfinite(score), -score, np.inf)))
    once = best_first[np.unique(found[best_first], return_index=True)[1]]
    each = np.full((len(rows), len(once)), -np.inf, dtype=np.float32)
    known = np.where(np.isfinite(scores), scores, np.float32(-np.inf))
    np.put_along_axis(each, np.searchsorted(found[once], rows), known, axis=1)
    candidates = Candidates(found[None, once], score[None, once], slots[None, once], each[None])
    return merge_many(
        candidates,
        [interests],
        items=items,
        unavailable=unavailable,
        seen=[seen],
        limits=limits,
        claims=None if claims is None else [claims],
        categories=categories,
    )[0]


def merge_many(
    found: Candidates,
    interests: Sequence[Sequence[int]],
    *,
    items: ItemRows,
    unavailable: NDArray[np.bool_],
    seen: Sequence[Collection[int]],
    limits: ListLimits,
    claims: Sequence[Sequence[float]] | None = None,
    categories: NDArray[np.int32] | None = None,
) -> list[list[RankedItem]]:
    """Return the lists of B users, each as `merge` makes it.

    Args:
        found: the candidates.
        interests: B times the ascending numbers of the user's interests in use.
        items: the version's items.
        unavailable: (N,) bool, True where an item is removed or not available.
        seen: B times the rows that the user is not to get.
        limits: size, floor and caps.
        claims: B times the part of the list that each of these interests claims; None: all alike.
        categories: (N,) a number for each item's category, `NO_CATEGORY` for none; None: no item has one.
    """
    scores = found.scores + np.float32(0.0)  # never -0.0
    scores[(found.rows < 0) | ~np.isfinite(scores) | unavailable[found.rows]] = -np.inf
    _leave_out(scores, found.rows, seen, len(items))
    is_left = np.isfinite(scores)
    ends = is_left.sum(axis=1)
    best_first = _best_first(scores, found.rows, ends, items.ranks)
    rows, slots = (np.take_along_axis(part, best_first, axis=1) for part in (found.rows, found.slots))
    scores = np.take_along_axis(scores, best_first, axis=1)
    slots[np.arange(slots.shape[1]) >= ends[:, None]] = NO_SLOT
    beyond = None
    if categories is not None and limits.category_cap_count < limits.size:
        beyond = _beyond_cap(categories[rows], limits.category_cap_count)
        is_beyond = np.empty_like(beyond)
        np.put_along_axis(is_beyond, best_first, beyond, axis=1)
        is_left &= ~is_beyond
    parts, in_use = _parts(interests, claims)
    each = np.where(is_left[:, None], found.each[:, : in_use.shape[1]], np.float32(-np.inf))
    favorites = _favorites(each, limits.floor_counts(parts, in_use), items.ranks[found.rows])
    favorites = np.take_along_axis(favorites, best_first, axis=1)
    chosen = _choose(slots, favorites, limits.cap_counts(parts), limits.size, beyond)
    counts = np.minimum(ends, limits.size).tolist()
    places = np.minimum(chosen, max(rows.shape[1] - 1, 0))  # those behind the last item are not looked at
    rows, slots = (np.take_along_axis(part, places, axis=1) for part in (rows, slots))
    values = _to_nine_digits(np.take_along_axis(scores, places, axis=1))
    lists = []
    for user, (count, numbers) in enumerate(zip(counts, interests, strict=True)):
        item_ids = map(items.item_ids.__getitem__, rows[user, :count].tolist())
        of = map(numbers.__getitem__, slots[user, :count].tolist())
        # No comprehension: a third of a list's time went there.
        lists.append([*map(RankedItem, item_ids, values[user, :count].tolist(), of)])
    return lists


def _to_nine_digits(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return *scores* rounded to nine significant digits, which tell each float32 from every other.

    JSON would write all sixteen of a float64: a tenth of a list's bytes, and a quarter of the compressed ones.
    """
    wide = scores.astype(np.float64)
    digits = 8 - np.floor(np.log10(np.maximum(np.abs(wide), _LEAST)))
    scales = _POWERS_OF_TEN[np.clip(digits, 0, len(_POWERS_OF_TEN) - 1).astype(np.int64)]
    rounded: NDArray[np.float64] = np.rint(wide * scales) / scales
    return rounded


def _leave_out(
    scores: NDArray[np.float32], rows: NDArray[np.int64], seen: Sequence[Collection[int]], count: int
) -> None:
    """Make the scores of the rows that each user is not to get minus infinity."""
    is_seen = np.zeros(count + 1, dtype=np.bool_)  # the last place is that of padding, row -1
    for user, own in enumerate(seen):
        if own:
            at = np.fromiter(own, dtype=np.int64, count=len(own))
            is_seen[at] = True
            scores[user, is_seen[rows[user]]] = -np.inf
            is_seen[at] = False


def _best_first(
    scores: NDArray[np.float32], rows: NDArray[np.int64], ends: NDArray[np.int64], ranks: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return (B, M) places by falling score, ties by the items' ranks; the first of *ends* count.

    Keys that hold the place are sorted some ten times faster than places by keys, so ties are put right afterwards.
    """
    keys = np.sort(order_keys(scores, np.arange(scores.shape[1], dtype=np.uint64)), axis=1)
    places = (keys & np.uint64(2**32 - 1)).astype(np.int64)
    values = keys >> np.uint64(32)
    tied = (values[:, 1:] == values[:, :-1]) & (np.arange(1, keys.shape[1]) < ends[:, None])
    for user in np.flatnonzero(tied.any(axis=1)).tolist():
        places[user] = np.argsort(order_keys(scores[user], ranks[rows[user]]), kind="stable")
    return places


def _beyond_cap(categories: NDArray[np.int32], cap_count: int) -> NDArray[np.bool_]:
    """Return (B, M), True for candidates, best first, with *cap_count* of their category before them."""
    by_category = np.argsort(categories, axis=1, kind="stable")
    ordered = np.take_along_axis(categories, by_category, axis=1)
    places = np.broadcast_to(np.arange(ordered.shape[1]), ordered.shape)
    begins = np.ones(ordered.shape, dtype=np.bool_)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    beyond = np.zeros(categories.shape, dtype=np.bool_)
    np.put_along_axis(beyond, by_category, (places - first >= cap_count) & (ordered != NO_CATEGORY), axis=1)
    return beyond


def _parts(
    interests: Sequence[Sequence[int]], claims: Sequence[Sequence[float]] | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the (B, S) parts of a list that interests claim, even ones where *claims* is None, and which there are."""
    counts = np.array([len(numbers) for numbers in interests])[:, None]
    in_use: NDArray[np.bool_] = np.arange(counts.max(initial=0)) < counts
    if claims is None:
        return np.where(in_use, 1.0 / np.maximum(counts, 1), 0.0), in_use
    parts = np.zeros(in_use.shape)
    parts[in_use] = [part for own in claims for part in own]
    return parts, in_use


def _favorites(each: NDArray[np.float32], counts: NDArray[np.int32], ranks: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return (B, M), True for the best items of some interest.

    Args:
        each: (B, S, M) scores of all items by every interest.
        counts: (B, S) how many items each interest has.
        ranks: (B, M) the items' ranks, which break ties.
    """
    favorites = np.zeros(ranks.shape, dtype=np.bool_)
    width, depth = ranks.shape[1], min(ranks.shape[1], int(counts.max(initial=0)))
    if not depth:
        return favorites
    users = np.arange(len(each))
    for slot in range(counts.shape[1]):
        scores, wanted = each[:, slot], counts[:, slot]
        best = np.sort(np.partition(scores, width - depth, axis=1)[:, width - depth :], axis=1)
        least = best[users, np.clip(depth - wanted, 0, depth - 1)]
        own = (scores >= least[:, None]) & (scores > -np.inf) & (wanted > 0)[:, None]
        for user in np.flatnonzero(own.sum(axis=1) > wanted).tolist():  # others are as good as the last of them
            own[user, np.lexsort((ranks[user], -scores[user]))[wanted[user] :]] = False
        favorites |= own
    return favorites


def _choose(
    slots: NDArray[np.int64],
    favorites: NDArray[np.bool_],
    caps: NDArray[np.int32],
    size: int,
    beyond: NDArray[np.bool_] | None = None,
) -> NDArray[np.int32]:
    """Return (B, size) positions of the chosen candidates, ascending; those without an item come last.

    What an interest may have is a prefix of its own candidates, so a candidate's turn follows from its place among
    them alone: favorites first, then those within the cap, then those beyond it. The list takes from the turns in that
    order, and within one from the best on.

    Args:
        slots: (B, M) whose each candidate is, best first; `NO_SLOT` behind the last one.
        favorites: (B, M) True for candidates that are in for sure.
        caps: (B, S) how many each interest has at the most while others can fill the rest.
        size: how many to choose.
        beyond: (B, M) True for candidates beyond the cap of their category; None: nowhere.
    """
    # Narrow numbers: the arrays are wide, and what is done to them costs by the byte.
    width, slots = slots.shape[1], slots.astype(np.int16)
    turns = np.where(slots == NO_SLOT, _NO_TURN, np.int8(1))
    for slot in range(caps.shape[1]):
        own = slots == slot if beyond is None else (slots == slot) & ~beyond
        turns += own & (np.cumsum(own, axis=1, dtype=np.int32) > caps[:, slot, None])
    if beyond is not None:
        turns[beyond & (turns == 1)] = 2
    turns[favorites] = 0
    # One key holds turn and position, so that a partial sort takes the first of each turn.
    keys = turns * np.int32(width) + np.arange(width, dtype=np.int32)
    size = min(size, width)
    if size < width:
        keys = np.partition(keys, size, axis=1)[:, :size]
    return np.sort(np.where(keys >= _NO_TURN * np.int32(width), keys, keys % width), axis=1)


def summarize_interests(
    shares: NDArray[np.float64],
    routing_weights: NDArray[np.float32],
    mask: NDArray[np.bool_],
    item_ids: Sequence[Sequence[str]],
) -> list[list[InterestSummary]]:
    """Return what explains the interests of B users: their shares of the window, and the clicks that formed them.

    Args:
        shares: (B, K) float64, of `Interests`.
        routing_weights: (B, L, K) float32, one row a click, oldest first; rows of padding come before them.
        mask: (B, K) bool, True for the interests in use.
        item_ids: B times the clicked items, at most L of them.

    Returns:
        B times one summary for each interest in use, in ascending number; the weights of a user add up to 1. Of an item
        clicked several times the heaviest click is named; equal weights go newest first.
    """
    length = routing_weights.shape[1]
    ages = np.arange(length, dtype=np.uint64)
    weights = routing_weights[:, ::-1].transpose(0, 2, 1) + np.float32(0.0)  # (B, K, L), the newest click first
    is_click = ages < np.array([len(own) for own in item_ids])[:, None]
    parts = shares.tolist()
    # Keys of weight and age are in order once they are sorted, and sort some ten times faster than places by weights.
    keys = np.sort(order_keys(np.where(is_click[:, None, :], weights, -1.0), ages), axis=2)
    heaviest = (keys & np.uint64(2**32 - 1)).tolist()
    rounded = np.round(weights.astype(np.float64), 6).tolist()
    return [
        [
            InterestSummary(number, parts[user][number], _name_clicks(own[::-1], heaviest[user][number], of_clicks))
            for number, of_clicks in enumerate(rounded[user])
            if is_used[number]
        ]
        for user, (own, is_used) in enumerate(zip(item_ids, mask.tolist(), strict=True))
    ]


def _name_clicks(item_ids: Sequence[str], ages: Sequence[int], weights: Sequence[float]) -> list[FormingClick]:
    """Return the first clicks in the order of *ages*, each item once; *item_ids* and *weights* are newest first."""
    clicks: dict[str, float] = {}
    for age in ages[: len(item_ids)]:
        clicks.setdefault(item_ids[age], weights[age])
        if len(clicks) == EXPLAINING_CLICKS:
            break
    return [FormingClick(item_id, weight) for item_id, weight in clicks.items()]


def describe_window(window: BehaviorWindow) -> list[WindowClick]:
    """Return the window as a list carries it, oldest click first."""
    return [
        WindowClick(click.item_id, click.clicked_at_ms, click.event_type)
        if click.weight == 1.0
        else WindowClick(click.item_id, click.clicked_at_ms, click.event_type, click.weight)
        for click in window.clicks
    ]
