"""Both losses against the oracle: any interests, any negatives, accidental hits among them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model import oracle
from trainer import loss as loss_module
from trainer.loss import best_scores, full_softmax_loss, harder, sampled_softmax_loss
from trainer.negatives import SAMPLINGS, Sampler
from trainer.steps import dropout, routing_variance

ONE = torch.tensor([[True]])
"""One interest, in use."""

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
@given(
    seed=seeds,
    items=st.integers(2, 12),
    count=st.integers(1, 9),
    sampling=st.sampled_from(SAMPLINGS),
    hardness=st.sampled_from([0.0, 0.5]),
)
def test_the_sampled_loss_corrects_for_how_often_a_negative_is_drawn_and_forgets_accidental_hits(
    seed: int, items: int, count: int, sampling: str, hardness: float
) -> None:
    interests, vectors, used, random = draw(seed, items=items)
    target = int(random.integers(1, items + 1))
    frequencies = np.append(0, random.integers(1, 6, size=items))
    batch = np.append(target, random.integers(1, items + 1, size=3))
    sampler = Sampler(sampling, items=items, count=count, target_counts=frequencies)
    negatives, draws = sampler.draw(random, batch)

    loss = sampled_softmax_loss(
        torch.from_numpy(interests[None]),
        torch.arange(3).unsqueeze(0) < used,
        torch.from_numpy(vectors[[target]]),
        torch.from_numpy(vectors[negatives]),
        targets=torch.tensor([target]),
        negatives=torch.from_numpy(negatives),
        draws=torch.from_numpy(draws),
        hardness=hardness,
    )

    uniform, by_rank = count / items, math.log(items + 1)
    expected_draws = {
        "uniform": lambda row: uniform,
        "log-uniform": lambda row: count * (math.log(row + 1) - math.log(row)) / by_rank,
        "in-batch": lambda row: 4 * frequencies[row] / frequencies.sum(),
        "mixed": lambda row: uniform + 4 * frequencies[row] / frequencies.sum(),
    }[sampling]
    others = [(best(interests, used, vectors[row]), expected_draws(row)) for row in negatives if row != target]
    expected = oracle.sampled_loss(best(interests, used, vectors[target]), others, hardness=hardness)
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
        draws=torch.tensor([1e-6]),
    )

    assert torch.isfinite(loss)


def test_items_that_are_no_targets_have_finite_corrections_under_every_sampling() -> None:
    targets = np.array([3, 3, 3])
    counts = np.array([0, 0, 0, 9, 0])

    for sampling in SAMPLINGS:
        rows, draws = Sampler(sampling, items=4, count=64, target_counts=counts).draw(np.random.default_rng(1), targets)

        assert (draws > 0).all(), sampling
        assert np.isfinite(np.log(draws)).all()
        assert rows.min() >= 1
        assert rows.max() <= 4


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_corrected_negatives_stand_for_all_items_whatever_the_sampling(sampling: str) -> None:
    random = np.random.default_rng(11)
    items, target, batch = 30, 5, 64
    scores = random.standard_normal(items + 1)
    counts = np.append(0, random.integers(1, 40, size=items))
    sampler = Sampler(sampling, items=items, count=64, target_counts=counts)
    sums = []
    for _ in range(4_000):
        rows, draws = sampler.draw(random, random.choice(items + 1, size=batch, p=counts / counts.sum()))
        sums.append((np.exp(scores[rows]) / draws)[rows != target].sum())

    everything = np.exp(scores[1:]).sum() - np.exp(scores[target])
    assert np.mean(sums) == pytest.approx(everything, rel=0.03)


def test_hard_negatives_weigh_more_where_their_score_is_higher_and_one_on_average() -> None:
    hits = torch.zeros(1, 3, dtype=torch.bool).nonzero(as_tuple=True)

    factors = harder(torch.tensor([[0.0, 1.0, 2.0]]), hits).exp()

    assert factors[0, 0] < factors[0, 1] < factors[0, 2]
    assert factors.mean().item() == pytest.approx(1.0, abs=1e-6)


def test_in_batch_negatives_of_a_batch_with_one_target_leave_a_loss_of_zero_and_finite_gradients() -> None:
    interests = torch.ones(2, 1, 2, requires_grad=True)

    loss = sampled_softmax_loss(
        interests,
        torch.ones(2, 1, dtype=torch.bool),
        torch.ones(2, 2),
        torch.ones(2, 2),
        targets=torch.tensor([4, 4]),
        negatives=torch.tensor([4, 4]),
        draws=torch.ones(2),
        hardness=1.0,
    )
    loss.backward()

    assert loss.item() == 0.0
    assert interests.grad is not None
    assert torch.isfinite(interests.grad).all()


def test_the_routing_variance_is_that_of_the_shares_and_an_interest_of_one_click_has_most() -> None:
    weights = torch.tensor([[[0.0, 0.0, 0.0], [0.5, 2.0, 0.0], [0.5, 0.0, 0.0]]])  # (B, L, K), the first is padding
    present = torch.tensor([[False, True, True]])

    found = routing_variance(weights, present)

    expected = (np.var([0.5, 0.5]) + np.var([1.0, 0.0])) / 2  # the third interest is not in use
    assert found.item() == pytest.approx(expected, abs=1e-7)


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


def plain_loss(
    interests: torch.Tensor, used: torch.Tensor, vectors: torch.Tensor, **rest: torch.Tensor
) -> torch.Tensor:
    """The sampled loss as torch differentiates it; *vectors* are those of the targets, then of the negatives."""
    targets, negatives, draws, beta = rest["targets"], rest["negatives"], rest["draws"], rest["beta"].item()
    wanted, others = vectors[: len(targets)], vectors[len(targets) :]
    hits = targets.unsqueeze(1) == negatives
    scores = best_scores(interests, used, others)
    weighed = scores - draws.log() + (harder(scores.detach() * beta, hits.nonzero(as_tuple=True)) if beta else 0.0)
    weighed = weighed.masked_fill(hits, -torch.inf)
    own = (interests @ wanted.unsqueeze(-1)).squeeze(-1).masked_fill(~used, -torch.inf).amax(dim=1, keepdim=True)
    first = torch.zeros(len(targets), dtype=torch.int64)
    return torch.nn.functional.cross_entropy(torch.cat([own, weighed], dim=1), first)


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_the_gradients_are_those_of_the_plain_expression_however_many_windows_a_block_has(
    monkeypatch: pytest.MonkeyPatch, beta: float, slots: int, at_once: int
) -> None:
    generator = torch.Generator().manual_seed(5)
    batch, count = 7, 11
    monkeypatch.setattr(loss_module, "CACHED_SCORES", at_once * slots * count)
    interests = torch.randn(batch, slots, 4, generator=generator)
    interests[2] = interests[2, :1]  # equal interests share the gradient
    vectors = torch.randn(batch + count, 4, generator=generator)
    used = torch.arange(slots) < torch.randint(1, slots + 1, (batch, 1), generator=generator)
    rest = {
        "targets": torch.randint(1, 6, (batch,), generator=generator),
        "negatives": torch.randint(1, 6, (count,), generator=generator),
        "draws": torch.rand(count, generator=generator) + 0.1,
    }

    found = []
    for fused in (True, False):
        leaves = interests.clone().requires_grad_(), vectors.clone().requires_grad_()
        if fused:
            parts = leaves[1][:batch], leaves[1][batch:]
            loss = sampled_softmax_loss(leaves[0], used, *parts, **rest, hardness=beta)
        else:
            loss = plain_loss(leaves[0], used, leaves[1], **rest, beta=torch.tensor(beta))
        (3.0 * loss).backward()
        found.append((loss, leaves[0].grad, leaves[1].grad))

    torch.testing.assert_close(found[0], found[1])


def test_dropout_leaves_a_share_of_the_numbers_out_and_makes_up_for_it_in_values_and_gradients() -> None:
    torch.manual_seed(3)
    vectors = torch.ones(400, 250, requires_grad=True)

    dropped = dropout(vectors, 0.2)
    dropped.sum().backward()

    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert (dropped == 0.0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert vectors.grad is not None
    torch.testing.assert_close(vectors.grad, dropped.detach())
    torch.manual_seed(3)
    torch.testing.assert_close(dropout(vectors, 0.2), dropped, atol=0.0, rtol=0.0)
