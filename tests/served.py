"""A small model version to serve in tests: seeded random weights, real routing, a real index."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.ann import ItemIndex
from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex
from engine.model import InterestModel, MindConfig, Vocabulary
from engine.model.network import MindNetwork
from engine.model.parts import VersionParts
from engine.snapshot import PopularLists, ServingSnapshot
from tests.builders import NOON_MS

ITEM_IDS = tuple(f"i{number:03d}" for number in range(400))
POPULAR = PopularLists(ITEM_IDS[:10])


def make_model(item_ids: Sequence[str] = ITEM_IDS, *, seed: int = 7) -> InterestModel:
    torch.manual_seed(seed)
    vocabulary = Vocabulary(tuple(item_ids))
    field_rows = torch.zeros(len(item_ids) + 1, 0, dtype=torch.int64)
    return InterestModel(MindNetwork(MindConfig(dimensions=16, hidden=(16,)), vocabulary, field_rows), vocabulary)


def make_snapshot(
    item_ids: Sequence[str] = ITEM_IDS, *, activation: int = 1, seed: int = 7, backend: str = "hnsw"
) -> ServingSnapshot:
    model = make_model(item_ids, seed=seed)
    ids, vectors = model.all_item_vectors()
    index: ItemIndex = HnswIndex.build(vectors) if backend == "hnsw" else ExactIndex(vectors)
    return ServingSnapshot(
        model_version=f"{activation:04d}",
        activation=activation,
        trained_at_ms=NOON_MS,
        model=model,
        index=index,
        item_ids=ids,
        popular=PopularLists(ids[:10]),
    )


def make_popular_snapshot(
    popular: PopularLists = POPULAR, *, item_ids: tuple[str, ...] = (), activation: int = 0
) -> ServingSnapshot:
    return ServingSnapshot(
        model_version="0000",
        activation=activation,
        trained_at_ms=NOON_MS,
        model=None,
        index=None,
        item_ids=item_ids,
        popular=popular,
    )


def make_parts(item_ids: Sequence[str] = ITEM_IDS, *, seed: int = 7) -> VersionParts:
    """Return the same version as `make_snapshot`, ready to publish."""
    model = make_model(item_ids, seed=seed)
    config, vocabulary, tensors = model.parts()
    ids, vectors = model.all_item_vectors()
    return VersionParts(
        popular={"overall": ids[:10], "by_category": {}},
        config=config,
        vocabulary=vocabulary,
        tensors=tensors,
        item_ids=ids,
        item_vectors=vectors,
        index=HnswIndex.build(vectors).to_bytes(),
    )
