"""Weighted means of a window: all clicks alike, or by learned attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.model.config import MindConfig
from engine.model.extractors.contract import Extractor, shares, used_slots

HIDDEN_FACTOR = 4
"""ComiRec's code has 4 D hidden units in the attention; its paper leaves d_a open."""


class MeanPooling(Extractor):
    """One interest, the mean of the item vectors: Covington et al. 2016 (YouTube DNN), section 3.2.

    The mean is weighted by the strengths; with `recency` off it is theirs. MIND with K = 1 agrees with it in direction:
    the softmax over one interest is 1, so its capsule is the squash of S times the sum, whatever logits and rounds, and
    with S the identity that is this mean but for its length. With `normalize_interests` and layers that add nothing the
    two models' interests are equal.
    """

    def __init__(self, config: MindConfig) -> None:
        super().__init__()

    def forward(
        self, behaviors: Tensor, strengths: Tensor, rows: Tensor, counts: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the (B, 1, D) means and each click's share."""
        weights = shares((strengths * used_slots(counts, interests=1)).unsqueeze(-1))
        return weights.transpose(1, 2) @ behaviors, weights


class SelfAttention(Extractor):
    """Self-attention of Cen et al. 2020 (ComiRec), section 3.2: A = softmax(W2 tanh(W1 (H + P))), interests H A.

    P is a vector for each place in the window, here an age counted from the newest click, and is not part of what is
    summed, as in their code. W1 and W2 have biases, as there. Strengths multiply the attention before it is normalized.
    A head has no order among its like, so with `dynamic_interests` short windows use, and train, the first heads.
    """

    def __init__(self, config: MindConfig) -> None:
        super().__init__()
        size = config.dimensions
        self.places = nn.Parameter(torch.randn(config.max_clicks, size) * size**-0.5 * 0.1)  # P
        self.hidden = nn.Linear(size, HIDDEN_FACTOR * size)  # W1
        self.heads = nn.Linear(HIDDEN_FACTOR * size, config.interests)  # W2

    def forward(
        self, behaviors: Tensor, strengths: Tensor, rows: Tensor, counts: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the (B, K, D) weighted means and the attention."""
        placed = behaviors + self.places[: behaviors.shape[1]].flip(0)
        logits = self.heads(torch.tanh(self.hidden(placed)))  # (B, L, K)
        logits = logits.masked_fill((strengths == 0).unsqueeze(-1), torch.finfo(logits.dtype).min)
        # The greatest logit is taken off so that no exponential overflows; it cancels out.
        raised = (logits - logits.detach().amax(dim=1, keepdim=True)).exp() * strengths.unsqueeze(-1)
        used = used_slots(counts, interests=logits.shape[-1]).unsqueeze(1)
        weights = shares(raised * used)
        return weights.transpose(1, 2) @ behaviors, weights
