"""The greatest of many scores, against sorting all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.ann.selection import BLOCK, reaching, top_places

SHAPES = st.tuples(st.integers(1, 2_000), st.integers(1, 9), st.integers(0, 2**32), st.sampled_from([1, 3, 10**6]))


def drawn(count: int, seed: int, distinct: int) -> np.ndarray:
    """Return (3, count) scores of both signs, a third of them minus infinity; of few *distinct* ones many are equal."""
    scores = np.random.default_rng(seed).integers(-distinct, distinct + 1, size=(3, count)).astype(np.float32) / 7
    scores[:, ::3] = -np.inf
    return scores


def bits_of(scores: np.ndarray) -> np.ndarray:
    """Return the bits of *scores* as bfloat16."""
    return torch.from_numpy(scores).bfloat16().view(torch.int16).numpy()


def floats_of(bits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(bits.copy()).view(torch.bfloat16).float().numpy()


def first_of_the_greatest(scores: np.ndarray, k: int) -> list[list[int]]:
    return [sorted(np.lexsort((np.arange(len(line)), -line))[:k].tolist()) for line in scores]


@given(SHAPES)
def test_top_places_are_the_first_of_the_greatest(shape: tuple[int, int, int, int]) -> None:
    count, k, seed, distinct = shape
    scores = drawn(count, seed, distinct)
    bits, k = bits_of(scores), min(k, count)

    assert np.sort(top_places(scores, k)).tolist() == first_of_the_greatest(scores, k)
    assert np.sort(top_places(bits, k)).tolist() == first_of_the_greatest(floats_of(bits), k)


@given(SHAPES, st.sampled_from([0.0, 1e-3, 0.2]))
def test_nothing_that_may_be_among_the_greatest_is_left_out(shape: tuple[int, int, int, int], error: float) -> None:
    count, k, seed, distinct = shape
    random, true = np.random.default_rng(seed), drawn(count, seed, distinct)
    wrong = true + random.uniform(-error, error, size=true.shape).astype(np.float32)
    errors, k = np.full(3, error * 1.001, dtype=np.float32), min(k, count)

    for found in (reaching(wrong, k, errors), reaching(bits_of(wrong), k, errors)):
        least = np.sort(true, axis=1)[:, -k]
        for line, places, last in zip(true, found, least, strict=True):
            assert set(np.flatnonzero(line >= last)) <= set(places)
            kept = places[places >= 0]
            assert len(set(kept.tolist())) == len(kept)
            assert (places[len(kept) :] == -1).all()


@pytest.mark.parametrize("places", [100, 100 * BLOCK, 1_000 * BLOCK + 5])
def test_what_is_far_below_the_greatest_is_left_out(places: int) -> None:
    scores = np.random.default_rng(4).normal(size=(20, places)).astype(np.float32)
    errors = np.full(20, 1e-3, dtype=np.float32)

    for found in (reaching(scores, 30, errors), reaching(bits_of(scores), 30, errors)):
        assert 30 <= (found >= 0).sum(axis=1).mean() < 40


def test_scores_in_any_order_of_memory_are_read() -> None:
    scores = drawn(500, 3, 10**6)

    assert np.sort(top_places(np.asfortranarray(scores), 9)).tolist() == first_of_the_greatest(scores, 9)
    assert np.sort(top_places(scores[:, ::-1], 9)).tolist() == first_of_the_greatest(scores[:, ::-1], 9)
    assert top_places(scores[:0], 9).shape == (0, 9)
