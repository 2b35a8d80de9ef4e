"""Small models with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from engine.model import InterestModel, ItemInput, MindConfig, UserInput, Vocabulary
from engine.model.network import MindNetwork

SMALL = MindConfig(agreement_scale=1.0, dimensions=8, interests=4, max_clicks=10, hidden=(6,), profile_dimensions=3)
PROFILES: Sequence[Mapping[str, str | float]] = ({"country": "FR", "age": 20.0}, {"country": "UK", "age": 40.0})


def make_items(count: int = 20) -> dict[str, ItemInput]:
    return {
        f"i{number}": ItemInput(f"i{number}", category=f"c{number % 3}", brand="b", features={"price": float(number)})
        for number in range(count)
    }


def make_model(config: MindConfig = SMALL, *, seed: int = 0) -> InterestModel:
    """A model whose every parameter is random, so that no part is silently without effect."""
    torch.manual_seed(seed)
    items = make_items()
    vocabulary = Vocabulary.build(list(items), items, PROFILES)
    rows = [vocabulary.field_rows(None), *(vocabulary.field_rows(items[item]) for item in vocabulary.item_ids)]
    network = MindNetwork(config, vocabulary, torch.tensor(rows))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "scale":
                parameter.add_(torch.randn_like(parameter) * 0.3)
        network.item_ids.weight[0] = 0.0
        network.item_fields.weight[0] = 0.0
    return InterestModel(network, vocabulary)


def make_user(*item_ids: str, country: str = "FR") -> UserInput:
    return UserInput(item_ids=item_ids, profile={"country": country, "age": 30.0})
