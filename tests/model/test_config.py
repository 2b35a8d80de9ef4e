from __future__ import annotations

import json
import math
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.model import MindConfig


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
    ],
)
def test_a_wrong_value_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        MindConfig.from_dict({field: value})
