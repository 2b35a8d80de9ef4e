from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.ann.delta import Delta

ROWS = st.lists(st.integers(0, 300), min_size=1, max_size=120, unique=True)
STEPS = st.lists(st.tuples(st.sampled_from(["put", "put", "remove", "keep"]), ROWS), max_size=12)


@given(STEPS)
def test_it_holds_what_a_dictionary_would(steps: list[tuple[str, list[int]]]) -> None:
    delta, expected = Delta(2), dict[int, list[float]]()
    delta.reserve(301)
    for number, (step, rows) in enumerate(steps):
        if step == "put":
            vectors = np.array([[number, row] for row in rows], dtype=np.float32)
            delta.put(np.array(rows), vectors)
            expected |= dict(zip(rows, vectors.tolist(), strict=True))
        elif step == "remove":
            delta.remove(rows)
            expected = {row: vector for row, vector in expected.items() if row not in rows}
        else:
            delta.keep(set(rows))
            expected = {row: vector for row, vector in expected.items() if row in rows}

        assert len(delta) == len(expected)
        assert dict(zip(delta.rows.tolist(), delta.vectors.tolist(), strict=True)) == expected
        assert delta.holds(np.arange(301)).nonzero()[0].tolist() == sorted(expected)


def test_the_nearest_are_those_of_the_greatest_inner_products() -> None:
    random = np.random.default_rng(1)
    vectors, interests = random.normal(size=(9_000, 8)).astype(np.float32), random.normal(size=(5, 8))
    delta = Delta(8)
    delta.reserve(9_000)
    delta.put(np.arange(9_000), vectors)

    places = delta.nearest(interests.astype(np.float32), 20)

    expected = np.argsort(-(interests @ vectors.T), axis=1)[:, :20]
    assert np.sort(delta.rows[places]).tolist() == np.sort(expected).tolist()


def test_fewer_than_asked_for_are_all_of_them() -> None:
    delta = Delta(2)
    delta.reserve(5)
    assert delta.nearest(np.ones((2, 2), np.float32), 3).shape == (2, 0)

    delta.put(np.array([4, 1]), np.eye(2, dtype=np.float32))

    assert delta.rows[delta.nearest(np.ones((2, 2), np.float32), 3)].tolist() == [[4, 1], [4, 1]]
