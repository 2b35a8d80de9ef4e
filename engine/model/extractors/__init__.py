"""Ways to make up to K capsules of a window's behavior vectors, one chosen by `MindConfig.extractor`.

`contract.py` says what each must give; `routed.py` holds the capsule networks, `pooled.py` the weighted means,
`clustered.py` those that learn nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.model.config import MindConfig
from engine.model.extractors.clustered import KMeans, WardMedoids
from engine.model.extractors.contract import Extractor
from engine.model.extractors.pooled import MeanPooling, SelfAttention
from engine.model.extractors.routed import CapsuleNetwork, ComiRecRouting, MindRouting
from engine.model.routing import starting_logits

__all__ = ["Extractor", "make_extractor"]


def make_extractor(config: MindConfig, item_ids: Sequence[str]) -> Extractor:
    """Return a new, untrained extractor of the kind that *config* names.

    Args:
        config: what the model is.
        item_ids: the keys of the item rows 1 to N, which seed the starting logits.
    """
    seeded: Mapping[str, Callable[..., Extractor]] = {"mind": MindRouting, "kmeans": KMeans}
    if config.extractor in seeded:
        logits = starting_logits(item_ids, interests=config.interests, seed=config.routing_seed)
        return seeded[config.extractor](config, logits)
    others: Mapping[str, Callable[[MindConfig], Extractor]] = {
        "comirec-sa": SelfAttention,
        "comirec-dr": ComiRecRouting,
        "single": MeanPooling,
        "capsnet": CapsuleNetwork,
        "ward": WardMedoids,
    }
    return others[config.extractor](config)
