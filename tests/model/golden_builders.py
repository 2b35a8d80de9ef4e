"""A model whose every tensor is drawn by its name, so that its numbers stay when code moves from class to class."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.model import InterestModel, MindConfig, UserInput, Vocabulary
from tests.model.mind_builders import PROFILES, make_items, make_user

GOLDEN_CONFIG = MindConfig(dimensions=16, max_clicks=10, hidden=(8,), profile_dimensions=3, general_interest=False)
"""The defaults but for its sizes."""

SHAPES: Mapping[str, tuple[int, ...]] = {
    "shared_map": (16, 16),
    "recency": (10,),
    "scale": (),
    "item_ids.weight": (21, 16),
    "item_fields.weight": (15, 16),
    "profile.directions": (2, 3),
    "profile.values.weight": (5, 3),
    "layers.0.weight": (8, 22),
    "layers.0.bias": (8,),
    "layers.1.weight": (16, 8),
    "layers.1.bias": (16,),
}
"""The tensors of a stored model of the extractor `mind`, `item_field_rows` aside."""


def golden_parts() -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Config, vocabulary and tensors, as the registry stores them."""
    items = make_items()
    vocabulary = Vocabulary.build(list(items), items, PROFILES)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in SHAPES.items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        tensors[name] = (random.standard_normal(shape) * 0.3).astype(np.float32).reshape(shape)
    tensors["shared_map"] += np.eye(16, dtype=np.float32)
    tensors["scale"] = np.array(8.0, dtype=np.float32)
    for name in ("item_ids.weight", "item_fields.weight"):
        tensors[name][0] = 0.0
    rows = [vocabulary.field_rows(None), *(vocabulary.field_rows(items[item]) for item in vocabulary.item_ids)]
    tensors["item_field_rows"] = np.array(rows, dtype=np.int64)
    return GOLDEN_CONFIG.to_dict(), vocabulary.to_dict(), tensors


def golden_model() -> InterestModel:
    return InterestModel.load_parts(*golden_parts())


def golden_users() -> list[UserInput]:
    return [
        make_user(*(f"i{number}" for number in range(1, 10))),
        make_user("i3", "i4", "i3", "i12", country="UK"),
        UserInput([]),
        UserInput(["i5"]),
    ]
