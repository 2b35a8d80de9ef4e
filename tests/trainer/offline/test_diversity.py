from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.offline.builders import ask, make_part, make_set
from trainer.offline.diversity import Categories, catalog_coverage, category_figures, interest_figures

CATEGORIES = {"i1": ["shoes"], "i2": ["shoes"], "i3": ["hats"], "i4": ["hats", "wool"]}


def padded(*rows: int) -> np.ndarray:
    return np.array([[*rows, *[0] * (50 - len(rows))]])


def made_categories() -> Categories:
    part = make_part([1, 2, 1, 3])  # clicks: shoes 3, hats 1, wool none; one added: 4, 2, 1 of 7
    found = Categories.of(make_set(part, [], items=5, categories=CATEGORIES), part)
    assert found is not None
    return found


def test_catalog_coverage_is_the_share_of_items_in_any_list() -> None:
    assert catalog_coverage(np.array([[1, 2, 0], [2, 3, 0]]), items=6) == 0.5


def test_a_rare_target_category_weighs_more() -> None:
    #  targets shoes (7/4) and wool, hats (7, 7/2); the list holds hats alone
    found = category_figures(padded(3), [ask([], [1, 4])], made_categories())

    assert found["target_category_coverage_at_50"][0] == pytest.approx(3.5 / (1.75 + 7 + 3.5))


def test_targets_without_a_category_say_nothing_of_coverage() -> None:
    found = category_figures(padded(3), [ask([], [5])], made_categories())

    assert np.isnan(found["target_category_coverage_at_50"][0])


def test_diversity_is_the_share_of_pairs_with_different_first_categories() -> None:
    found = category_figures(padded(1, 2, 3, 5), [ask([], [1])], made_categories())

    assert found["categories_at_50"][0] == 2
    assert found["intra_list_diversity_at_50"][0] == pytest.approx(1 - 2 / 12)


def test_a_set_without_categories_has_no_such_figures() -> None:
    part = make_part([1, 2])

    assert Categories.of(make_set(part, [], items=2), part) is None


def test_interest_figures_look_at_interests_in_use_alone() -> None:
    #  user 0 uses two interests at a right angle, user 1 one of two equal ones
    vectors = np.array([[[1, 0], [0, 2], [9, 9]], [[1, 0], [1, 0], [1, 0]]], dtype=np.float32)
    used = np.array([[True, True, False], [True, False, False]])
    items = np.array([[0, 0], [3, 0], [0, 3], [2, 2.1]], dtype=np.float32)
    lists = np.concatenate([padded(1, 2, 3), padded(1, 2)])

    found = interest_figures(vectors, used, lists, items)

    assert found["interest_cosine"][0] == pytest.approx(0.0, abs=1e-6)
    assert np.isnan(found["interest_cosine"][1])
    assert found["interests_used_share"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert found["interests_in_top_50"].tolist() == [2.0, 1.0]
