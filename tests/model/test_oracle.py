"""The model against the oracle, on drawn windows: any size, strengths, rounds and padding."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model import MindConfig
from engine.model.extractors import Extractor, make_extractor
from engine.model.features import click_strengths
from engine.model.network import attend
from engine.model.routing import count_interests, route, squash
from tests.model import oracle
from tests.model.mind_builders import SMALL, make_model

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(1, 9)
drawn = settings(deadline=None, max_examples=60)

ITEMS = tuple(f"i{number}" for number in range(30))


def draw_window(seed: int, length: int, *, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """(L, D) float32 behaviors and (L,) float32 strengths."""
    random = np.random.default_rng(seed)
    behaviors = (random.standard_normal((length, 6)) * spread).astype(np.float32)
    return behaviors, random.uniform(0.05, 3.0, length).astype(np.float32), random


def padded(values: np.ndarray, padding: int, *, junk: float) -> torch.Tensor:
    """One window with *padding* places of *junk* before it."""
    before = np.full((padding, *values.shape[1:]), junk, dtype=values.dtype)
    return torch.from_numpy(np.concatenate([before, values])[None])


def extract(
    extractor: Extractor, items: np.ndarray, strengths: np.ndarray, rows: np.ndarray, *, count: int, padding: int
) -> tuple[np.ndarray, np.ndarray]:
    """The used capsules, and the weights of the clicks; padding must weigh nothing and unused slots be zero."""
    with torch.no_grad():
        capsules, weights = extractor(
            extractor.fold(padded(items, padding, junk=7.0)),
            padded(strengths, padding, junk=0.0),
            padded(rows, padding, junk=0),
            torch.tensor([count]),
        )
    assert not weights[0, :padding].any()
    assert not weights[0, :, count:].any()
    assert not capsules[0, count:].any()
    return capsules[0, :count].numpy(), weights[0, padding:, :count].numpy()


@drawn
@given(
    seed=seeds,
    length=lengths,
    count=st.integers(1, 4),
    rounds=st.integers(1, 5),
    padding=st.integers(0, 3),
    accumulate=st.booleans(),
    scale=st.sampled_from([1.0, 5.0]),
    general=st.booleans(),
)
def test_routing_follows_algorithm_1(
    seed: int, length: int, count: int, rounds: int, padding: int, accumulate: bool, scale: float, general: bool
) -> None:
    behaviors, strengths, random = draw_window(seed, length, spread=0.5)
    logits = random.standard_normal((length, 4)).astype(np.float32)

    capsules, weights = route(
        padded(behaviors, padding, junk=7.0),
        padded(strengths, padding, junk=0.0),
        padded(logits, padding, junk=-3.0),
        torch.tensor([count]),
        rounds=rounds,
        accumulate=accumulate,
        scale=scale,
        general=general,
    )

    expected = oracle.route(
        behaviors.tolist(),
        logits.tolist(),
        strengths.tolist(),
        count,
        rounds=rounds,
        accumulate=accumulate,
        scale=scale,
        general=general,
    )
    np.testing.assert_allclose(capsules[0].numpy(), expected[0], atol=1e-4)
    np.testing.assert_allclose(weights[0, padding:].numpy(), expected[1], atol=1e-3)


@drawn
@given(seed=seeds, length=lengths, count=st.integers(1, 4), padding=st.integers(0, 3), own=st.booleans())
def test_maps_per_interest_and_per_place_follow_the_same_equations_from_logits_of_zero(
    seed: int, length: int, count: int, padding: int, own: bool
) -> None:
    behaviors, strengths, _ = draw_window(seed, length, spread=0.5)
    torch.manual_seed(seed)
    config = replace(SMALL, dimensions=6, max_clicks=12, extractor="capsnet" if own else "comirec-dr")
    extractor = make_extractor(config, ITEMS)
    maps = dict(extractor.named_parameters())["maps"].detach().double().numpy()

    got = extract(extractor, behaviors, strengths, np.arange(1, length + 1), count=count, padding=padding)

    mapped = np.zeros((length, 4, 6))
    for i in range(length):
        for j in range(4):
            mapped[i, j] = behaviors[i].astype(np.float64) @ (maps[length - 1 - i, j] if own else maps[j])
    expected = oracle.route_mapped(mapped, np.zeros((length, 4)).tolist(), strengths.tolist(), count, rounds=3)
    np.testing.assert_allclose(got[0], expected[0][:count], atol=1e-4)
    np.testing.assert_allclose(got[1], expected[1][:, :count], atol=1e-3)


@drawn
@given(seed=seeds, length=lengths, count=st.integers(1, 4), padding=st.integers(0, 3))
def test_self_attention_follows_its_equation(seed: int, length: int, count: int, padding: int) -> None:
    behaviors, strengths, _ = draw_window(seed, length)
    torch.manual_seed(seed)
    extractor = make_extractor(replace(SMALL, dimensions=6, max_clicks=12, extractor="comirec-sa"), ITEMS)
    parts = {name: value.detach().double().numpy() for name, value in extractor.named_parameters()}

    got = extract(extractor, behaviors, strengths, np.arange(1, length + 1), count=count, padding=padding)

    expected = oracle.self_attention(
        behaviors.astype(np.float64),
        parts["places"][:length][::-1],
        (parts["hidden.weight"], parts["hidden.bias"]),
        (parts["heads.weight"][:count], parts["heads.bias"][:count]),
        strengths.tolist(),
    )
    np.testing.assert_allclose(got[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-4)


@drawn
@given(seed=seeds, length=lengths, padding=st.integers(0, 3))
def test_the_single_vector_is_the_weighted_mean(seed: int, length: int, padding: int) -> None:
    behaviors, strengths, _ = draw_window(seed, length)
    extractor = make_extractor(replace(SMALL, dimensions=6, interests=1, extractor="single"), ITEMS)

    got, _ = extract(extractor, behaviors, strengths, np.arange(1, length + 1), count=1, padding=padding)

    expected = sum(weight * vector for weight, vector in zip(strengths, behaviors, strict=True)) / strengths.sum()
    np.testing.assert_allclose(got[0], expected, atol=1e-5)


@drawn
@given(seed=seeds, length=lengths, count=st.integers(1, 4), padding=st.integers(0, 3), rounds=st.integers(1, 4))
def test_k_means_follows_lloyd(seed: int, length: int, count: int, padding: int, rounds: int) -> None:
    behaviors, strengths, random = draw_window(seed, length)
    rows = random.permutation(len(ITEMS))[:length] + 1
    extractor = make_extractor(replace(SMALL, dimensions=6, rounds=rounds, extractor="kmeans"), ITEMS)
    numbers = dict(extractor.named_buffers())["logits"].numpy()[rows, 0]

    got = extract(extractor, behaviors, strengths, rows, count=count, padding=padding)

    expected = oracle.k_means(behaviors.astype(np.float64), numbers.tolist(), strengths.tolist(), count, rounds=rounds)
    np.testing.assert_allclose(got[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(got[1], expected[1], atol=1e-4)


@drawn
@given(seed=seeds, length=st.integers(4, 9), count=st.integers(1, 4), padding=st.integers(0, 3))
def test_ward_merges_what_grows_least_and_shows_the_medoids(seed: int, length: int, count: int, padding: int) -> None:
    behaviors, strengths, random = draw_window(seed, length)
    rows = random.permutation(len(ITEMS))[:length] + 1
    extractor = make_extractor(replace(SMALL, dimensions=6, extractor="ward"), ITEMS)

    got = extract(extractor, behaviors, strengths, rows, count=count, padding=padding)

    expected = oracle.ward(behaviors.astype(np.float64), strengths.tolist(), count)
    np.testing.assert_array_equal(got[0], expected[0].astype(np.float32))
    np.testing.assert_allclose(got[1], expected[1], atol=1e-6)


@drawn
@given(seed=seeds, exponent=st.integers(-6, 6))
def test_squash_is_its_equation_at_every_length(seed: int, exponent: int) -> None:
    vector = np.random.default_rng(seed).standard_normal(6) * 10.0**exponent

    got = squash(torch.from_numpy(vector).float().unsqueeze(0))[0].numpy()

    np.testing.assert_allclose(got, oracle.squash(vector), rtol=1e-3, atol=1e-7)


@drawn
@given(seed=seeds, slots=st.integers(1, 4), power=st.sampled_from([0.0, 0.5, 1.0, 3.0, 20.0, math.inf]))
def test_attention_is_its_equation_for_scores_of_any_sign(seed: int, slots: int, power: float) -> None:
    random = np.random.default_rng(seed)
    interests = random.standard_normal((4, 6)).astype(np.float32)
    target = random.standard_normal(6).astype(np.float32)

    used = torch.arange(4).unsqueeze(0) < slots
    got = attend(torch.from_numpy(interests[None]), used, torch.from_numpy(target[None]), power=power)

    expected = oracle.attend(list(interests[:slots].astype(np.float64)), target.astype(np.float64), power=power)
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-4)


@drawn
@given(clicks=st.lists(st.integers(1, 40), max_size=60), interests=st.integers(1, 7))
def test_interest_counts_are_those_of_distinct_items(clicks: list[int], interests: int) -> None:
    rows = np.array([clicks], dtype=np.int64).reshape(1, -1)

    got = count_interests(np.pad(rows, ((0, 0), (3, 0))), interests=interests, dynamic=True)

    assert got.tolist() == [oracle.interest_count(clicks, interests=interests)]


@pytest.mark.parametrize(("distinct", "expected"), [(0, 0), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (33, 5)])
def test_the_interest_count_at_the_numbers_where_public_formulas_part(distinct: int, expected: int) -> None:
    # For n = 5 others give 1 (natural logarithm) or 3 (rounded up); for n = 33 they give 3 or 6.
    rows = np.pad(np.arange(1, distinct + 1), (50 - distinct, 0))[None]

    assert count_interests(rows, interests=8, dynamic=True).tolist() == [expected]
    assert oracle.interest_count(range(distinct), interests=8) == expected


@drawn
@given(row=st.integers(1, 20))
def test_item_vectors_are_the_pooled_vectors_of_what_an_item_has(row: int) -> None:
    model = make_model()
    tensors = {name: tensor.astype(np.float64) for name, tensor in model.parts()[2].items()}

    fields = [tensors["item_fields.weight"][int(field)] for field in tensors["item_field_rows"][row] if field > 0]

    expected = oracle.pooled([tensors["item_ids.weight"][row], *fields])
    np.testing.assert_allclose(model.all_item_vectors()[1][row - 1], expected, atol=1e-6)


@drawn
@given(weight=st.floats(0.0, 1e6), power=st.floats(0.1, 2.0))
def test_click_weights_become_capped_logarithmic_factors(weight: float, power: float) -> None:
    config = MindConfig(weight_power=power)

    got = click_strengths(np.array([weight]), config)

    np.testing.assert_allclose(got, [min((math.log1p(weight) / math.log(2)) ** power, 3.0)], rtol=1e-5, atol=1e-30)
