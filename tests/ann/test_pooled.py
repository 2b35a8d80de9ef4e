"""Searching only what moved, against exact search by a plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pytest

from engine.ann.exact import ExactIndex
from engine.ann.live import LiveIndex
from engine.ann.pooled import Found, PooledSearch
from engine.ann.pools import CandidatePools
from engine.ann.products import inner_products
from engine.errors import DimensionMismatch
from engine.item_rows import FlatRows
from tests.ann.vectors import make_vectors

ITEMS, DIMENSIONS, INTERESTS, WIDTH = 400, 16, 3, 30


class CountingIndex(ExactIndex):
    """Exact search that notes what was searched."""

    def __init__(self, vectors: np.ndarray, *, rows: np.ndarray | None = None) -> None:
        super().__init__(vectors, rows=rows)
        self._counts: list[int] = []  # shared by what `over` makes of this one

    @property
    def asked(self) -> int:
        return sum(self._counts)

    def candidates(self, interests: np.ndarray, k: int) -> np.ndarray:
        self._counts.append(len(interests))
        return super().candidates(interests, k)


@dataclass(frozen=True)
class Scored:
    """What was found, with the scores that make lists of it."""

    rows: np.ndarray
    each: np.ndarray
    searched: np.ndarray

    @classmethod
    def of(cls, found: Found, index: LiveIndex, vectors: np.ndarray, used: np.ndarray) -> Self:
        return cls(found.rows, inner_products(index.vectors, vectors, used, found.rows), found.searched)


class Searching:
    """A pooled search over exact search."""

    def __init__(self, *, bound: float = 0.3, users: int = 10, rebuild_at: int = 10**6) -> None:
        self.base = CountingIndex(make_vectors(ITEMS, DIMENSIONS, seed=5))
        self.index = LiveIndex(self.base, build=CountingIndex, rebuild_at=rebuild_at)
        pools = CandidatePools(users=users, interests=INTERESTS, dimensions=DIMENSIONS, width=WIDTH)
        self.search = PooledSearch(self.index, pools, bound=bound)

    def find(self, vectors: np.ndarray, *, mask: Any = None, users: Any = None, clicks: Sequence[int] = ()) -> Scored:
        """Find for users of whom the first one clicked the rows *clicks*."""
        used = np.ones(vectors.shape[:2], dtype=np.bool_) if mask is None else np.array(mask)
        clicked = FlatRows.of(np.array(clicks, dtype=np.int64), [len(clicks), *[0] * (len(vectors) - 1)])
        found = self.search.find(users or [f"u{at}" for at in range(len(vectors))], vectors, used, clicked)
        return Scored.of(found, self.index, vectors, used)


def interests(users: int, *, seed: int = 1) -> np.ndarray:
    return make_vectors(users * INTERESTS, DIMENSIONS, seed=seed).reshape(users, INTERESTS, DIMENSIONS)


def moved(vectors: np.ndarray, share: float) -> np.ndarray:
    """Return interests at a distance of *share* of their length."""
    steps = interests(len(vectors), seed=9)
    steps *= share * np.linalg.norm(vectors, axis=2, keepdims=True) / np.linalg.norm(steps, axis=2, keepdims=True)
    return (vectors + steps).astype(np.float32)


def best_of(found: Scored, user: int) -> dict[int, tuple[float, int]]:
    """Return score and interest of each item that was found for a user."""
    kept = found.rows[user] >= 0
    each = found.each[user][:, kept]
    pairs = zip(each.max(axis=0).tolist(), each.argmax(axis=0).tolist(), strict=True)
    return dict(zip(found.rows[user][kept].tolist(), pairs, strict=True))


def test_first_time_every_interest_in_use_searches() -> None:
    searching, vectors = Searching(), interests(2)
    mask = np.array([[True, False, False], [True, True, True]])

    found = searching.find(vectors, mask=mask)

    assert (found.searched == mask).all()
    for user in range(2):
        expected: set[int] = set()
        for slot in np.flatnonzero(mask[user]).tolist():
            expected |= set(np.argsort(-(searching.base.vectors @ vectors[user, slot]))[:WIDTH].tolist())
        assert set(best_of(found, user)) == expected


def test_an_item_has_the_score_of_the_interest_that_scores_it_best() -> None:
    searching, vectors = Searching(), interests(2)

    found = searching.find(vectors)

    for user in range(2):
        for row, (score, slot) in best_of(found, user).items():
            scores = vectors[user] @ searching.base.vectors[row]
            assert slot == int(scores.argmax())
            assert score == pytest.approx(float(scores.max()), rel=1e-5)


def test_interest_that_hardly_moved_scores_again_what_it_found() -> None:
    searching, vectors = Searching(bound=0.3), interests(3)
    before, asked = searching.find(vectors), searching.base.asked

    found = searching.find(moved(vectors, 0.2))

    assert searching.base.asked == asked
    assert not found.searched.any()
    assert [set(best_of(found, user)) for user in range(3)] == [set(best_of(before, user)) for user in range(3)]
    assert best_of(found, 0) != best_of(before, 0)


def test_interest_that_moved_by_the_bound_searches_and_the_others_do_not() -> None:
    searching, vectors = Searching(bound=0.3), interests(1)
    searching.find(vectors)
    now = vectors.copy()
    now[:, 1] = moved(vectors, 0.4)[:, 1]

    found = searching.find(now)

    assert found.searched.tolist() == [[False, True, False]]


def test_movement_counts_from_the_last_search_and_not_from_the_last_call() -> None:
    searching, vectors = Searching(bound=0.3), interests(1)
    searching.find(vectors)

    steps = [bool(searching.find(moved(vectors, share)).searched.any()) for share in (0.1, 0.2, 0.29, 0.31)]

    assert steps == [False, False, False, True]


def test_of_interests_that_moved_side_by_side_one_searches_for_both() -> None:
    searching, vectors = Searching(bound=0.3), interests(1)
    searching.find(interests(1, seed=8))
    vectors[0, 2] = moved(vectors[:1, :1], 0.2)[0, 0]

    found = searching.find(vectors)

    assert found.searched.tolist() == [[True, True, False]]


def cuts_above_what_was_found(searching: Searching, vectors: np.ndarray, *, lift: float) -> np.ndarray:
    """Return cuts that an item nothing has found reaches if *vectors* lift it by this share of what they move."""
    least = np.sort(vectors @ searching.base.vectors.T, axis=2)[:, :, -WIDTH]
    length = np.sqrt(np.square(searching.base.vectors).sum(axis=1).mean())
    cuts: np.ndarray = least + lift * np.linalg.norm(moved(vectors, 0.4) - vectors, axis=2) * length
    return cuts.astype(np.float32)


@pytest.mark.parametrize(("lift", "searches"), [(0.4, True), (0.6, False)])  # a bound of .25 fears .44
def test_interest_that_moved_searches_only_where_the_movement_could_lift_an_item_into_the_list(
    lift: float, searches: bool
) -> None:
    searching, vectors = Searching(bound=0.25), interests(2)
    users = ["u0", "u1"]
    searching.find(vectors)
    searching.search.note_cuts(users, cuts_above_what_was_found(searching, vectors, lift=lift))

    found = searching.find(moved(vectors, 0.4))

    assert (found.searched == searches).all()


def test_interest_in_anothers_place_takes_its_pool_along_before_that_one_searches() -> None:
    searching, vectors = Searching(), interests(1)
    searching.find(vectors)
    now = vectors[:, [0, 0, 2]]
    now[:, 0] = interests(1, seed=8)[:, 0]

    found = searching.find(now)
    again = searching.find(now)

    assert found.searched.tolist() == [[True, False, False]]
    assert not again.searched.any()
    nearest = np.argsort(-(searching.base.vectors @ vectors[0, 0]))[:WIDTH]
    assert set(nearest.tolist()) <= set(best_of(found, 0)) & set(best_of(again, 0))


def test_who_comes_back_after_others_took_the_room_searches() -> None:
    searching, vectors = Searching(users=1), interests(1)
    searching.find(vectors, users=["before"])
    searching.search.note_cuts(["before"], np.full((1, INTERESTS), 1e9, dtype=np.float32))
    searching.find(vectors, users=["after"])

    found = searching.find(vectors, users=["before"])

    assert found.searched.all()


def test_interests_that_change_places_need_no_search() -> None:
    searching, vectors = Searching(), interests(2)
    searching.find(vectors)

    found = searching.find(vectors[:, ::-1].copy())

    assert not found.searched.any()


def test_with_a_bound_of_0_everything_searches_and_nothing_is_remembered() -> None:
    searching, vectors = Searching(bound=0.0), interests(1)
    searching.find(interests(1, seed=8))

    found = searching.find(vectors, mask=[[True, False, False]])

    assert found.searched.tolist() == [[True, False, False]]
    assert set(best_of(found, 0)) == set(np.argsort(-(searching.base.vectors @ vectors[0, 0]))[:WIDTH].tolist())


def test_removed_item_is_found_no_more_and_a_changed_one_by_its_new_vector() -> None:
    searching, vectors = Searching(), interests(1)
    found = best_of(searching.find(vectors), 0)
    removed, changed = sorted(found)[:2]
    searching.index.remove([removed])
    searching.index.put([changed], -searching.base.vectors[[changed]])

    found = best_of(searching.find(vectors), 0)

    assert removed not in found
    assert found[changed][0] == pytest.approx(float((vectors[0] @ -searching.base.vectors[changed]).max()), rel=1e-5)


def test_new_item_is_found_by_interests_that_do_not_search() -> None:
    searching, vectors = Searching(), interests(2)
    searching.find(vectors)
    searching.index.put([ITEMS], vectors[1, 2][None])

    found = searching.find(vectors)

    assert not found.searched.any()
    score, slot = best_of(found, 1)[ITEMS]
    assert slot == 2
    assert score == max(value for value, _ in best_of(found, 1).values())


def test_after_a_new_base_everybody_searches_again() -> None:
    searching, vectors = Searching(rebuild_at=1), interests(1)
    searching.find(vectors)
    searching.index.put([ITEMS], vectors[0, :1])
    searching.index.catch_up()
    searching.index.wait_for_build()
    searching.index.catch_up()

    found = searching.find(vectors)

    assert found.searched.all()
    assert ITEMS in best_of(found, 0)


def test_user_who_was_away_longest_gives_way_and_searches_again() -> None:
    searching, vectors = Searching(users=2), interests(1)
    for user in ("a", "b", "a", "c"):
        searching.find(vectors, users=[user])

    assert len(searching.search) == 2
    assert not searching.find(vectors, users=["a"]).searched.any()
    assert searching.find(vectors, users=["b"]).searched.all()


def test_forgotten_user_leaves_nothing() -> None:
    searching, vectors = Searching(), interests(1)
    searching.find(vectors, users=["a"])

    searching.search.forget("a")
    searching.search.forget("nobody")

    assert len(searching.search) == 0
    found = searching.find(interests(1, seed=8), users=["a"], mask=[[False, False, False]])
    assert best_of(found, 0) == {}


def test_the_place_of_a_forgotten_user_is_the_next_ones() -> None:
    searching, vectors = Searching(users=2), interests(1)
    for user in ("a", "b"):
        searching.find(vectors, users=[user])
    searching.search.forget("a")

    searching.find(vectors, users=["c"])

    assert not searching.find(vectors, users=["b"]).searched.any()
    assert not searching.find(vectors, users=["c"]).searched.any()
    assert searching.find(vectors, users=["a"]).searched.all()


def test_what_is_found_does_not_depend_on_who_else_is_asked_about() -> None:
    vectors = interests(5)
    together = Searching().find(vectors)

    for user in range(5):
        alone = Searching().find(vectors[user : user + 1], users=[f"u{user}"])
        assert best_of(alone, 0) == best_of(together, user)


def test_interest_that_is_not_finite_finds_nothing_and_spoils_nothing() -> None:
    searching, vectors = Searching(), interests(2)
    sound = best_of(searching.find(vectors), 0)
    broken = vectors.copy()
    broken[1, 0, 3] = np.nan

    found = searching.find(broken)

    assert best_of(found, 0) == sound
    assert np.isfinite(found.each[1][1:, found.rows[1] >= 0]).all()
    assert not found.searched.any()


def test_interests_of_another_dimension_are_refused() -> None:
    with pytest.raises(DimensionMismatch):
        Searching().find(np.zeros((1, INTERESTS, DIMENSIONS + 1), dtype=np.float32))


def test_equal_vectors_have_equal_scores_wherever_they_stand() -> None:
    items = np.repeat(make_vectors(1, DIMENSIONS, seed=4), ITEMS, axis=0)
    index = LiveIndex(ExactIndex(items), build=ExactIndex, rebuild_at=10**6)
    search = PooledSearch(
        index, CandidatePools(users=4, interests=INTERESTS, dimensions=DIMENSIONS, width=33), bound=0.3
    )

    vectors, used = interests(2), np.ones((2, INTERESTS), dtype=np.bool_)
    found = Scored.of(
        search.find(["a", "b"], vectors, used, FlatRows.of(np.zeros(0, dtype=np.int64), [0, 0])), index, vectors, used
    )

    assert [len({score for score, _ in best_of(found, user).values()}) for user in range(2)] == [1, 1]
