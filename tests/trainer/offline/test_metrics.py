from __future__ import annotations

import math

import numpy as np
import pytest

from tests.trainer.offline.builders import ask
from trainer.offline.metrics import figure, judge, paired


def fifty(*rows: int) -> list[int]:
    """A list of 50: *rows*, then rows that are nobody's target."""
    return [*rows, *range(1_000, 1_050 - len(rows))]


def test_recall_is_hits_by_targets_and_hitrate_any_hit() -> None:
    lists = np.array([fifty(1, 2, 3), fifty(9)])

    found = judge(lists, [ask([], [1, 3, 7, 8]), ask([], [4])])

    assert found["recall_at_20"].tolist() == [0.5, 0.0]
    assert found["hitrate_at_20"].tolist() == [1.0, 0.0]


def test_place_21_counts_at_50_and_not_at_20() -> None:
    lists = np.array([[*range(100, 120), 7, *range(200, 229)]])

    found = judge(lists, [ask([], [7])])

    assert (found["recall_at_20"][0], found["recall_at_50"][0]) == (0.0, 1.0)
    assert found["mrr_at_20"][0] == 0.0


def test_ndcg_has_an_ideal_of_as_many_targets_as_there_are() -> None:
    #  targets 5 and 6, found at places 1 and 3: (1 + 1/2) / (1 + 1/log2(3))
    found = judge(np.array([fifty(5, 90, 6)]), [ask([], [5, 6])])

    assert found["ndcg_at_50"][0] == pytest.approx(1.5 / (1 + 1 / math.log2(3)))


def test_ndcg_ideal_is_bounded_by_the_length_of_the_list() -> None:
    targets = list(range(1, 31))  # 30 targets, all 20 places of the list are hits

    found = judge(np.array([targets + list(range(500, 520))]), [ask([], targets)])

    assert found["ndcg_at_20"][0] == pytest.approx(1.0)


def test_mrr_is_one_by_the_place_of_the_first_hit() -> None:
    found = judge(np.array([fifty(90, 91, 5, 6)]), [ask([], [5, 6])])

    assert found["mrr_at_20"][0] == pytest.approx(1 / 3)


def test_padding_in_a_list_is_never_a_hit() -> None:
    found = judge(np.zeros((1, 50), dtype=np.int64), [ask([], [1])])

    assert found["recall_at_50"][0] == 0.0


def test_the_standard_error_is_the_sample_deviation_by_the_root_of_the_number() -> None:
    found = figure(np.array([0.0, 1.0, 1.0, 0.0]))

    assert found.mean == 0.5
    assert found.error == pytest.approx(math.sqrt(1 / 3) / 2)


def test_a_paired_difference_is_taken_question_by_question() -> None:
    ours, theirs = {"recall_at_50": np.array([0.5, 1.0])}, {"recall_at_50": np.array([0.25, 0.75])}

    difference = paired(ours, theirs)["recall_at_50"]

    assert (difference.mean, difference.error) == (0.25, 0.0)


def test_figures_agree_with_a_plain_loop() -> None:
    random = np.random.default_rng(5)
    lists = np.array([random.permutation(80)[:50] for _ in range(40)])
    questions = [ask([], (random.permutation(80)[: random.integers(1, 9)] + 1).tolist()) for _ in range(40)]

    found = judge(lists, questions)

    for place, question in enumerate(questions):
        targets = set(question.targets.tolist())
        for cut in (20, 50):
            top = lists[place, :cut].tolist()
            hits = [1.0 if row in targets and row > 0 else 0.0 for row in top]
            gain = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits))
            ideal = sum(1 / math.log2(rank + 2) for rank in range(min(cut, len(targets))))
            assert found[f"recall_at_{cut}"][place] == pytest.approx(sum(hits) / len(targets))
            assert found[f"ndcg_at_{cut}"][place] == pytest.approx(gain / ideal)
