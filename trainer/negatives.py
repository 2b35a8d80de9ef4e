"""What a target is compared with: all items, or negatives drawn once a step and shared by the batch.

Sampled softmax (section 4.5 of the paper) with the two usual mistakes closed: the correction for how often a negative
is drawn, and negatives that are the target itself.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FULL_SOFTMAX_ITEMS = 2_048
"""Up to this many items every one of them is a negative: exact, and as cheap as sampling."""
NEGATIVES = 2_048
"""Drawn negatives of a step in larger catalogs."""
SAMPLINGS = ("uniform", "log-uniform", "in-batch", "mixed")
"""Where negatives come from: all items alike; popular ones more, by rank; the batch's targets; uniform and in-batch."""


class Sampler:
    """Draws the negatives of a step, with how often each is drawn on average: (M,) rows, (M,) float32 counts."""

    def __init__(self, sampling: str, *, items: int, count: int, target_counts: np.ndarray) -> None:
        """Prepare to draw *count* negatives a step, besides those of the batch.

        Args:
            sampling: one of `SAMPLINGS`.
            items: N, the rows are 1 to N, the most clicked first.
            count: M, of the negatives that don't come from the batch.
            target_counts: (N + 1,) how often each row is a target in one pass; a target itself has at least 1.
        """
        self._sampling, self._items, self._count = sampling, items, count
        self._shares = target_counts / max(target_counts.sum(), 1)

    def draw(self, random: np.random.Generator, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the negatives for a batch of (B,) *targets*, repeats kept."""
        if self._sampling == "in-batch":
            return targets, self._in_batch(targets, len(targets))
        if self._sampling == "log-uniform":
            rows = draw_by_rank(random, items=self._items, count=self._count)
            return rows, (self._count * rank_shares(rows, items=self._items)).astype(np.float32)
        rows = draw_negatives(random, items=self._items, count=self._count)
        each = self._count / self._items
        if self._sampling == "uniform":
            return rows, np.full(len(rows), each, dtype=np.float32)
        rows = np.concatenate([rows, targets])
        return rows, self._in_batch(rows, len(targets)) + np.float32(each)

    def _in_batch(self, rows: np.ndarray, batch: int) -> np.ndarray:
        counts: np.ndarray = (batch * self._shares[rows]).astype(np.float32)
        return counts


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
    draws: Tensor,
    hardness: float = 0.0,
) -> Tensor:
    """Return the mean cross-entropy of the targets among M negatives that stand for all other items.

    A negative drawn c times on average counts 1 / c times (logQ correction); one that is the row's own target counts
    nothing. With *hardness* beta it counts exp(beta * score) times more, divided by the mean of that over the row's
    negatives: the interest-aware hard negatives of Xie et al. 2023 (REMI), section 3.2.

    Args:
        interests: (B, K, D) float32, as in `full_softmax_loss`.
        used: (B, K) bool.
        target_vectors: (B, D) float32.
        negative_vectors: (M, D) float32, shared by the batch.
        targets: (B,) int64 item rows.
        negatives: (M,) int64 item rows.
        draws: (M,) float32, how often each negative is drawn on average, above 0.
        hardness: beta, 0 for none.
    """
    hits = targets.unsqueeze(1) == negatives.unsqueeze(0)  # (B, M)
    scores = best_scores(interests, used, negative_vectors)
    others = (scores - draws.log()).masked_fill(hits, -torch.inf)
    if hardness:
        others = others + harder(scores.detach() * hardness, hits)
    own = torch.bmm(interests, target_vectors.unsqueeze(-1)).squeeze(-1)  # (B, K)
    own = own.masked_fill(~used, -torch.inf).amax(dim=1, keepdim=True)
    # Cross-entropy of the target among both, without laying them side by side.
    return (torch.logaddexp(own.squeeze(1), others.logsumexp(dim=1)) - own.squeeze(1)).mean()


def harder(raised: Tensor, hits: Tensor) -> Tensor:
    """Return (B, M) logs of the factors of hard negatives; their mean over the row's negatives is 1."""
    others = raised.masked_fill(hits, -torch.inf)
    number = (~hits).sum(dim=1, keepdim=True).clamp(min=1)
    return raised - (others.logsumexp(dim=1, keepdim=True) - number.log()).nan_to_num(neginf=0.0)


def best_scores(interests: Tensor, used: Tensor, items: Tensor) -> Tensor:
    """Return the (B, M) scores of (M, D) items by the best interest in use, which is how lists are ranked."""
    scores = interests @ items.T  # (B, K, M)
    if scores.shape[1] == 1:
        return scores.squeeze(1)
    return scores.masked_fill(~used.unsqueeze(-1), -torch.inf).amax(dim=1)


def draw_negatives(generator: np.random.Generator, *, items: int, count: int) -> np.ndarray:
    """Return (count,) int64 item rows from 1 to *items*, uniform, with replacement."""
    return generator.integers(1, items + 1, size=count)


def draw_by_rank(generator: np.random.Generator, *, items: int, count: int) -> np.ndarray:
    """Return (count,) int64 item rows from 1 to *items*, log-uniform, with replacement: row r about as 1 / r."""
    rows = np.exp(generator.random(count) * math.log(items + 1.0)).astype(np.int64)
    return np.minimum(rows, items)


def rank_shares(rows: np.ndarray, *, items: int) -> np.ndarray:
    """Return the chance of each row in one log-uniform draw: log((r + 1) / r) / log(N + 1)."""
    shares: np.ndarray = np.log1p(1.0 / rows) / math.log(items + 1.0)
    return shares
