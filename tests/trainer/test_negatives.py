from __future__ import annotations

import math

import numpy as np
import torch

from trainer.negatives import best_scores, draw_negatives, full_softmax_loss, sampled_softmax_loss

ONE = torch.tensor([[True]])
"""One interest, in use."""


def test_the_full_loss_leaves_the_padding_row_out() -> None:
    users = torch.tensor([[[1.0, 0.0]]])
    items = torch.tensor([[99.0, 99.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])

    loss = full_softmax_loss(users, ONE, items, torch.tensor([2]))

    assert math.isclose(loss.item(), math.log(math.e + 1.0 + math.exp(-1.0)), rel_tol=1e-6)


def test_the_sampled_loss_with_every_other_item_once_is_the_full_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(6, 4, generator=generator)
    users = torch.randn(1, 1, 4, generator=generator)
    others = torch.tensor([1, 2, 4, 5])

    sampled = sampled_softmax_loss(
        users, ONE, items[[3]], items[others], targets=torch.tensor([3]), negatives=others, draws=torch.ones(1)
    )

    assert math.isclose(sampled.item(), full_softmax_loss(users, ONE, items, torch.tensor([3])).item(), rel_tol=1e-5)


def test_the_correction_makes_few_negatives_stand_for_all() -> None:
    # All items alike: the full loss is log N, and with the correction any sample says the same.
    users, vector = torch.ones(1, 1, 2), torch.ones(1, 2)

    loss = sampled_softmax_loss(
        users,
        ONE,
        vector,
        vector.expand(10, 2),
        targets=torch.tensor([1]),
        negatives=torch.arange(2, 12),
        draws=torch.full((10,), 10 / 999),
    )

    assert math.isclose(loss.item(), math.log(1_000), rel_tol=1e-5)


def test_an_accidental_hit_counts_nothing() -> None:
    users = torch.tensor([[[2.0]]])
    vectors = torch.tensor([[1.0], [0.5]])

    loss = sampled_softmax_loss(
        users, ONE, vectors[:1], vectors, targets=torch.tensor([1]), negatives=torch.tensor([1, 2]), draws=torch.ones(2)
    )

    # Each is drawn once on average: a correction of 0; only the second negative is left.
    assert math.isclose(loss.item(), math.log(1 + math.exp(1.0 - 2.0)), rel_tol=1e-6)


def test_negatives_are_uniform_and_never_padding() -> None:
    drawn = draw_negatives(np.random.default_rng(0), items=5, count=50_000)

    shares = np.bincount(drawn, minlength=6) / 50_000
    np.testing.assert_allclose(shares, [0.0, 0.2, 0.2, 0.2, 0.2, 0.2], atol=0.01)


def test_every_item_is_scored_by_its_best_interest_in_use() -> None:
    interests = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])

    scores = best_scores(interests, torch.tensor([[True, True, False]]), items)

    assert scores.tolist() == [[1.0, 2.0, -1.0]]


def test_the_sampled_loss_scores_the_target_by_its_best_interest_too() -> None:
    interests = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    items = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    used = torch.tensor([[True, True]])

    sampled = sampled_softmax_loss(
        interests,
        used,
        items[[2]],
        items[[1]],
        targets=torch.tensor([2]),
        negatives=torch.tensor([1]),
        draws=torch.ones(1),
    )

    assert math.isclose(sampled.item(), math.log(1 + math.exp(1.0 - 2.0)), rel_tol=1e-6)
    assert math.isclose(
        sampled.item(), full_softmax_loss(interests, used, items, torch.tensor([2])).item(), rel_tol=1e-6
    )
