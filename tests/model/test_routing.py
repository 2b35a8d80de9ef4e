from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from engine.model.routing import count_interests, route, squash, starting_logits, warm_logits


def draw(windows: int, length: int, slots: int, size: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    behaviors = torch.randn(windows, length, size, generator=generator)
    return behaviors, torch.randn(windows, length, slots, generator=generator)


def test_each_behavior_spreads_a_weight_of_one_over_the_interests_in_use() -> None:
    behaviors, logits = draw(2, 6, 4, 5)

    _, weights = route(behaviors, torch.ones(2, 6), logits, torch.tensor([3, 4]), rounds=3, accumulate=False)

    np.testing.assert_allclose(weights.sum(dim=-1).numpy(), 1.0, atol=1e-6)
    assert weights[0, :, 3].abs().max() == 0.0


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
def test_capsules_mapped_in_place_of_clicks_are_the_same_and_so_are_all_gradients(
    rounds: int, general: bool, accumulate: bool
) -> None:
    items, logits = draw(3, 7, 4, 6)
    shared_map = torch.randn(6, 6, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    items.requires_grad_(True)
    strengths, counts = torch.rand(3, 7, generator=torch.Generator().manual_seed(3)), torch.tensor([4, 3, 1])
    fixed = {"rounds": rounds, "accumulate": accumulate, "general": general, "scale": 3.0}

    of_clicks = route(items @ shared_map, strengths, logits, counts, **fixed)
    of_capsules = route(items, strengths, logits, counts, shared_map=shared_map, **fixed)

    torch.testing.assert_close(of_capsules, of_clicks, atol=1e-5, rtol=1e-4)
    slope = torch.randn(of_clicks[0].shape, generator=torch.Generator().manual_seed(4))
    expected, got = (
        torch.autograd.grad(capsules, (items, shared_map), slope) for capsules, _weights in (of_clicks, of_capsules)
    )
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


def test_padding_takes_no_part() -> None:
    behaviors, logits = draw(1, 4, 3, 5)
    alone, _ = route(behaviors, torch.ones(1, 4), logits, torch.tensor([2]), rounds=3, accumulate=False)
    junk, junk_logits = draw(1, 3, 3, 5, seed=1)

    padded, weights = route(
        torch.cat([junk, behaviors], dim=1),
        torch.tensor([[0.0] * 3 + [1.0] * 4]),
        torch.cat([junk_logits, logits], dim=1),
        torch.tensor([2]),
        rounds=3,
        accumulate=False,
    )

    np.testing.assert_allclose(padded.numpy(), alone.numpy(), atol=1e-6)
    assert weights[:, :3].abs().max() == 0.0


def test_capsules_do_not_depend_on_the_order_of_behaviors() -> None:
    behaviors, logits = draw(1, 6, 3, 5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    ones = torch.ones(1, 6)

    straight, _ = route(behaviors, ones, logits, torch.tensor([3]), rounds=3, accumulate=False)
    shuffled, _ = route(behaviors[:, order], ones, logits[:, order], torch.tensor([3]), rounds=3, accumulate=False)

    np.testing.assert_allclose(shuffled.numpy(), straight.numpy(), atol=1e-6)


def test_an_empty_window_has_zero_capsules_and_finite_gradients() -> None:
    behaviors = torch.zeros(1, 3, 5, requires_grad=True)

    capsules, _ = route(
        behaviors, torch.zeros(1, 3), torch.zeros(1, 3, 2), torch.tensor([0]), rounds=3, accumulate=False
    )
    capsules.sum().backward()

    assert capsules.abs().max() == 0.0
    assert behaviors.grad is not None
    assert torch.isfinite(behaviors.grad).all()


def test_gradients_flow_through_the_last_round_alone() -> None:
    behaviors, logits = draw(1, 5, 3, 4)
    behaviors.requires_grad_()
    ones, counts = torch.ones(1, 5), torch.tensor([3])

    capsules, weights = route(behaviors, ones, logits, counts, rounds=3, accumulate=False)
    (got,) = torch.autograd.grad(capsules.sum(), behaviors)

    frozen = weights.detach()
    last_round = squash(torch.bmm(frozen.transpose(1, 2), behaviors))
    (expected,) = torch.autograd.grad(last_round.sum(), behaviors)
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=1e-6)


def test_squash_keeps_directions_and_shrinks_lengths_below_one() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.1], [0.0, 0.0], [3e8, 0.0]])

    got = squash(vectors)

    expected = torch.tensor([[0.6 * 25 / 26, 0.8 * 25 / 26], [0.0, 0.01 / 1.01], [0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-4, atol=1e-7)


def test_squash_of_half_precision_stays_finite_in_float32() -> None:
    got = squash(torch.full((1, 128), 100.0, dtype=torch.float16))

    assert got.dtype == torch.float32
    assert torch.isfinite(got).all()


def test_repeated_clicks_add_no_interest() -> None:
    rows = np.array([[5, 5, 2, 5, 2, 2, 5, 5], [1, 2, 3, 4, 5, 6, 7, 8]])

    assert count_interests(rows, interests=4, dynamic=True).tolist() == [1, 3]


def test_without_dynamic_interests_every_window_with_a_click_has_all() -> None:
    rows = np.array([[0, 0, 1], [0, 0, 0]])

    assert count_interests(rows, interests=4, dynamic=False).tolist() == [4, 0]


@pytest.mark.parametrize(
    ("distinct", "plain", "general"),
    [(0, 0, 0), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 2, 3), (7, 2, 3), (8, 3, 4), (50, 4, 4)],
)
def test_a_general_interest_comes_on_top_of_several_and_within_k(distinct: int, plain: int, general: int) -> None:
    rows = np.pad(np.arange(1, distinct + 1), (0, 50 - distinct))[None]

    assert count_interests(rows, interests=4, dynamic=True).tolist() == [plain]
    assert count_interests(rows, interests=4, dynamic=True, general=True).tolist() == [general]


def test_a_general_interest_is_the_whole_window_and_takes_nothing_from_the_others() -> None:
    torch.manual_seed(3)
    behaviors, logits, strengths = torch.randn(2, 6, 8), torch.randn(2, 6, 4), torch.rand(2, 6)

    capsules, weights = route(
        behaviors, strengths, logits, torch.tensor([4, 1]), rounds=3, accumulate=False, general=True
    )

    whole = squash(torch.einsum("bld,bl->bd", behaviors, strengths))
    torch.testing.assert_close(capsules[:, 0], whole)
    torch.testing.assert_close(weights[0, :, 1:].sum(dim=-1), strengths[0])
    assert not weights[1, :, 1:].any()
    assert not capsules[1, 1:].any()


def test_starting_logits_depend_on_item_slot_and_seed_alone() -> None:
    logits = starting_logits(["a", "b", "ü"], interests=20, seed=7)

    np.testing.assert_array_equal(starting_logits(["ü", "a"], interests=20, seed=7)[1:], logits[[3, 1]])
    np.testing.assert_array_equal(starting_logits(["a", "b", "ü"], interests=3, seed=7), logits[:, :3])
    assert (starting_logits(["a"], interests=20, seed=8)[1] != logits[1]).all()
    assert np.unique(logits[1:]).size == 60
    assert not logits[0].any()


def test_starting_logits_are_standard_normal() -> None:
    logits = starting_logits([str(number) for number in range(5_000)], interests=4, seed=1)[1:]

    assert abs(logits.mean()) < 0.02
    assert abs(logits.std() - 1.0) < 0.02
    assert np.abs(np.corrcoef(logits.T) - np.eye(4)).max() < 0.05


def test_starting_logits_are_the_same_in_another_process() -> None:
    code = (
        "import sys; from engine.model.routing import starting_logits; "
        "sys.stdout.write(starting_logits(['a', 'b'], interests=4, seed=7).tobytes().hex())"
    )

    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert other == starting_logits(["a", "b"], interests=4, seed=7).tobytes().hex()


def test_no_items_have_no_starting_logits() -> None:
    assert starting_logits([], interests=4, seed=7).shape == (1, 4)


def test_warm_logits_lead_to_the_previous_interests_and_seed_the_slots_that_had_none() -> None:
    behaviors = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    seeded = torch.tensor([[[0.3, 0.4, 0.5], [0.6, 0.7, 0.8]]])
    previous = torch.tensor([[[8.0, 0.0], [0.0, 0.0], [0.0, 0.5]]])

    logits = warm_logits(behaviors, seeded, previous, scale=10.0)

    assert logits.tolist() == [[[10.0, pytest.approx(0.4), 0.0], [0.0, pytest.approx(0.7), 20.0]]]


def test_warm_logits_without_previous_interests_are_the_seeded_ones() -> None:
    behaviors, seeded = draw(2, 5, 3, 4)

    assert torch.equal(warm_logits(behaviors, seeded, torch.zeros(2, 3, 4), scale=30.0), seeded)
