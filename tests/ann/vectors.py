"""Seeded vectors for the tests of indexes."""

from __future__ import annotations

import numpy as np

from engine.ann.index import Vectors


def make_vectors(count: int, dimensions: int = 8, *, seed: int = 1) -> Vectors:
    """Return (count, dimensions) normally distributed vectors."""
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
