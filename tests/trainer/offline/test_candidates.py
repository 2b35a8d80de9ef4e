"""Candidates in full and in half precision, against every item's score."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ann.products import inner_products
from engine.item_rows import FlatRows
from trainer.offline.candidates import ExactCandidates

ITEMS, USERS, INTERESTS, TOP = 3_000, 30, 3, 20


def vectors_like(shape: tuple[int, ...], *, spread: float, seed: int) -> np.ndarray:
    """Return vectors that differ the more in length the greater the *spread*, all near one direction."""
    random = np.random.default_rng(seed)
    drawn = 0.3 + random.normal(size=shape)
    lengths = np.exp(spread * random.normal(size=(*shape[:-1], 1)))
    return (drawn * lengths).astype(np.float32)


def histories_of(users: int, most: int) -> FlatRows:
    random = np.random.default_rng(5)
    counts = random.integers(0, most, size=users)
    return FlatRows.of(random.integers(1, ITEMS + 1, size=counts.sum()), counts.tolist())


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("dimensions", [3, 64])
@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_candidates_are_the_history_and_the_best_beside_it(
    is_half: bool, dimensions: int, spread: float, sign: float
) -> None:
    items = vectors_like((ITEMS + 1, dimensions), spread=spread, seed=1)
    items[::7] = 0.0
    items[1:4] = items[11]  # equal scores
    interests = sign * vectors_like((USERS, INTERESTS, dimensions), spread=0.0, seed=2)
    used = np.arange(INTERESTS) < np.random.default_rng(3).integers(0, INTERESTS + 1, size=(USERS, 1))
    has_vector, histories = items.any(axis=1), histories_of(USERS, 200)

    found = ExactCandidates(items, has_vector, is_half=is_half).find(interests, used, histories, top=TOP)

    every = inner_products(items, interests, used, np.tile(np.arange(ITEMS + 1), (USERS, 1)))
    for user in range(USERS):
        history = set(histories.part(user, user + 1).rows.tolist())
        expected = {row for row in history if has_vector[row]}
        others = [row for row in range(ITEMS + 1) if has_vector[row] and row not in history]
        for interest in np.flatnonzero(used[user]):
            scores = every[user, interest, others]
            expected |= {others[place] for place in np.flatnonzero(scores >= np.sort(scores)[-TOP])}
        kept = found.rows[user] >= 0
        rows = found.rows[user][kept]
        assert sorted(rows.tolist()) == sorted(expected)
        assert found.each[user][:, kept].tolist() == every[user][:, rows].tolist()
        assert (found.each[user][:, ~kept] == -np.inf).all()


@pytest.mark.parametrize("is_half", [False, True])
def test_of_fewer_items_than_a_list_has_all_are_candidates(is_half: bool) -> None:
    items = vectors_like((9, 4), spread=0.0, seed=1)
    search = ExactCandidates(items, np.arange(9) > 0, is_half=is_half)
    interests = vectors_like((2, 1, 4), spread=0.0, seed=2)
    used = np.ones((2, 1), dtype=np.bool_)

    found = search.find(interests, used, FlatRows.of(np.array([3, 3, 8]), [0, 3]), top=50)
    nobody = search.find(interests[:0], used[:0], FlatRows.of(np.zeros(0, dtype=np.int64), []), top=50)

    assert [sorted(rows[rows >= 0].tolist()) for rows in found.rows] == [list(range(1, 9))] * 2
    assert nobody.rows.shape[0] == 0


def test_without_any_vector_nothing_is_found() -> None:
    search = ExactCandidates(np.zeros((5, 4), dtype=np.float32), np.zeros(5, dtype=np.bool_))

    found = search.find(
        np.ones((2, 1, 4), dtype=np.float32), np.ones((2, 1), dtype=np.bool_), FlatRows.of(np.array([2]), [1, 0]), top=3
    )

    assert (found.rows == -1).all()
