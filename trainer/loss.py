"""The loss: cross-entropy of the target among all items, or among negatives that stand for them.

Sampled softmax (section 4.5 of the paper) with the two usual mistakes closed: the correction for how often a negative
is drawn, and negatives that are the target itself. Each item is scored by its best interest, which is how lists are
ranked.
Shape letters: B windows in a batch, K interests, D dimensions, N items, M negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

HIT = -1e38
"""In place of minus infinity, of which alone a softmax makes no number."""
CACHED_SCORES = 262_144
"""So many float32 scores are made at once on a CPU, 1 MB: they stay in a core's cache until they are gradients."""


def full_softmax_loss(interests: Tensor, used: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the targets among all items, each scored by its best interest.

    Args:
        interests: (B, K, D) float32; one slot where label-aware attention made one vector of them.
        used: (B, K) bool, at least one True in each row.
        items: (N + 1, D) float32 item vectors; row 0 is padding and no candidate.
        targets: (B,) int64 rows of *items*.
    """
    rows = torch.arange(1, len(items), device=items.device)
    once = torch.ones(len(rows), dtype=items.dtype, device=items.device)
    wanted = functional.embedding(targets, items)
    return sampled_softmax_loss(interests, used, wanted, items[1:], targets=targets, negatives=rows, draws=once)


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
    own = (interests * target_vectors.unsqueeze(1)).sum(dim=-1)  # (B, K)
    own = own.squeeze(1) if own.shape[1] == 1 else own.masked_fill(~used, -torch.inf).amax(dim=1)
    loss: Tensor = _Softmax.apply(interests, own, negative_vectors, used, targets, negatives, draws.log(), hardness)  # type: ignore[no-untyped-call]
    return loss


class _Softmax(torch.autograd.Function):
    """Loss and gradients in one pass over blocks of windows.

    A score's gradient is its probability, so the (B, K, M) scores need not be kept, nor read from memory again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        interests: Tensor,
        own: Tensor,
        others: Tensor,
        used: Tensor,
        targets: Tensor,
        negatives: Tensor,
        log_draws: Tensor,
        hardness: float,
    ) -> Tensor:
        batch, slots, size = interests.shape
        total = interests.new_empty(batch)
        to_interests, to_others = torch.empty_like(interests), torch.zeros_like(others)
        hits, never = _Hits.among(targets, negatives), interests.new_tensor(HIT)
        at_once = batch if interests.is_cuda else max(1, CACHED_SCORES // max(slots * len(others), 1))
        for start in range(0, batch, at_once):
            block = slice(start, start + at_once)
            vectors = interests[block].reshape(-1, size)
            scores = (vectors @ others.T).view(-1, slots, len(others))
            best = scores.squeeze(1)  # (b, M)
            if slots > 1:
                best = scores.masked_fill_(~used[block].unsqueeze(-1), -torch.inf).amax(dim=1)
            own_hits = hits.of(block)
            weighed = torch.sub(best, log_draws).index_put_(own_hits, never)
            if hardness:
                weighed += harder(best * hardness, own_hits)
            # A softmax and its greatest element tell the logarithm of the sum sooner than exponentials of our own.
            chances = weighed.softmax(dim=1)
            greatest = weighed.amax(dim=1) - chances.amax(dim=1).log()
            total[block] = torch.logaddexp(own[block], greatest)
            chances *= (greatest - total[block]).exp_().div_(batch).unsqueeze(1)
            slopes = chances if slots == 1 else _to_winners(chances, scores, best)  # (b K, M)
            to_interests[block] = (slopes @ others).view(-1, slots, size)
            to_others.addmm_(slopes.T, vectors)
        ctx.save_for_backward(to_interests, (own - total).expm1() / batch, to_others)
        return (total - own).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        to_interests, to_own, to_others = ctx.saved_tensors
        return slope * to_interests, slope * to_own, slope * to_others, None, None, None, None, None


def _to_winners(chances: Tensor, scores: Tensor, best: Tensor) -> Tensor:
    """Return (b K, M): each chance for the interest that scores the item best, equal ones sharing; spends *scores*."""
    winners = scores.eq_(best.unsqueeze(1))
    chances /= winners.sum(dim=1)
    return winners.mul_(chances.unsqueeze(1)).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class _Hits:
    """Where negatives are the targets themselves: few places of many, so they are looked up and not looked for."""

    rows: Tensor
    columns: Tensor
    starts: list[int]
    """(B + 1,), where each window's hits start."""

    @classmethod
    def among(cls, targets: Tensor, negatives: Tensor) -> Self:
        """Return those of (B,) *targets* among (M,) *negatives*."""
        wanted, drawn = targets.cpu().numpy(), negatives.cpu().numpy()
        is_target = np.zeros(max(wanted.max(), drawn.max()) + 1, dtype=np.bool_)
        is_target[wanted] = True
        (likely,) = is_target[drawn].nonzero()
        rows, columns = (wanted[:, None] == drawn[likely]).nonzero()
        starts: list[int] = rows.searchsorted(np.arange(len(wanted) + 1)).tolist()
        device = targets.device
        return cls(torch.from_numpy(rows).to(device), torch.from_numpy(likely[columns]).to(device), starts)

    def of(self, block: slice) -> tuple[Tensor, Tensor]:
        """Return rows within the block, and columns, of the windows in *block*."""
        first, end = self.starts[block.start], self.starts[min(block.stop, len(self.starts) - 1)]
        return self.rows[first:end] - block.start, self.columns[first:end]


def harder(raised: Tensor, hits: tuple[Tensor, Tensor]) -> Tensor:
    """Return (B, M) logs of the factors of hard negatives; their mean over the row's negatives, less *hits*, is 1."""
    others = raised.index_put(hits, raised.new_tensor(-torch.inf))
    number = raised.shape[1] - torch.bincount(hits[0], minlength=len(raised)).clamp(max=raised.shape[1] - 1)
    mean = others.logsumexp(dim=1, keepdim=True) - number.log().unsqueeze(1)
    return raised - mean.nan_to_num(neginf=0.0)


def best_scores(interests: Tensor, used: Tensor, items: Tensor) -> Tensor:
    """Return the (B, M) scores of (M, D) items by the best interest in use, which is how lists are ranked."""
    scores = interests @ items.T  # (B, K, M)
    if scores.shape[1] == 1:
        return scores.squeeze(1)
    return scores.masked_fill(~used.unsqueeze(-1), -torch.inf).amax(dim=1)
