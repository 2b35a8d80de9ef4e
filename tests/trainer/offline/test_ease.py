from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.offline.builders import ask, draw_sequences
from trainer.offline.cooccurrence import Cooccurrence, count_cooccurrence
from trainer.offline.ease import Ease, EaseChoice, chosen_rows, invert, tuned_ease
from trainer.offline.sets import Part


def drawn_part(seed: int = 3) -> Part:
    sequences = draw_sequences(users=90, items=12, longest=9, seed=seed)
    return Part(sequences, [f"u{number}" for number in range(90)])


def slow_square(sequences: list[np.ndarray], *, items: int, ridge: float) -> np.ndarray:
    clicked = np.zeros((len(sequences), items))
    for user, rows in enumerate(sequences):
        clicked[user, rows - 1] = 1.0
    inverse = np.linalg.inv(clicked.T @ clicked + ridge * np.eye(items))
    square = -inverse / np.diag(inverse)
    np.fill_diagonal(square, 0.0)
    return square


def test_the_square_is_the_closed_form() -> None:
    sequences = draw_sequences(users=90, items=12, longest=9)
    counts = count_cooccurrence(sequences, items=12)

    square = invert(counts, chosen_rows(counts), ridge=20.0)

    assert np.allclose(square, slow_square(sequences, items=12, ridge=20.0), atol=1e-5)


def test_scores_are_decayed_sums_over_the_whole_history() -> None:
    sequences = draw_sequences(users=90, items=12, longest=9)
    counts = count_cooccurrence(sequences, items=12)
    rows = chosen_rows(counts)
    square = invert(counts, rows, ridge=20.0)

    scores = Ease(square, rows, EaseChoice(20.0, 0.5), counts).scores([ask([3, 7], [1]), ask([], [1])]).numpy()

    assert np.allclose(scores[0, 1:], 0.5 * square[2] + square[6], atol=1e-6)
    assert scores[1].tolist() == [0.0] * 13


def test_beyond_the_most_clicked_items_pairs_score_by_item_cf() -> None:
    sequences = [np.array(rows) for rows in ([1, 2, 3], [1, 2], [1, 2, 4], [1, 3, 4])]
    counts = count_cooccurrence(sequences, items=4)  # users: 4, 3, 2, 2

    rows = chosen_rows(counts, most=3, kept=2)
    square = invert(counts, rows, ridge=1.0)
    scores = Ease(square, rows, EaseChoice(1.0, 1.0, 0.1), counts).scores([ask([1], [3]), ask([4], [3])]).numpy()

    assert rows.tolist() == [1, 2]
    cosines = [0.0, 2 / np.sqrt(8), 2 / np.sqrt(8)]  # of item 1 with 2 (inside), 3 and 4
    assert scores[0].tolist() == pytest.approx([0, 0, square[0, 1], 0.1 * cosines[1], 0.1 * cosines[2]])
    assert scores[1].tolist() == pytest.approx([0, 0.1 * cosines[2], 0.1 / np.sqrt(6), 0.1 / 2, 0])


def test_what_was_tuned_is_read_from_the_cache_the_next_time(tmp_path: Path) -> None:
    part, said = drawn_part(), []
    asked = [ask([1, 2], [3]), ask([4], [5, 6])]

    def counts(part: Part) -> Cooccurrence:
        return count_cooccurrence(part.sequences, items=12)

    first, chosen = tuned_ease(part, asked, part, counts=counts, cache=tmp_path, say=said.append)
    before = len(said)
    second, again = tuned_ease(part, asked, part, counts=counts, cache=tmp_path, say=said.append)

    assert (before > 0, len(said)) == (True, before)
    assert again == chosen
    assert second.scores(asked).tolist() == first.scores(asked).tolist()


def test_other_data_is_never_answered_from_the_cache(tmp_path: Path) -> None:
    asked, said = [ask([1, 2], [3])], []
    for seed in (3, 4):
        part = drawn_part(seed)
        counts = count_cooccurrence(part.sequences, items=12)
        said.append([])
        method, choice = tuned_ease(
            part, asked, part, counts=lambda _part, counts=counts: counts, cache=tmp_path, say=said[-1].append
        )
        rows = chosen_rows(counts)
        fresh = Ease(invert(counts, rows, ridge=choice.ridge), rows, choice, counts)
        assert method.scores(asked).tolist() == fresh.scores(asked).tolist()

    assert said[0]
    assert said[1]


def test_a_cut_file_in_the_cache_is_made_anew(tmp_path: Path) -> None:
    part, asked = drawn_part(), [ask([1, 2], [3])]
    counts = count_cooccurrence(part.sequences, items=12)
    method, _choice = tuned_ease(part, asked, part, counts=lambda _part: counts, cache=tmp_path, say=lambda line: None)
    expected = method.scores(asked).tolist()
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    method, _choice = tuned_ease(part, asked, part, counts=lambda _part: counts, cache=tmp_path, say=lambda line: None)

    assert method.scores(asked).tolist() == expected
