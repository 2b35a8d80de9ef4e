"""Whether an interest must search, in two dimensions, where it can be drawn.

A pool was searched with (1, 0) and reaches down to a score of .5; the interest is now at (1, .8), which lifts an item x
by .8 x[1]. At a bound of .25 a cosine of .44 is feared, so a typical item, of length 1, by .36.
"""

from __future__ import annotations

import numpy as np
import pytest

from engine.ann.reach import Pools, Verdict, judge, least_cosine, typical_length
from engine.item_rows import FlatRows

BEFORE, NOW = (1.0, 0.0), (1.0, 0.8)
NOTHING = FlatRows.of(np.zeros(0, dtype=np.int64), [0])


def judged(
    vectors: list[tuple[float, float]],
    pools: list[tuple[float, float]],
    *,
    cut: float = -np.inf,
    bound: float = 0.25,
    clicked: tuple[float, float] | None = None,
) -> Verdict:
    """Return the verdict on one user, all of whose pools reach down to .5."""
    held = np.array([pools], dtype=np.float32)
    return judge(
        np.array([vectors], dtype=np.float32),
        np.ones((1, len(vectors)), dtype=np.bool_),
        Pools(held, np.full(held.shape[:2], 0.5, dtype=np.float32), np.full(held.shape[:2], cut, dtype=np.float32)),
        bound=bound,
        items=np.array([clicked or (0.0, 0.0)], dtype=np.float32),
        item_length=1.0,
        clicked=NOTHING if clicked is None else FlatRows.of(np.zeros(1, dtype=np.int64), [1]),
    )


@pytest.mark.parametrize(("cut", "searches"), [(-np.inf, True), (0.5, True), (0.85, True), (0.86, False), (9.0, False)])
def test_interest_searches_where_its_movement_could_lift_an_item_from_below_the_pool_into_the_list(
    cut: float, searches: bool
) -> None:
    assert judged([NOW], [BEFORE], cut=cut).searches.tolist() == [[searches]]


@pytest.mark.parametrize(
    ("clicked", "searches"),
    [
        ((0.2, 1.0), True),  # scored .2 and scores 1
        ((0.6, 1.0), False),  # scored .6, so the pool has it, and what lies around it
        ((0.0, 0.9), False),  # scores .72, too little for the list
    ],
)
def test_clicked_item_that_rose_from_below_the_pool_into_the_list_stands_for_those_around_it(
    clicked: tuple[float, float], searches: bool
) -> None:
    assert judged([NOW], [BEFORE], cut=0.9, clicked=clicked).searches.tolist() == [[searches]]


def test_interest_within_the_bound_searches_for_no_cut_and_no_click() -> None:
    assert not judged([(1.0, 0.2)], [BEFORE], clicked=(0.2, 9.0)).searches.any()


def test_user_without_pools_searches() -> None:
    assert judged([NOW], [(0.0, 0.0)], cut=9.0).searches.all()


def test_of_two_that_must_search_side_by_side_the_first_does() -> None:
    verdict = judged([(0.0, 1.0), (0.1, 1.0), (-1.0, 0.0)], [BEFORE, (0.0, 0.0), (0.0, 0.0)])

    assert verdict.searches.tolist() == [[True, False, True]]


def test_interest_relies_on_its_own_pool_before_anothers_and_on_the_nearest_of_those() -> None:
    verdict = judged([(1.0, 0.1), (1.0, 0.19), (0.0, 1.0)], [(1.0, 0.0), (-1.0, 0.0), (1.0, 0.2)])

    assert verdict.searches.tolist() == [[False, False, True]]
    assert verdict.relies_on.tolist() == [[0, 2, 2]]


def test_the_lower_the_bound_the_more_is_feared() -> None:
    assert [least_cosine(bound) for bound in (0.0, 0.2, 1.0)] == [1.0, 0.5, pytest.approx(1 / 6)]
    assert judged([NOW], [BEFORE], cut=1.0, bound=0.25).searches.tolist() == [[False]]
    assert judged([NOW], [BEFORE], cut=1.0, bound=0.05).searches.tolist() == [[True]]


def test_typical_length_of_items_is_that_of_their_mean_square() -> None:
    assert typical_length(np.array([[3.0, 4.0], [0.0, 1.0]], dtype=np.float32)) == pytest.approx(13**0.5)
    assert typical_length(np.zeros((0, 2), dtype=np.float32)) == 0.0
