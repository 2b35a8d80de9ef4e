from __future__ import annotations

import math

import pytest

from engine.errors import ConfigError
from engine.model import MindConfig
from trainer.options import TrainOptions
from trainer.presets import overridden, paper, preset_of, recommended


def test_paper_is_mind_as_published() -> None:
    config, options = paper()

    assert (config.dimensions, config.interests, config.dynamic_interests) == (64, 4, True)
    assert not config.accumulate_logits
    assert not config.general_interest
    assert not config.recency
    assert math.isinf(config.attention_power)
    assert options.label_aware
    assert not options.start_from_cooccurrence


def test_recommended_is_what_the_classes_have_as_defaults() -> None:
    assert recommended() == (MindConfig(), TrainOptions())


def test_sessions_are_learned_by_their_next_click_alone_with_the_same_model() -> None:
    config, options = preset_of("recommended", sessions=True)

    assert config == MindConfig()
    assert options.horizon == 1
    assert preset_of("recommended", sessions=False) == recommended()
    assert preset_of("paper", sessions=True) == preset_of("paper", sessions=False) == paper()


def test_overrides_reach_model_and_training() -> None:
    config, options = overridden(
        recommended(),
        ["interests=2", "hidden=[32, 16]", "attention_power=inf", "horizon=5", "epochs=1", "sampling=mixed"],
    )

    assert (config.interests, config.hidden, config.attention_power) == (2, (32, 16), math.inf)
    assert (options.horizon, options.epochs, options.sampling) == (5, 1.0, "mixed")
    assert isinstance(options.epochs, float)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("interests", "--set must be name=value, got 'interests'"),
        ("interest=2", "--set must be a field of MindConfig or TrainOptions, got 'interest'"),
        ("interests=two", "MindConfig.interests must be of type int, got 'two'"),
        ("interests=0", "MindConfig.interests must be at least 1"),
        ("horizon=2.5", "--set horizon must be a finite int, got 2.5"),
        ("learning_rate=NaN", "--set learning_rate must be a finite float"),
        ("label_aware=1", "--set label_aware must be a finite bool, got 1"),
        ("sampling=zipf", "TrainOptions.sampling must be one of"),
    ],
)
def test_an_override_that_fits_nothing_is_a_sentence(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overridden(recommended(), [override])
