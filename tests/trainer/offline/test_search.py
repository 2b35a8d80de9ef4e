from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.errors import UnusableInterests
from tests.trainer.offline.builders import FixedScores, ask
from trainer.offline.search import answer, top_rows


def test_lists_go_by_score_best_first() -> None:
    found = answer(FixedScores(0.0, 1.0, 3.0, 2.0), [ask([], [1])], items=3, top=3)

    assert found.kept.tolist() == [[2, 3, 1]]


def test_padding_is_never_retrieved_whatever_its_score() -> None:
    found = answer(FixedScores(9.0, 1.0, 2.0), [ask([], [1])], items=2, top=4)

    assert found.kept.tolist() == [[2, 1, 0, 0]]


def test_the_history_is_left_out_of_one_list_and_kept_in_the_other() -> None:
    found = answer(FixedScores(0.0, 1.0, 3.0, 2.0), [ask([2, 2], [1])], items=3, top=3)

    assert found.kept.tolist() == [[2, 3, 1]]
    assert found.excluded.tolist() == [[3, 1, 0]]


def test_what_cannot_be_recalled_is_not_even_at_the_end() -> None:
    found = answer(FixedScores(0.0, -torch.inf, 1.0), [ask([], [1])], items=2, top=2)

    assert found.kept.tolist() == [[2, 0]]


def test_equal_scores_go_by_ascending_row_also_at_the_edge_of_the_list() -> None:
    scores = torch.tensor([[0.0, 5.0, 7.0, 5.0, 5.0, 7.0, 0.0, -0.0]])

    assert top_rows(scores, 4).tolist() == [[2, 5, 1, 3]]
    assert top_rows(scores, 8).tolist() == [[2, 5, 1, 3, 4, 0, 6, 7]]


@pytest.mark.parametrize(("items", "levels"), [(200, 5), (5_000, 5), (5_000, 3_000)])
def test_top_rows_agree_with_sorting_by_score_and_row(items: int, levels: int) -> None:
    random = np.random.default_rng(1)
    scores = random.integers(-levels, levels, size=(50, items)).astype(np.float32) / 3  # ties, both signs
    scores[random.random(scores.shape) < 0.5] = -np.inf
    scores[7], scores[8, 20:] = -np.inf, -np.inf

    found = top_rows(torch.from_numpy(scores.copy()), 30)

    for line, rows in zip(scores, found.tolist(), strict=True):
        expected = sorted(np.flatnonzero(np.isfinite(line)).tolist(), key=lambda row: (-line[row], row))[:30]
        assert rows == expected + [0] * (30 - len(expected))


def test_a_score_that_is_no_number_is_an_error_and_not_a_list() -> None:
    with pytest.raises(UnusableInterests, match="not finite numbers for 2 of 2 users"):
        answer(FixedScores(0.0, float("nan")), [ask([], [1]), ask([], [1])], items=1, top=1)
