"""Mistakes of public MIND code, each with the test that would catch it here; the oracle's tests catch the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.model import InterestModel, UserInput, Vocabulary
from engine.model.features import encode_windows
from engine.model.network import MindNetwork, WindowTensors, attend
from engine.model.routing import route, squash
from tests.model import oracle
from tests.model.mind_builders import PROFILES, SMALL, make_items, make_model, make_user

LONG = tuple(f"i{number}" for number in range(1, 10))


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5])
def test_gradients_reach_s_whatever_the_number_of_rounds(rounds: int) -> None:
    # A loop that says `if round < 2` in place of "all but the last" leaves S without gradient for 1 and 2 rounds.
    model = make_model(replace(SMALL, rounds=rounds))
    network = model._network.train().requires_grad_(True)
    batch, _ = encode_windows([make_user(*LONG)], model.vocabulary, model.config)
    windows = WindowTensors.of(batch, torch.device("cpu"))

    vectors, _ = network(network.map_behaviors(network.pool_items(windows.rows)), windows)
    vectors[..., 0].sum().backward()

    gradient = network.extractor.shared_map.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 1e-6


def test_equal_starting_logits_would_make_all_interests_equal_and_the_seeded_ones_do_not() -> None:
    behaviors = torch.randn(1, 7, 5, generator=torch.Generator().manual_seed(0))
    seeded = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(1))
    ones, counts = torch.ones(1, 7), torch.tensor([3])

    equal, _ = route(behaviors, ones, torch.zeros(1, 7, 3), counts, rounds=3, accumulate=False)
    apart, _ = route(behaviors, ones, seeded, counts, rounds=3, accumulate=False)

    assert (equal[0, 0] - equal[0, 1]).abs().max() < 1e-6
    assert (apart[0, 0] - apart[0, 1]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_empty_windows_and_zero_vectors_are_finite_in_every_precision(dtype: torch.dtype) -> None:
    # An epsilon of 1e-9 is 0 in float16: 0 / 0 for the capsule of an empty window.
    model = make_model()
    batch, _ = encode_windows([UserInput([]), make_user("i1"), make_user(*LONG)], model.vocabulary, model.config)
    windows = WindowTensors.of(batch, torch.device("cpu"))
    items = model._network.pool_items(windows.rows)

    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
        for behaviors in (model._network.map_behaviors(items), torch.zeros_like(items)):
            vectors, weights = model._network(behaviors, windows)
            assert torch.isfinite(vectors).all()
            assert torch.isfinite(weights).all()
            assert not vectors[0].any()
    assert torch.isfinite(squash(torch.zeros(2, 8, dtype=dtype))).all()
    assert squash(torch.zeros(2, 8, dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("power", [0.5, 1.0, 100.0, float("inf")])
def test_the_most_negative_interest_never_wins_attention(power: float) -> None:
    # pow(-1.5, 100) is greater than pow(1.0, 100), and pow(-1.5, 0.5) is not a number.
    interests = torch.tensor([[[1.0], [-1.5]]])

    got = attend(interests, torch.tensor([[True, True]]), torch.tensor([[1.0]]), power=power)

    expected = oracle.attend([np.array([1.0]), np.array([-1.5])], np.array([1.0]), power=power)
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-6)
    assert got.item() > 0


@pytest.mark.parametrize("score", [0.3, 3.0, 300.0])
def test_a_great_power_neither_vanishes_nor_overflows(score: float) -> None:
    # pow(0.3, 100) is 0 and pow(3, 100) infinite in float32; both make every slot look alike.
    interests = torch.tensor([[[score / 2], [score]]])

    got = attend(interests, torch.tensor([[True, True]]), torch.tensor([[1.0]]), power=100.0)

    assert got.item() == pytest.approx(score, rel=1e-5)


def test_another_user_of_the_batch_leaves_no_trace() -> None:
    # Logits summed over the batch, or kept between calls, make a user's interests depend on the traffic.
    model = make_model()
    before = model.interests([make_user(*LONG)]).vectors.tobytes()

    model.interests([make_user("i11", "i12"), make_user(*LONG), make_user(*LONG[::-1], country="UK")])

    assert model.interests([make_user(*LONG)]).vectors.tobytes() == before


def test_one_more_click_leaves_the_starting_logits_of_the_others_where_they_were() -> None:
    # Logits drawn by position shift with every click, and so do a user's interests.
    model = make_model(replace(SMALL, rounds=1, recency=False))

    before = model.interests([make_user(*LONG[:8])]).routing_weights[0]
    after = model.interests([make_user(*LONG[:8], "i15")]).routing_weights[0]

    np.testing.assert_allclose(after[:8], before, atol=1e-6)


def fresh_model(extractor: str, *, interests: int, seed: int = 3) -> InterestModel:
    torch.manual_seed(seed)
    items = make_items()
    vocabulary = Vocabulary.build(list(items), items, PROFILES)
    rows = [vocabulary.field_rows(None), *(vocabulary.field_rows(items[item]) for item in vocabulary.item_ids)]
    config = replace(SMALL, extractor=extractor, interests=interests)
    return InterestModel(MindNetwork(config, vocabulary, torch.tensor(rows)), vocabulary)


def test_mind_with_one_interest_starts_as_the_mean_of_the_window() -> None:
    mind, mean = fresh_model("mind", interests=1), fresh_model("single", interests=1)
    users = [make_user(*LONG), make_user("i3", "i3", "i7"), make_user("i1")]

    np.testing.assert_allclose(mind.interests(users).vectors, mean.interests(users).vectors, atol=1e-4)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("accumulate", [False, True])
def test_with_one_interest_a_capsule_is_the_squash_of_the_sum_whatever_logits_and_rounds(
    rounds: int, accumulate: bool
) -> None:
    behaviors = torch.randn(1, 7, 5, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(1, 7, 1, generator=torch.Generator().manual_seed(1))

    capsules, _ = route(behaviors, torch.ones(1, 7), logits, torch.tensor([1]), rounds=rounds, accumulate=accumulate)

    np.testing.assert_allclose(
        capsules[0, 0].numpy(), oracle.squash(behaviors[0].sum(dim=0).double().numpy()), atol=1e-5
    )
