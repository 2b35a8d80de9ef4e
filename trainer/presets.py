"""Presets: the two models that have a name, as (what it is, how it learns)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from engine.errors import ConfigError
from engine.model import MindConfig
from trainer.options import TrainOptions

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


def recommended(*, sessions: bool = False) -> Preset:
    """Return what is worth serving, and what `mindstream train` makes: the defaults of both classes.

    With *sessions*, which end after a few clicks, the next click is all there is to learn: no farther horizon, hard
    negatives and less dropout, as docs/model.md measures them.
    """
    options = TrainOptions()
    if sessions:
        options = replace(options, horizon=1, hardness=1.0, click_dropout=0.1, behavior_dropout=0.1)
    return MindConfig(), options


PRESETS = ("paper", "recommended")


def preset_of(name: str, *, sessions: bool) -> Preset:
    """Return the preset called *name*, one of `PRESETS`, for the sessions or else for the users that it learns from."""
    return paper() if name == "paper" else recommended(sessions=sessions)


def overridden(preset: Preset, overrides: Sequence[str]) -> Preset:
    """Return *preset* with fields of its config or options changed, each given as `name=value`.

    Values are written as in JSON; a bare word is a text, and `inf` is a number.

    Raises:
        ConfigError: there is no such field, or the value doesn't fit it.
    """
    config, options = preset
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ConfigError("--set", got=override, expected="name=value")
        value = _value(text)
        if any(field.name == name for field in fields(MindConfig)):
            config = MindConfig.from_dict({**config.to_dict(), name: value})
        else:
            options = _with_option(options, name, value)
    return config, options


def _with_option(options: TrainOptions, name: str, value: Any) -> TrainOptions:
    known = {field.name: getattr(options, field.name) for field in fields(TrainOptions)}
    if name not in known:
        raise ConfigError("--set", got=name, expected="a field of MindConfig or TrainOptions")
    kind = int if known[name] is None else type(known[name])
    fits = type(value) in (int, float) if kind is float else type(value) is kind
    if not fits or (kind in (int, float) and not math.isfinite(value)):
        raise ConfigError(f"--set {name}", got=value, expected=f"a finite {kind.__name__}")
    changed: dict[str, Any] = {name: kind(value)}
    return replace(options, **changed)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
