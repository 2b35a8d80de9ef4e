from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.ann import exact
from engine.ann.exact import ExactIndex
from engine.ann.selection import BLOCK
from engine.item_rows import NO_ROW
from tests.ann.test_index import draw


def test_of_items_equal_at_the_last_place_the_lowest_rows_are_taken():
    vectors = np.zeros((40, 4), dtype=np.float32)
    vectors[30] = [2, 0, 0, 0]
    vectors[5:25] = [1, 0, 0, 0]

    rows, _ = ExactIndex(vectors).search(np.array([[1, 0, 0, 0]], dtype=np.float32), 4)

    assert list(rows[0]) == [30, 5, 6, 7]


@pytest.mark.parametrize("items", [3_000, 3_007, 10_000])
@pytest.mark.parametrize("distinct", [3, 50, 10**6])
def test_looking_at_blocks_first_finds_the_same(items: int, distinct: int):
    # Few distinct scores: whole blocks are equal, and the last place is shared by many.
    random = np.random.default_rng(items)
    vectors = random.integers(1, distinct + 1, size=(items, 1)).astype(np.float32)
    interests = np.array([[1.0], [-1.0], [0.5]], dtype=np.float32)
    index = ExactIndex(vectors)

    for k in (1, 7, 40):
        rows, scores = index.search(interests, k)

        assert items // BLOCK > 2 * k
        for query, (found, best) in enumerate(zip(rows, scores, strict=True)):
            all_scores = vectors[:, 0] * interests[query, 0]
            expected = np.lexsort((np.arange(items), -all_scores))[:k]
            assert found.tolist() == expected.tolist()
            assert best.tolist() == all_scores[expected].tolist()


@pytest.mark.parametrize("items", [50, 5_000])
def test_a_part_of_the_queries_at_a_time_finds_the_same(items: int, monkeypatch: pytest.MonkeyPatch):
    vectors, interests = draw(items, 8), draw(70, 8, seed=4)
    interests[3] = np.nan
    index = ExactIndex(vectors)
    together = index.search(interests, 20)

    monkeypatch.setattr(exact, "_QUERIES_AT_ONCE", 32)
    in_parts = index.search(interests, 20)

    assert in_parts[0].tolist() == together[0].tolist()
    assert in_parts[1].tolist() == together[1].tolist()


def test_half_precision_finds_nearly_the_same_with_the_same_scores():
    vectors, interests = draw(20_000, 64), draw(60, 64, seed=4)
    full = ExactIndex(vectors)
    half = full.in_half()

    rows, scores = half.search(interests, 100)
    expected, best = full.search(interests, 100)

    held = [len(set(one) & set(other)) / 100 for one, other in zip(rows.tolist(), expected.tolist(), strict=True)]
    assert (full.is_half, half.is_half) == (False, True)
    assert np.mean(held) > 0.995
    assert rows.shape == expected.shape == (60, 100)
    same = rows == expected
    assert scores[same].tolist() == best[same].tolist()
    found = half.candidates(interests, 200)
    wide = [len(set(one) & set(other)) / 100 for one, other in zip(found.tolist(), expected.tolist(), strict=True)]
    assert np.mean(wide) > 0.999


@pytest.mark.parametrize("items", [60, 3_007, 10_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_half_precision_is_exact_on_small_whole_numbers_and_below_zero_too(items: int, sign: int):
    random = np.random.default_rng(items)
    vectors = sign * random.permutation(np.arange(items) % 251 + 1)[:, None].astype(np.float32)
    interests = np.array([[1.0], [0.5]], dtype=np.float32)

    rows = ExactIndex(vectors, is_half=True).candidates(interests, 40)

    expected = np.sort(vectors[:, 0])[-40:]
    assert [np.sort(vectors[found, 0]).tolist() for found in rows] == [expected.tolist()] * 2


def test_half_precision_keeps_the_contract_of_an_index():
    vectors, interests = draw(5_000, 8), draw(5, 8, seed=4)
    interests[3] = np.nan
    own = np.arange(10, 4_000)
    half = ExactIndex(vectors, rows=own, is_half=True)

    rows, scores = half.search(interests, 4_500)
    few, _ = half.search(interests, 20)
    one_by_one = [half.candidates(interests[at : at + 1], 20)[0].tolist() for at in range(5)]

    assert (half.size, half.dimensions) == (3_990, 8)
    assert rows.shape == scores.shape == (5, 4_500)
    assert set(rows[0, :3_990].tolist()) == set(own.tolist())
    assert (rows[:, 3_990:] == NO_ROW).all()
    assert (rows[3] == NO_ROW).all()
    assert [sorted(found) for found in half.candidates(interests, 20).tolist()] == list(map(sorted, one_by_one))
    assert ((few >= 10) & (few < 4_000))[[0, 1, 2, 4]].all()
    assert half.search(np.zeros((0, 8), dtype=np.float32), 3)[0].shape == (0, 3)
    assert (
        ExactIndex(np.zeros((0, 8), dtype=np.float32), is_half=True).search(interests, 2)[0].tolist() == [[-1, -1]] * 5
    )


def test_an_index_that_missed_too_much_goes_on_in_full_precision():
    vectors, interests = draw(20_000, 64), draw(60, 64, seed=4)
    index = ExactIndex(vectors, is_half=True)

    index.widen(300)

    assert not index.is_half
    assert index.search(interests, 50)[0].tolist() == ExactIndex(vectors).search(interests, 50)[0].tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_answers_as_the_cpu_does():
    vectors, interests = draw(5_000, 64), draw(100, 64, seed=4)

    on_gpu, on_cpu = (ExactIndex(vectors, device=device).search(interests, 50) for device in ("cuda", "cpu"))

    assert (on_gpu[0] == on_cpu[0]).mean() > 0.999


@pytest.mark.parametrize(("items", "kept"), [(200, True), (300, False)])
def test_memory_for_scores_is_kept_only_where_it_is_little(
    items: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "_MOST_KEPT_BYTES", 4 * 32 * 256)  # of 32 queries, the fewest at a time, and 256 items
    index = ExactIndex(draw(items, 8))

    index.search(draw(64, 8, seed=4), 5)

    assert hasattr(index._kept, "room") == kept
