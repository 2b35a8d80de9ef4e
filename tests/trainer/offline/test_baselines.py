from __future__ import annotations

import math

import numpy as np
import pytest

from tests.trainer.offline.builders import ask, draw_sequences, make_part
from trainer.item_cf import ItemCooccurrence
from trainer.offline.baselines import ItemCf, Popular, UserCf, decayed
from trainer.offline.cooccurrence import count_cooccurrence


def test_popular_counts_every_click() -> None:
    scores = Popular(make_part([1, 2, 2], [2]), items=3).scores([ask([], [1]), ask([1], [2])])

    assert scores.tolist() == [[0, 1, 3, 0], [0, 1, 3, 0]]


def test_a_click_weighs_the_decay_to_the_power_of_its_age() -> None:
    weights = decayed([ask([5, 6, 7], [1]), ask([8], [1])], last=2, decay=0.5)

    assert weights.tolist() == [0.5, 1.0, 1.0]


def test_item_cf_is_the_cosine_of_co_occurrence() -> None:
    #  users: {1, 2}, {1, 2}, {1, 3}; item 1 has 3 users, item 2 two, item 3 one
    counts = count_cooccurrence(make_part([1, 2], [2, 1, 1], [3, 1]).sequences, items=3)

    scores = ItemCf(counts).scores([ask([1], [2])])[0].tolist()

    assert scores == pytest.approx([0.0, 0.0, 2 / math.sqrt(6), 1 / math.sqrt(3)])


def test_item_cf_agrees_with_the_one_that_the_trainer_judges_by() -> None:
    sequences = draw_sequences(users=60, items=25, longest=30)
    ours = ItemCf(count_cooccurrence(sequences, items=25))
    theirs = ItemCooccurrence(sequences, items=25)
    histories = draw_sequences(users=10, items=25, longest=40, seed=9)

    scores = ours.scores([ask(history.tolist(), [1]) for history in histories]).numpy()

    assert np.allclose(scores, [theirs.scores(history) for history in histories], atol=1e-5)


def test_small_and_large_catalogs_are_counted_alike() -> None:
    sequences = draw_sequences(users=200, items=30, longest=20)

    dense = count_cooccurrence(sequences, items=30, chunk_pairs=500)
    large = count_cooccurrence(sequences, items=30, chunk_pairs=500, dense_items=0)

    for name in ("starts", "neighbors", "together", "users"):
        assert np.array_equal(getattr(dense, name), getattr(large, name)), name


def test_co_occurrences_agree_with_a_plain_loop() -> None:
    sequences = draw_sequences(users=80, items=12, longest=10)
    square = np.zeros((13, 13))
    for rows in sequences:
        for left in set(rows.tolist()):
            for right in set(rows.tolist()) - {left}:
                square[left, right] += 1

    counts = count_cooccurrence(sequences, items=12)

    for row in range(13):
        span = slice(counts.starts[row], counts.starts[row + 1])
        assert counts.neighbors[span].tolist() == np.flatnonzero(square[row]).tolist()
        assert counts.together[span].tolist() == square[row][square[row] > 0].tolist()


def test_user_cf_recommends_what_the_similar_user_clicked() -> None:
    part = make_part([1, 2, 3], [4, 5], [1, 6])

    scores = UserCf(part, items=6, decay=0.5).scores([ask([4, 1], [5])])[0].tolist()

    #  the newest click, 1, weighs 1, the older, 4, a half; users have 3, 2 and 2 items
    first, second, third = 1 / math.sqrt(3), 0.5 / math.sqrt(2), 1 / math.sqrt(2)
    assert scores == pytest.approx([0.0, first + third, first, first, second, second, third])


def test_without_a_history_there_is_no_evidence_for_anything() -> None:
    part = make_part([1, 2], [2, 3])
    counts = count_cooccurrence(part.sequences, items=3)

    for method in (ItemCf(counts), UserCf(part, items=3)):
        assert method.scores([ask([], [1])]).tolist() == [[0.0, 0.0, 0.0, 0.0]]
