"""Seeded vectors for the tests of indexes."""

from __future__ import annotations

import numpy as np

from engine.ann.hnsw import HnswIndex, private_folder
from engine.ann.index import Vectors


def make_vectors(count: int, dimensions: int = 8, *, seed: int = 1) -> Vectors:
    """Return (count, dimensions) normally distributed vectors."""
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


def load_content(content: bytes, vectors: Vectors) -> HnswIndex:
    """Return the graph of *vectors* whose saved file has this *content*."""
    with private_folder() as folder:
        path = folder / "index.hnsw"
        path.write_bytes(content)
        return HnswIndex.load(path, vectors)
