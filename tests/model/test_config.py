from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.model import MindConfig
from tests.model.mind_builders import SMALL, make_model, make_user


def test_a_config_survives_json() -> None:
    config = MindConfig(attention_power=math.inf, hidden=(3, 4), recency=False)

    assert MindConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interests", 0),
        ("dimensions", 0),
        ("rounds", 0),
        ("weight_power", -1.0),
        ("attention_power", math.nan),
        ("hidden", [0]),
        ("hidden", "wide"),
        ("recency", 1),
        ("interests", 2.5),
        ("made_up", 1),
        ("extractor", 3),
        ("agreement_scale", math.inf),
        ("interest_scale", math.inf),
    ],
)
def test_a_wrong_value_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        MindConfig.from_dict({field: value})


def test_a_config_of_a_newer_build_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"MindConfig\.heads must be left out, .*; a newer build wrote it"):
        MindConfig.from_dict(MindConfig().to_dict() | {"heads": 2})


def test_a_config_of_an_older_build_takes_the_defaults() -> None:
    older = MindConfig(rounds=2).to_dict()
    del older["extractor"]

    assert MindConfig.from_dict(older) == MindConfig(rounds=2)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 7)])
def test_interests_have_the_length_of_item_vectors_whatever_the_hidden_sizes(hidden: tuple[int, ...]) -> None:
    model = make_model(replace(SMALL, hidden=hidden))

    assert model.interests([make_user("i1")]).vectors.shape == (1, 4, SMALL.dimensions)
    assert model.all_item_vectors()[1].shape == (20, SMALL.dimensions)


def test_a_general_interest_needs_two_others_and_the_routing_of_mind() -> None:
    assert MindConfig(interests=3).has_general_interest
    assert not MindConfig(interests=2).has_general_interest
    assert not MindConfig(extractor="kmeans").has_general_interest
    assert not MindConfig(general_interest=False).has_general_interest
