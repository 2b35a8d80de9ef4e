from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import ConfigError
from engine.model import MindConfig
from tests.trainer.log_builders import draw_groups, make_log
from trainer.loop import Progress, train
from trainer.negatives import SAMPLINGS
from trainer.options import TrainOptions
from trainer.samples import user_input
from trainer.schedule import Plan, learning_rate
from trainer.steps import draw_distances

CONFIG = MindConfig(dimensions=16, interests=2, max_clicks=10, hidden=(8,))
OPTIONS = TrainOptions(batch_size=64, epochs=6.0, threads=1, start_from_cooccurrence=False, learning_rate=0.02)


def ticking(step_s: float) -> Callable[[], float]:
    """A clock that moves on by *step_s* whenever it is read."""
    now = [0.0]

    def read() -> float:
        now[0] += step_s
        return now[0]

    return read


def test_near_targets_are_drawn_log_uniformly_and_never_beyond_the_users_clicks() -> None:
    reach = np.tile([1, 2, 50], 40_000)

    found = draw_distances(np.random.default_rng(5), reach, near=True)

    assert (found >= 0).all()
    assert (found < reach).all()
    shares = np.bincount(found[reach == 50], minlength=50) / 40_000
    numbers = np.arange(50)
    np.testing.assert_allclose(shares, np.log((numbers + 2) / (numbers + 1)) / np.log(51), atol=0.01)


def test_without_near_targets_all_clicks_of_the_horizon_are_drawn_alike() -> None:
    found = draw_distances(np.random.default_rng(5), np.full(40_000, 4), near=False)

    np.testing.assert_allclose(np.bincount(found) / 40_000, 0.25, atol=0.01)


def test_the_loss_falls_on_a_log_with_structure() -> None:
    seen: list[Progress] = []

    train(draw_groups(), CONFIG, OPTIONS, seen.append)

    assert seen[-1].loss < 0.85 * seen[0].loss
    assert seen[-1].step == seen[-1].steps == seen[-1].planned_steps


@pytest.mark.parametrize("negatives", [None, 16])
def test_a_trained_model_prefers_the_users_own_group(negatives: int | None) -> None:
    log = draw_groups()

    model = train(log, CONFIG, replace(OPTIONS, negatives=negatives, novel_targets=False))

    item_ids, vectors = model.all_item_vectors()
    found = model.interests([user_input(history, max_clicks=10) for history in log.histories[:8]])
    for place in range(8):
        best = np.argsort(-(found.vectors[place] @ vectors.T).max(axis=0))[:8]
        own = sum(item_ids[index].startswith(f"g{place % 4}-") for index in best)
        assert own >= 6


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_way_to_draw_negatives_learns_the_users_own_group(sampling: str) -> None:
    log = draw_groups()
    options = replace(OPTIONS, sampling=sampling, negatives=16, novel_targets=False)

    model = train(log, CONFIG, replace(options, hardness=0.1, routing_variance_penalty=0.1))

    item_ids, vectors = model.all_item_vectors()
    found = model.interests([user_input(history, max_clicks=10) for history in log.histories[:8]])
    for place in range(8):
        best = np.argsort(-(found.vectors[place] @ vectors.T).max(axis=0))[:8]
        assert sum(item_ids[index].startswith(f"g{place % 4}-") for index in best) >= 5


def test_unknown_samplings_and_in_batch_negatives_without_a_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"TrainOptions.sampling must be one of uniform, .*, got 'zipf'"):
        TrainOptions(sampling="zipf")
    with pytest.raises(ConfigError, match=r"batch_size must be at least 2 with in-batch negatives"):
        TrainOptions(sampling="in-batch", batch_size=1)


@pytest.mark.parametrize("start_from_cooccurrence", [False, True])
def test_the_same_run_gives_the_same_weights(start_from_cooccurrence: bool) -> None:
    options = replace(OPTIONS, epochs=1.0, start_from_cooccurrence=start_from_cooccurrence)

    first, second = (train(draw_groups(), CONFIG, options).parts()[2] for _ in range(2))

    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, second[name])


def test_another_seed_gives_other_weights() -> None:
    options = replace(OPTIONS, epochs=1.0)

    first = train(draw_groups(), CONFIG, options).parts()[2]["shared_map"]
    second = train(draw_groups(), CONFIG, replace(options, seed=8)).parts()[2]["shared_map"]

    assert np.abs(first - second).max() > 0


def test_every_part_of_the_network_learns() -> None:
    log = draw_groups()
    still = replace(OPTIONS, learning_rate=0.0, epochs=1.0)

    before = train(log, CONFIG, still).parts()[2]
    after = train(log, CONFIG, OPTIONS).parts()[2]

    unmoved = [name for name in before if name != "item_field_rows" and np.array_equal(before[name], after[name])]
    assert unmoved == ["profile.directions"]  # there is no number in these profiles


def test_the_start_puts_items_of_one_group_together() -> None:
    model = train(draw_groups(), CONFIG, replace(OPTIONS, learning_rate=0.0, start_from_cooccurrence=True))

    item_ids, vectors = model.all_item_vectors()
    scores = vectors @ vectors.T
    same = np.array([[left[:2] == right[:2] for right in item_ids] for left in item_ids])
    off_diagonal = ~np.eye(len(item_ids), dtype=bool)
    assert scores[same & off_diagonal].mean() > 0.5
    assert abs(scores[~same].mean()) < 0.01


def test_a_run_out_of_time_is_shortened_and_says_so() -> None:
    seen: list[Progress] = []
    options = replace(OPTIONS, epochs=100.0, max_seconds=30.0)

    train(draw_groups(), CONFIG, options, seen.append, clock=ticking(1.0))

    last = seen[-1]
    assert last.steps == last.step < last.planned_steps
    assert last.seconds <= 31.0


def test_a_plan_grows_back_when_the_pace_does() -> None:
    plan = Plan(100, max_seconds=100.0, started=0.0)

    plan.hold_against_clock(10, 50.0)  # 5 s a step: 10 more fit
    shortened = plan.steps
    plan.hold_against_clock(20, 51.0)  # 0.1 s a step: all fit

    assert shortened == 20
    assert plan.steps == 100


def test_the_rate_rises_then_falls_to_its_share() -> None:
    options = TrainOptions(learning_rate=1.0, warmup_share=0.1, final_rate_share=0.01)

    rates = [learning_rate(step, 100, options) for step in range(100)]

    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.02


def test_the_threads_of_torch_are_given_back() -> None:
    before = torch.get_num_threads()

    train(draw_groups(users=4), CONFIG, replace(OPTIONS, epochs=0.1, threads=before + 1))

    assert torch.get_num_threads() == before


def test_a_log_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least two clicks"):
        train(make_log({"u1": ["a"], "u2": ["b"]}), CONFIG, OPTIONS)


def test_new_items_fit_in_when_ids_are_dropped() -> None:
    model = train(draw_groups(), CONFIG, replace(OPTIONS, id_dropout=0.5, epochs=1.0))

    assert np.isfinite(model.all_item_vectors()[1]).all()
