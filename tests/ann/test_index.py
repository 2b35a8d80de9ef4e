"""The contract of an item index, asked of both backends."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ann import ItemIndex
from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex
from engine.ann.index import Vectors
from engine.errors import DimensionMismatch, ItemIndexError

BACKENDS = {"exact": ExactIndex, "hnsw": HnswIndex.build}


def draw(count: int, dimensions: int = 8, *, seed: int = 3) -> Vectors:
    return np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)


def brute_force(vectors: Vectors, query: Vectors, k: int) -> list[int]:
    scores = [(-float(np.dot(vector.astype(np.float64), query)), row) for row, vector in enumerate(vectors)]
    return [row for _score, row in sorted(scores)[:k]]


@pytest.fixture(params=sorted(BACKENDS))
def build(request: pytest.FixtureRequest):
    return BACKENDS[request.param]


def test_answers_are_the_nearest_items_best_first(build):
    vectors, interests = draw(200), draw(5, seed=4)

    rows, scores = build(vectors).search(interests, 10)

    assert [list(found) for found in rows] == [brute_force(vectors, query, 10) for query in interests]
    assert (np.diff(scores, axis=1) <= 0).all()


def test_score_is_the_inner_product_with_the_version_s_vector(build):
    vectors, interests = draw(50), draw(3, seed=4)

    rows, scores = build(vectors).search(interests, 7)

    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", vectors[rows], interests), rtol=1e-6)


def test_types_and_shapes_are_those_of_the_contract(build):
    rows, scores = build(draw(50)).search(draw(3, seed=4), 7)

    assert (rows.dtype, rows.shape) == (np.int64, (3, 7))
    assert (scores.dtype, scores.shape) == (np.float32, (3, 7))


def test_equal_scores_come_by_ascending_row(build):
    vectors = np.repeat(draw(1), 6, axis=0)

    rows, _ = build(vectors).search(vectors[:1], 6)

    assert list(rows[0]) == [0, 1, 2, 3, 4, 5]


def test_fewer_items_than_asked_leave_the_rest_empty(build):
    rows, scores = build(draw(3)).search(draw(2, seed=4), 5)

    assert (rows[:, :3] >= 0).all()
    assert (rows[:, 3:] == -1).all()
    assert np.isneginf(scores[:, 3:]).all()


def test_empty_index_finds_nothing(build):
    rows, scores = build(np.empty((0, 8), dtype=np.float32)).search(draw(2), 4)

    assert (rows == -1).all()
    assert np.isneginf(scores).all()


def test_no_interests_are_an_ordinary_question(build):
    rows, _ = build(draw(20)).search(np.empty((0, 8), dtype=np.float32), 4)

    assert rows.shape == (0, 4)


@pytest.mark.parametrize("shape", [(2, 7), (2, 16), (8,)])
def test_interests_of_another_dimension_are_refused(build, shape: tuple[int, ...]):
    index: ItemIndex = build(draw(20))

    with pytest.raises(DimensionMismatch, match="8"):
        index.search(np.ones(shape, dtype=np.float32), 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_interest_that_is_not_finite_finds_nothing_and_its_neighbors_do(build, value: float):
    interests = draw(3, seed=4)
    interests[1, 2] = value
    index = build(draw(50))

    rows, scores = index.search(interests, 5)

    assert (rows[1] == -1).all()
    assert np.isneginf(scores[1]).all()
    np.testing.assert_array_equal(rows[[0, 2]], index.search(interests[[0, 2]], 5)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_item_vectors_must_be_finite(build, value: float):
    vectors = draw(20)
    vectors[7, 3] = value

    with pytest.raises(ItemIndexError, match="row 7"):
        build(vectors)


@pytest.mark.parametrize("shape", [(20,), (2, 3, 4), (5, 0)])
def test_item_vectors_must_have_two_dimensions(build, shape: tuple[int, ...]):
    with pytest.raises(ItemIndexError, match="shape"):
        build(np.zeros(shape, dtype=np.float32))


def test_caller_s_array_may_change_without_changing_the_answers(build):
    vectors, interests = draw(50), draw(3, seed=4)
    index = build(vectors.copy())
    before = index.search(interests, 5)

    vectors += 1.0

    np.testing.assert_array_equal(index.search(interests, 5)[1], before[1])


def test_a_query_s_answer_does_not_depend_on_its_company(build):
    index, interests = build(draw(300)), draw(400, seed=4)

    together, scores = index.search(interests, 20)

    alone = [index.search(interests[at : at + 1], 20) for at in range(0, 400, 57)]
    np.testing.assert_array_equal(together[::57], np.concatenate([rows for rows, _ in alone]))
    np.testing.assert_array_equal(scores[::57], np.concatenate([found for _, found in alone]))
