"""The merge, against its rules followed one by one in plain loops."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.item_rows import ItemRows
from engine.merge import NO_CATEGORY, ListLimits, merge
from engine.recall import RankedItem

Candidate = tuple[int, float]


@dataclass(frozen=True)
class Search:
    """What each interest found, and what is left out; a case for the merge."""

    item_ids: list[str]
    found: list[list[Candidate]]
    unavailable: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    limits: ListLimits = field(default=ListLimits(size=6, floor=0.2, cap=0.7))
    claims: list[float] | None = None
    categories: list[int] | None = None


def merged(search: Search) -> list[RankedItem]:
    width = max((len(candidates) for candidates in search.found), default=0) + 1  # at least one column of padding
    rows = np.full((len(search.found), width), -1, dtype=np.int64)
    scores = np.full((len(search.found), width), -np.inf, dtype=np.float32)
    for slot, candidates in enumerate(search.found):
        for place, (row, score) in enumerate(candidates):
            rows[slot, place], scores[slot, place] = row, score
    unavailable = np.zeros(len(search.item_ids), dtype=np.bool_)
    unavailable[list(search.unavailable)] = True
    return merge(
        rows,
        scores,
        range(len(search.found)),
        items=ItemRows(search.item_ids),
        unavailable=unavailable,
        seen=search.seen,
        limits=search.limits,
        claims=search.claims,
        categories=None if search.categories is None else np.array(search.categories, dtype=np.int32),
    )


def order(search: Search, row: int, score: float) -> tuple[float, bytes]:
    return -score, search.item_ids[row].encode()


def merged_plainly(search: Search) -> list[RankedItem]:
    """The rules at the top of engine/merge.py, one after the other, in plain loops."""
    best: dict[int, tuple[float, int]] = {}
    for slot, candidates in enumerate(search.found):
        for row, score in candidates:
            if row in search.unavailable or row in search.seen or not math.isfinite(score):
                continue
            if row not in best or score > best[row][0]:
                best[row] = (score, slot)
    left = sorted(best, key=lambda row: order(search, row, best[row][0]))
    size, slots = search.limits.size, len(search.found)
    limits, claims = search.limits, search.claims or [1 / slots] * slots
    together = min(limits.floor * slots, 1.0)
    floors = [max(math.floor(together * claim * size + 1e-6), limits.floor > 0) for claim in claims]
    caps = [math.ceil((limits.cap + (1 - limits.cap) * claim) * size - 1e-6) for claim in claims]
    counting: list[int] = []
    for row in left:
        category = NO_CATEGORY if search.categories is None else search.categories[row]
        before = sum(search.categories is not None and search.categories[other] == category for other in counting)
        if category == NO_CATEGORY or before < limits.category_cap_count:
            counting.append(row)
    favorites: set[int] = set()
    for candidates, floor in zip(search.found, floors, strict=True):
        own = [(row, score) for row, score in candidates if row in counting and math.isfinite(score)]
        own = sorted(own, key=lambda pair: order(search, *pair))
        favorites |= {row for row, _score in own[:floor]}
    chosen = [row for row in counting if row in favorites][:size]  # one item each may be more than a short list holds
    of_slot = [[row for row in counting if best[row][1] == slot] for slot in range(slots)]
    within = {row for own, cap in zip(of_slot, caps, strict=True) for row in own[:cap]}
    for turn in ([row for row in counting if row in within], left):
        chosen += [row for row in turn if row not in chosen][: size - len(chosen)]
    chosen.sort(key=lambda row: order(search, row, best[row][0]))
    return [RankedItem(search.item_ids[row], best[row][0], best[row][1]) for row in chosen]


@st.composite
def searches(draw: st.DrawFn) -> Search:
    ids = draw(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=30, unique=True))
    every_row = st.integers(0, len(ids) - 1)
    # Few distinct scores make many ties; halves are exact in float32.
    score = st.integers(-6, 6).map(lambda halves: halves / 2) | st.sampled_from([-0.0, math.nan, math.inf, -math.inf])
    found = draw(
        st.lists(
            st.lists(st.tuples(every_row, score), max_size=30, unique_by=lambda candidate: candidate[0]),
            min_size=1,
            max_size=5,
        )
    )
    parts = draw(st.lists(st.integers(0, 5), min_size=len(found), max_size=len(found)).filter(any))
    return Search(
        item_ids=ids,
        found=found,
        claims=draw(st.sampled_from([None, [part / sum(parts) for part in parts]])),
        unavailable=draw(st.sets(every_row, max_size=5)),
        seen=draw(st.sets(every_row, max_size=5)),
        limits=ListLimits(
            size=draw(st.integers(1, 20)),
            floor=draw(st.floats(0.0, 0.5)),
            cap=draw(st.floats(0.1, 1.0)),
            category_cap=draw(st.sampled_from([1.0, 0.5, 0.2, 0.01])),
        ),
        categories=draw(st.none() | st.lists(st.integers(NO_CATEGORY, 3), min_size=len(ids), max_size=len(ids))),
    )


@given(searches())
def test_merged_list_equals_the_rules_followed_one_by_one(search: Search) -> None:
    assert merged(search) == merged_plainly(search)


@given(searches())
def test_list_is_ordered_by_score_then_item_id_bytewise(search: Search) -> None:
    ranked = merged(search)

    assert ranked == sorted(ranked, key=lambda item: (-item.score, item.item_id.encode()))


@given(searches())
def test_list_holds_nothing_twice_nothing_seen_and_nothing_unavailable(search: Search) -> None:
    item_ids = [item.item_id for item in merged(search)]

    assert len(set(item_ids)) == len(item_ids)
    assert not {search.item_ids[row] for row in search.seen | search.unavailable} & set(item_ids)


@given(searches())
def test_list_is_as_long_as_its_candidates_allow(search: Search) -> None:
    usable = {row for found in search.found for row, score in found if math.isfinite(score)}
    usable -= search.seen | search.unavailable

    assert len(merged(search)) == min(search.limits.size, len(usable))


@given(searches())
@settings(max_examples=30)
def test_same_candidates_in_another_order_give_the_same_list(search: Search) -> None:
    turned = Search(search.item_ids, [list(reversed(found)) for found in search.found], search.unavailable, search.seen)
    straight = Search(search.item_ids, search.found, search.unavailable, search.seen)

    assert merged(turned) == merged(straight)


def loud_and_quiet(loud: int, quiet: int, limits: ListLimits, *, claims: list[float] | None = None) -> list[int | None]:
    """Merge an interest with high scores and one with low ones; return the interest of each item of the list."""
    ids = [f"i{row:03d}" for row in range(loud + quiet)]
    found = [[(row, 10.0 - row / 100) for row in range(loud)], [(loud + row, 1.0) for row in range(quiet)]]
    return [item.interest for item in merged(Search(ids, found, limits=limits, claims=claims))]


def test_loud_interest_leaves_a_quiet_one_its_floor() -> None:
    interests = loud_and_quiet(50, 50, ListLimits(size=20, floor=0.1, cap=1.0))

    assert interests.count(1) == 2


@pytest.mark.parametrize(("share", "items"), [(0.5, 4), (0.25, 2), (0.75, 6), (0.1, 1), (0.001, 1), (0.0, 1)])
def test_the_floor_follows_the_share_of_the_window_and_is_never_nothing(share: float, items: int) -> None:
    limits = ListLimits(size=40, floor=0.1, cap=1.0)

    assert loud_and_quiet(50, 50, limits, claims=[1 - share, share]).count(1) == items


def test_no_floor_is_none_whatever_the_share() -> None:
    interests = loud_and_quiet(50, 50, ListLimits(size=20, floor=0.0, cap=1.0), claims=[0.1, 0.9])

    assert interests.count(1) == 0


def test_interest_stays_within_its_cap_while_another_can_fill_the_list() -> None:
    interests = loud_and_quiet(50, 50, ListLimits(size=20, floor=0.1, cap=0.7), claims=[0.0, 1.0])

    assert interests.count(0) == 14


@pytest.mark.parametrize(("share", "items"), [(0.5, 17), (0.75, 19), (0.9, 19)])
def test_the_cap_leaves_an_interest_its_share_of_the_rest(share: float, items: int) -> None:
    interests = loud_and_quiet(50, 50, ListLimits(size=20, floor=0.05, cap=0.7), claims=[share, 1 - share])

    assert interests.count(0) == items


def test_cap_yields_when_the_other_interest_has_nothing_left() -> None:
    interests = loud_and_quiet(50, 3, ListLimits(size=20, floor=0.1, cap=0.7))

    assert (interests.count(0), interests.count(1)) == (17, 3)


def test_floors_of_many_interests_shrink_until_they_fit() -> None:
    limits = ListLimits(size=10, floor=0.5, cap=0.7)

    assert limits.floor_counts(np.array([[0.4, 0.3, 0.2, 0.1]]), np.ones((1, 4), dtype=np.bool_)).sum() <= 10


def test_a_favorite_of_one_interest_that_another_scores_better_is_in_and_belongs_to_that_one() -> None:
    loud = [(row, 10.0 - row) for row in range(8)]
    search = Search(list("abcdefgh"), [loud, [(7, 2.5)]], limits=ListLimits(size=3, floor=0.1, cap=1.0))

    assert merged(search) == [RankedItem("a", 10.0, 0), RankedItem("b", 9.0, 0), RankedItem("h", 3.0, 0)]


def test_of_more_interests_than_a_list_has_places_the_best_are_heard() -> None:
    search = Search(
        ["a", "b", "c"], [[(0, 1.0)], [(1, 3.0)], [(2, 2.0)]], limits=ListLimits(size=2, floor=0.1, cap=0.7)
    )

    assert [item.item_id for item in merged(search)] == ["b", "c"]


def test_item_found_by_two_interests_stays_under_the_one_that_scores_it_best() -> None:
    search = Search(["a", "b"], [[(0, 1.0), (1, 0.5)], [(0, 2.0)]])

    assert merged(search) == [RankedItem("a", 2.0, 1), RankedItem("b", 0.5, 0)]


def test_list_keeps_the_interest_numbers_it_was_given() -> None:
    rows, scores = np.array([[0], [1]]), np.array([[2.0], [1.0]], dtype=np.float32)

    ranked = merge(
        rows,
        scores,
        [1, 3],
        items=ItemRows(["a", "b"]),
        unavailable=np.zeros(2, dtype=np.bool_),
        seen=(),
        limits=ListLimits(size=2, floor=0.0, cap=1.0),
    )

    assert [item.interest for item in ranked] == [1, 3]


@given(
    scores=st.lists(
        st.floats(-(2.0**29), 2.0**29, width=32).filter(lambda score: score == 0.0 or abs(score) > 1e-12),
        min_size=1,
        max_size=8,
    )
)
def test_scores_have_nine_digits_and_are_still_told_apart(scores: list[float]) -> None:
    found = np.array([scores], dtype=np.float32)
    items = ItemRows([f"i{row}" for row in range(len(scores))])

    ranked = merge(
        np.arange(len(scores))[None],
        found,
        [0],
        items=items,
        unavailable=np.zeros(len(scores), dtype=np.bool_),
        seen=(),
        limits=ListLimits(size=len(scores), floor=0.0, cap=1.0),
    )

    assert {item.item_id: np.float32(item.score) for item in ranked} == dict(zip(items.item_ids, found[0], strict=True))
    assert all(item.score == float(f"{item.score:.8e}") for item in ranked)
