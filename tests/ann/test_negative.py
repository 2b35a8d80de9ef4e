from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ann.negative import push_down

ITEMS = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 2, 0], [0, 0, 3], [-1, 0, 0], [0, 0, 0]], dtype=np.float32)
ROWS = np.arange(len(ITEMS))
SCORES = np.array([4, 4, 4, 4, 4, 4], dtype=np.float32)


def pushed(*, negative: list[int], clicked: list[int] = [], push: float = 1.0) -> list[float]:  # noqa: B006
    left = push_down(SCORES, ROWS, ITEMS, negative=negative, clicked=clicked, push=push)
    assert left.dtype == np.float32
    return [round(score, 3) for score in left.tolist()]


def test_neighbors_of_what_was_turned_down_lose_and_others_keep_their_score() -> None:
    alike = 0.9 / math.hypot(0.9, 0.1)

    assert pushed(negative=[0]) == [0.0, round(4 - 4 * alike, 3), 4.0, 4.0, 4.0, 4.0]


def test_an_item_as_near_to_a_click_keeps_its_score() -> None:
    assert pushed(negative=[0], clicked=[1])[1] == 4.0
    assert pushed(negative=[1], clicked=[1]) == SCORES.tolist()


def test_the_nearest_of_several_counts_and_they_do_not_add_up() -> None:
    assert pushed(negative=[0, 0, 3]) == pushed(negative=[3, 0])


def test_more_than_the_whole_score_is_never_lost() -> None:
    assert pushed(negative=[0], push=100.0) == [0.0, 0.0, 4.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize(("negative", "push"), [([], 2.0), ([0], 0.0)])
def test_nothing_turned_down_or_no_push_changes_nothing(negative: list[int], push: float) -> None:
    assert push_down(SCORES, ROWS, ITEMS, negative=negative, clicked=[], push=push) is SCORES


def test_no_item_stays_none_and_no_candidates_are_fine() -> None:
    scores = np.array([-np.inf, 2.0], dtype=np.float32)

    left = push_down(scores, np.array([-1, 2]), ITEMS, negative=[5], clicked=[], push=2.0)
    none = push_down(np.zeros(0, np.float32), np.zeros(0, np.int64), ITEMS, negative=[0], clicked=[], push=1.0)

    assert left.tolist() == [-np.inf, 2.0]
    assert none.tolist() == []


@given(st.integers(0, 2**32), st.floats(0, 5))
def test_each_score_depends_on_its_item_alone_and_never_grows(seed: int, push: float) -> None:
    random = np.random.default_rng(seed)
    items = random.normal(size=(50, 16)).astype(np.float32)
    scores, rows = random.normal(size=(3, 20)).astype(np.float32), random.permutation(50)[:20]
    negative, clicked = random.integers(0, 50, 4).tolist(), random.integers(0, 50, 6).tolist()

    left = push_down(scores, rows, items, negative=negative, clicked=clicked, push=push)

    assert (left <= scores).all()
    for at in range(20):
        alone = push_down(
            scores[:, at : at + 1], rows[at : at + 1], items, negative=negative, clicked=clicked, push=push
        )
        assert left[:, at].tobytes() == alone[:, 0].tobytes()
    best_before, best_after = scores.argmax(axis=0), left.max(axis=0)
    assert left[best_before, np.arange(20)].tolist() == best_after.tolist()  # of one item the greatest stays it
