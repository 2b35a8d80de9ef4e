"""What a target is compared with: all items, or uniform negatives shared by the batch.

Sampled softmax (section 4.5 of the paper) with the two usual mistakes closed: the correction for the sampling
probability, and negatives that are the target itself.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FULL_SOFTMAX_ITEMS = 2_048
"""Up to this many items every one of them is a negative: exact, and as cheap as sampling."""
NEGATIVES = 1_024
"""Uniform negatives of a step in larger catalogs."""


def full_softmax_loss(interests: Tensor, used: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the targets among all items, each scored by its best interest.

    Args:
        interests: (B, K, D) float32; one slot where label-aware attention made one vector of them.
        used: (B, K) bool, at least one True in each row.
        items: (N + 1, D) float32 item vectors; row 0 is padding and no candidate.
        targets: (B,) int64 rows of *items*.
    """
    return functional.cross_entropy(best_scores(interests, used, items[1:]), targets - 1)


def sampled_softmax_loss(
    interests: Tensor,
    used: Tensor,
    target_vectors: Tensor,
    negative_vectors: Tensor,
    *,
    targets: Tensor,
    negatives: Tensor,
    items: int,
) -> Tensor:
    """Return the mean cross-entropy of the targets among M negatives that stand for all other items.

    A uniform negative is drawn M / (N - 1) times on average, so each counts (N - 1) / M times (logQ correction);
    one that is the row's own target counts nothing.

    Args:
        interests: (B, K, D) float32, as in `full_softmax_loss`.
        used: (B, K) bool.
        target_vectors: (B, D) float32.
        negative_vectors: (M, D) float32, shared by the batch.
        targets: (B,) int64 item rows.
        negatives: (M,) int64 item rows, drawn uniformly.
        items: N, items in all.
    """
    correction = math.log(max(items - 1, 1) / len(negatives))
    hits = targets.unsqueeze(1) == negatives.unsqueeze(0)  # (B, M)
    others = (best_scores(interests, used, negative_vectors) + correction).masked_fill(hits, -torch.inf)
    own = torch.bmm(interests, target_vectors.unsqueeze(-1)).squeeze(-1)  # (B, K)
    own = own.masked_fill(~used, -torch.inf).amax(dim=1, keepdim=True)
    first = torch.zeros(len(interests), dtype=torch.int64, device=interests.device)
    return functional.cross_entropy(torch.cat([own, others], dim=1), first)


def best_scores(interests: Tensor, used: Tensor, items: Tensor) -> Tensor:
    """Return the (B, M) scores of (M, D) items by the best interest in use, which is how lists are ranked."""
    scores = interests @ items.T  # (B, K, M)
    if scores.shape[1] == 1:
        return scores.squeeze(1)
    return scores.masked_fill(~used.unsqueeze(-1), -torch.inf).amax(dim=1)


def draw_negatives(generator: np.random.Generator, *, items: int, count: int) -> np.ndarray:
    """Return (count,) int64 item rows from 1 to *items*, uniform, with replacement."""
    return generator.integers(1, items + 1, size=count)
