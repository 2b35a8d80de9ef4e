"""Both losses against the oracle: any interests, any negatives, accidental hits among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model import oracle
from trainer.negatives import full_softmax_loss, sampled_softmax_loss

seeds = st.integers(0, 2**32 - 1)
drawn = settings(deadline=None, max_examples=60)


def draw(seed: int, *, items: int) -> tuple[np.ndarray, np.ndarray, int, np.random.Generator]:
    """(K, D) interests, (N + 1, D) items with a padding row that must not count, and how many interests are in use."""
    random = np.random.default_rng(seed)
    interests = random.standard_normal((3, 4)).astype(np.float32)
    vectors = random.standard_normal((items + 1, 4)).astype(np.float32)
    vectors[0] = 50.0
    return interests, vectors, int(random.integers(1, 4)), random


def best(interests: np.ndarray, used: int, vector: np.ndarray) -> float:
    return max(float(interests[slot].astype(np.float64) @ vector.astype(np.float64)) for slot in range(used))


@drawn
@given(seed=seeds, items=st.integers(2, 12))
def test_the_full_loss_is_the_share_of_the_target_among_all_items(seed: int, items: int) -> None:
    interests, vectors, used, random = draw(seed, items=items)
    target = int(random.integers(1, items + 1))

    loss = full_softmax_loss(
        torch.from_numpy(interests[None]),
        torch.arange(3).unsqueeze(0) < used,
        torch.from_numpy(vectors),
        torch.tensor([target]),
    )

    scores = [best(interests, used, vector) for vector in vectors[1:]]
    assert loss.item() == pytest.approx(oracle.full_loss(scores, target - 1), rel=1e-4, abs=1e-4)


@drawn
@given(seed=seeds, items=st.integers(2, 12), count=st.integers(1, 9))
def test_the_sampled_loss_corrects_for_how_often_a_negative_is_drawn_and_forgets_accidental_hits(
    seed: int, items: int, count: int
) -> None:
    interests, vectors, used, random = draw(seed, items=items)
    target = int(random.integers(1, items + 1))
    negatives = random.integers(1, items + 1, size=count)

    loss = sampled_softmax_loss(
        torch.from_numpy(interests[None]),
        torch.arange(3).unsqueeze(0) < used,
        torch.from_numpy(vectors[[target]]),
        torch.from_numpy(vectors[negatives]),
        targets=torch.tensor([target]),
        negatives=torch.from_numpy(negatives),
        items=items,
    )

    expected_draws = count / max(items - 1, 1)
    others = [(best(interests, used, vectors[row]), expected_draws) for row in negatives if row != target]
    expected = oracle.sampled_loss(best(interests, used, vectors[target]), others)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_an_item_that_nobody_clicked_has_a_finite_correction_as_target_and_as_negative() -> None:
    # logQ of a frequency of 0 is minus infinity; the probability of a uniform draw knows no frequencies.
    vectors = torch.zeros(3, 2)

    loss = sampled_softmax_loss(
        torch.ones(1, 1, 2),
        torch.tensor([[True]]),
        vectors[[2]],
        vectors[[1]],
        targets=torch.tensor([2]),
        negatives=torch.tensor([1]),
        items=1_000_000,
    )

    assert torch.isfinite(loss)
