from __future__ import annotations

import math
from typing import Any

import pytest

from engine.errors import ConfigError
from trainer.options import RANGES, TrainOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("epochs", -1.0),
        ("max_seconds", math.inf),
        ("threads", 0),
        ("seed", -1),
        ("learning_rate", math.nan),
        ("horizon", "50"),
        ("negatives", 0),
        ("hardness", -0.1),
        ("click_dropout", 1.0),
        ("profile_dropout", 1.1),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"TrainOptions.{name} must be"):
        TrainOptions(**{name: value})


def test_both_ends_of_every_range_are_taken() -> None:
    for name, (least, most) in RANGES.items():
        for end in (least, most):
            if end is not None:
                assert getattr(TrainOptions(**{name: end}), name) == end
