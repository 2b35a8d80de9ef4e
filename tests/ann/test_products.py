"""Inner products, against a sum in float64, and against themselves beside something else."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ann.products import inner_products
from tests.ann.vectors import make_vectors

ITEMS, DIMENSIONS, INTERESTS = 300, 48, 3


def some(users: int, found: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return items, interests, which are in use, and candidates."""
    items = make_vectors(ITEMS, DIMENSIONS, seed=1)
    vectors = make_vectors(users * INTERESTS, DIMENSIONS, seed=2).reshape(users, INTERESTS, DIMENSIONS)
    rows = np.random.default_rng(3).integers(ITEMS, size=(users, found))
    return items, vectors, np.ones((users, INTERESTS), dtype=np.bool_), rows


def test_products_are_those_of_each_interest_with_each_candidate() -> None:
    items, vectors, used, rows = some(4, 25)

    products = inner_products(items, vectors, used, rows)

    expected = np.einsum("umd,ukd->ukm", items[rows].astype(np.float64), vectors.astype(np.float64))
    np.testing.assert_allclose(products, expected, rtol=1e-5, atol=1e-5)


def test_a_product_does_not_depend_on_what_stands_beside_it() -> None:
    items, vectors, used, rows = some(5, 37)
    together = inner_products(items, vectors, used, rows)
    items.flags.writeable = False

    for user, interest, place in [(0, 0, 0), (2, 1, 17), (4, 2, 36)]:
        one = vectors[user : user + 1, interest : interest + 1]
        alone = inner_products(items, one, used[:1, :1], rows[user : user + 1, place : place + 1])
        assert alone.item() == together[user, interest, place]
    strided = inner_products(np.asfortranarray(items), vectors[:, ::-1], used, np.asfortranarray(rows))
    assert (strided[:, ::-1] == together).all()


def test_equal_items_have_equal_products_wherever_they_stand() -> None:
    _items, vectors, used, rows = some(2, 101)
    alike = np.repeat(make_vectors(1, DIMENSIONS, seed=4), ITEMS, axis=0)

    products = inner_products(alike, vectors, used, rows)

    assert (products == products[:, :, :1]).all()


def test_no_item_and_an_interest_not_in_use_score_minus_infinity() -> None:
    items, vectors, used, rows = some(2, 5)
    rows[0, 2], used[1, 0] = -1, False

    products = inner_products(items, vectors, used, rows)

    assert np.isneginf(products[0, :, 2]).all()
    assert np.isneginf(products[1, 0]).all()
    assert np.isfinite(products).sum() == products.size - INTERESTS - rows.shape[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_a_number_scores_minus_infinity(value: float) -> None:
    items, vectors, used, rows = some(1, 20)
    vectors[0, 1] = value

    products = inner_products(items, vectors, used, rows)

    assert not np.isnan(products).any()
    assert np.isfinite(products[0, [0, 2]]).all()


@pytest.mark.parametrize(("users", "found"), [(0, 3), (2, 0)])
def test_of_nobody_and_of_nothing_there_are_no_products(users: int, found: int) -> None:
    assert inner_products(*some(users, found)).shape == (users, INTERESTS, found)
