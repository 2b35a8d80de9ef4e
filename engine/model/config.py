"""MindConfig: what a model is, as opposed to how a process runs.

It travels with the weights, in every published version, and a retrain inherits it; `routing_seed` above all, so that a
user's interests keep their places from version to version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from engine.errors import ConfigError

EXTRACTORS = ("mind", "comirec-sa", "comirec-dr", "single", "capsnet", "kmeans", "ward")
"""Names that `MindConfig.extractor` may have; `engine/model/extractors/` explains each."""

MEANT_WHEN_ABSENT: Mapping[str, bool] = {"general_interest": False}
"""What a stored config means that was written before the field was there, where that is not today's default."""

UNKNOWN = "left out, as this build has no such field; a newer build wrote it, run that one"

LOWEST: Mapping[str, float] = {
    "dimensions": 1,
    "interests": 1,
    "max_clicks": 1,
    "rounds": 1,
    "agreement_scale": 0.0,
    "recency_start": 0.0,
    "weight_power": 0.0,
    "weight_cap": 1.0,
    "attention_power": 0.0,
    "interest_scale": 0.01,
    "profile_dimensions": 1,
    "routing_seed": 0,
}
"""Smallest value of each numeric field."""


@dataclass(frozen=True, slots=True)
class MindConfig:
    """Shape and behavior of one MIND model; the defaults are measured in docs/model.md."""

    extractor: str = "mind"
    """How clicks become interests: one of `EXTRACTORS`."""
    dimensions: int = 128
    """D, length of item and interest vectors."""
    interests: int = 4
    """K, the most interests a user can have; 1 with the extractor `single`."""
    max_clicks: int = 50
    """L, the clicks that routing sees: the newest known ones."""
    rounds: int = 3
    """Iterations of routing, of which only the last one has gradients, and of k-means; the others don't iterate."""
    accumulate_logits: bool = False
    """Add each round's agreement to the routing logits (most public code) instead of assigning it (the paper).

    For the extractor `mind`; `comirec-dr` and `capsnet` always add it.
    """
    agreement_scale: float = 30.0
    """Factor on the agreement of behavior and capsule: 1 is the paper's, more separates the interests.

    For the extractor `mind`; `comirec-dr` and `capsnet` have 1.
    """
    dynamic_interests: bool = True
    """Use max(1, min(K, floor(log2 n))) interests for a window of n distinct items; False: always K."""
    general_interest: bool = True
    """Where a window has several interests, the first takes every click whole and the others compete; False: all do.

    For the extractor `mind` with K of at least 3. False is the paper.
    """
    recency: bool = True
    """Multiply routing weights by a learned weight of the click's age, counted in clicks."""
    recency_start: float = 0.05
    """The learned weight starts as exp(-recency_start * age)."""
    weight_power: float = 0.0
    """Multiply routing weights by (log1p(weight) / log 2) ** weight_power; 0 ignores the clicks' weights."""
    weight_cap: float = 3.0
    """Bound of that factor, so that one click of weight 80,000 doesn't drown a window."""
    hidden: tuple[int, ...] = (128,)
    """Sizes of the ReLU layers over concat(profile, capsule), before the last layer, which always leads to D.

    So an interest has the length of an item vector whatever stands here, and none of these sizes need be D.
    """
    residual: bool = True
    """Add the layers' answer to the capsule; False: the layers' answer alone, as in the paper."""
    attention_power: float = math.inf
    """p of the label-aware attention in training: 0 even, inf the best interest alone."""
    normalize_interests: bool = True
    """Give every interest one learned length, so that an item's own length can carry its popularity."""
    interest_scale: float = 8.0
    """Where that learned length starts."""
    profile_dimensions: int = 8
    """Length of each profile attribute's vector."""
    routing_seed: int = 7
    """Seed of the starting logits of `mind` and of the first means of `kmeans`; keep it between retrains."""

    def __post_init__(self) -> None:
        for part in fields(self):
            _check_type(part.name, getattr(self, part.name), part.default)
        for name, least in LOWEST.items():
            value = getattr(self, name)
            if math.isnan(value) or value < least:
                raise ConfigError(f"MindConfig.{name}", got=value, expected=f"at least {least:g}")
            if math.isinf(value) and name != "attention_power":
                raise ConfigError(f"MindConfig.{name}", got=value, expected="a finite number")
        for size in self.hidden:
            if size < 1:
                raise ConfigError("MindConfig.hidden", got=self.hidden, expected="sizes of at least 1")
        if self.extractor not in EXTRACTORS:
            expected = f"one of {', '.join(EXTRACTORS)}"
            raise ConfigError("MindConfig.extractor", got=self.extractor, expected=expected)
        if self.extractor == "single" and self.interests != 1:
            raise ConfigError("MindConfig.interests", got=self.interests, expected="1 with the extractor single")

    @property
    def has_general_interest(self) -> bool:
        """Whether the first interest of a window with several takes every click whole."""
        return self.general_interest and self.extractor == "mind" and self.interests > 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite attention power is written "inf"."""
        values = asdict(self)
        values["hidden"] = list(self.hidden)
        values["attention_power"] = "inf" if math.isinf(self.attention_power) else self.attention_power
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the config that `to_dict` wrote.

        Raises:
            ConfigError: a field is unknown, of a wrong type or out of range.
        """
        known = {field.name for field in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"MindConfig.{name}", got=value, expected=UNKNOWN)
        plain = {**MEANT_WHEN_ABSENT, **values}
        if plain.get("attention_power") == "inf":
            plain["attention_power"] = math.inf
        if isinstance(plain.get("hidden"), list):
            plain["hidden"] = tuple(plain["hidden"])
        return cls(**plain)


def _check_type(name: str, value: object, default: object) -> None:
    kind = type(default)
    if kind is tuple:
        good = isinstance(value, list | tuple) and all(type(size) is int for size in value)
    elif kind is float:
        good = type(value) in (int, float)
    else:
        good = type(value) is kind
    if not good:
        raise ConfigError(f"MindConfig.{name}", got=value, expected=f"of type {kind.__name__}")
