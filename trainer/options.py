"""TrainOptions: how one run learns, as opposed to what the model is (`engine.model.MindConfig`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from engine.errors import ConfigError
from trainer.negatives import SAMPLINGS

Range = tuple[float, float | None]
RANGES: Mapping[str, Range] = {
    "batch_size": (1, None),
    "epochs": (1e-6, None),
    "max_seconds": (1e-3, None),
    "threads": (1, None),
    "seed": (0, None),
    "learning_rate": (0.0, None),
    "warmup_share": (0.0, 1.0),
    "final_rate_share": (0.0, 1.0),
    "weight_decay": (0.0, None),
    "horizon": (1, None),
    "negatives": (1, None),
    "hardness": (0.0, None),
    "routing_variance_penalty": (0.0, None),
    "behavior_dropout": (0.0, 0.99),
    "click_dropout": (0.0, 0.99),
    "id_dropout": (0.0, 0.99),
    "profile_dropout": (0.0, 1.0),
}
"""Least and greatest value of each number; None for no bound."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How one run learns; the defaults are measured in docs/model.md."""

    batch_size: int = 512
    """Samples of one step."""
    epochs: float = 3.0
    """Passes over the samples."""
    max_seconds: float = 600.0
    """Wall time of the steps; fewer are made where they would not fit."""
    threads: int = 2
    """Threads of torch."""
    seed: int = 7
    device: str = "cpu"
    learning_rate: float = 3e-3
    """Peak, after the warm-up."""
    warmup_share: float = 0.03
    """Share of the steps in which the rate rises."""
    final_rate_share: float = 0.01
    """Share of the peak that the rate ends at."""
    weight_decay: float = 0.0
    start_from_cooccurrence: bool = True
    """Start item vectors from which items are clicked near one another (`trainer/start.py`); False: at random."""
    label_aware: bool = False
    """Score negatives with the vector that attention made for the target, as the paper does; False: every item by its
    best interest, as lists are ranked."""
    horizon: int = 50
    """The target is one of the next so many clicks after the window."""
    near_targets: bool = True
    """Draw near clicks more often: the one at distance d with a chance in proportion to log(1 + 1 / d)."""
    novel_targets: bool = True
    """Learn only targets that are not in their window, since lists leave seen items out."""
    negatives: int | None = None
    """Drawn negatives a step; None takes 2,048, or every item where there are no more and sampling is uniform."""
    sampling: str = "uniform"
    """Where negatives come from: one of `negatives.SAMPLINGS`."""
    hardness: float = 0.0
    """Beta of REMI's interest-aware hard negatives, 0 for none; not for the softmax over every item."""
    routing_variance_penalty: float = 0.0
    """Factor of REMI's routing regularization: the variance of each interest's routing weights over the clicks."""
    behavior_dropout: float = 0.2
    """Share of the numbers of behavior vectors set to 0."""
    click_dropout: float = 0.2
    """Share of a window's clicks left out."""
    id_dropout: float = 0.2
    """Share of items that a step knows by their fields alone, so that new items fit in."""
    profile_dropout: float = 0.1
    """Share of profiles taken as unknown, so that the unknown rows learn."""

    def __post_init__(self) -> None:
        for part in fields(self):
            self._check_range(part.name, part.default)
        if self.sampling not in SAMPLINGS:
            raise ConfigError("TrainOptions.sampling", got=self.sampling, expected=f"one of {', '.join(SAMPLINGS)}")
        if self.sampling == "in-batch" and self.batch_size < 2:
            expected = "at least 2 with in-batch negatives, which are the other targets"
            raise ConfigError("TrainOptions.batch_size", got=self.batch_size, expected=expected)

    def _check_range(self, name: str, default: object) -> None:
        value = getattr(self, name)
        if name not in RANGES or (value is None and default is None):
            return
        least, most = RANGES[name]
        is_whole = default is None or isinstance(default, int)
        fits = type(value) is int or (type(value) is float and math.isfinite(value) and not is_whole)
        if not fits or value < least or (most is not None and value > most):
            bounds = f"of at least {least:g}" if most is None else f"from {least:g} to {most:g}"
            expected = f"a {'whole' if is_whole else 'finite'} number {bounds}"
            raise ConfigError(f"TrainOptions.{name}", got=value, expected=expected)
