"""Presets: the two models that have a name, as (what it is, how it learns)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from engine.model import MindConfig
from trainer.loop import TrainOptions

Preset = tuple[MindConfig, TrainOptions]


def paper() -> Preset:
    """Return MIND as published: logits assigned, interests counted by window, ReLU layers, hard label-aware attention.

    The target is the click after the window; negatives are uniform, shared by the batch, with the logQ correction.
    """
    config = MindConfig(
        dimensions=64,
        interests=4,
        accumulate_logits=False,
        agreement_scale=1.0,
        dynamic_interests=True,
        general_interest=False,
        recency=False,
        residual=False,
        attention_power=math.inf,
        normalize_interests=False,
    )
    options = TrainOptions(
        epochs=20.0,
        max_seconds=300.0,
        weight_decay=0.0,
        start_from_cooccurrence=False,
        label_aware=True,
        learning_rate=1e-3,
        horizon=1,
        near_targets=False,
        novel_targets=False,
        behavior_dropout=0.0,
        click_dropout=0.0,
        id_dropout=0.0,
        profile_dropout=0.0,
    )
    return config, options


def recommended() -> Preset:
    """Return what is worth serving, and what `mindstream train` makes: the defaults of both classes."""
    return MindConfig(), TrainOptions()


PRESETS: Mapping[str, Callable[[], Preset]] = {"paper": paper, "recommended": recommended}
