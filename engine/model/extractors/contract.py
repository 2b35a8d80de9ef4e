"""What an extractor is: behavior vectors of a window in, capsules and their explanation out.

Shape letters: B windows, L clicks, K interests, D dimensions, W numbers of a folded item.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Extractor(nn.Module):
    """The contract; the layers over the capsules, recency and profiles are the network's, whatever the extractor.

    A window's answer depends on its clicks alone, not on its batch or padding, and is the same in every process.
    """

    def fold(self, items: Tensor) -> Tensor:
        """Return (..., W) behavior vectors of (..., D) item vectors: all that doesn't depend on the window.

        Serving calls it once per model version and gathers the rows of each window; W is D unless told otherwise.
        What it leaves to `forward` may differ in training, so both are called in the same mode.
        """
        return items

    def forward(
        self, behaviors: Tensor, strengths: Tensor, rows: Tensor, counts: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the capsules of B windows and how much of each click is in each of them.

        Args:
            behaviors: (B, L, W) float32, made by `fold`; B and L at least 1; the newest click stands last.
            strengths: (B, L) float32, how much a click counts (recency, click weight); 0 for padding.
            rows: (B, L) int64 item rows, 0 for padding.
            counts: (B,) int64 interest counts; the first that many of the K slots are used.
            previous: (B, K, D) float32 interests to start from, zero for none; only MIND's routing heeds them.

        Returns:
            (B, K, D) float32 capsules and (B, L, K) float32 weights; the weights are zero for padding, and both for
            unused slots.
        """
        raise NotImplementedError


def used_slots(counts: Tensor, *, interests: int) -> Tensor:
    """Return (B, K) bool, True for the first *counts* slots of each window."""
    return torch.arange(interests, device=counts.device) < counts.unsqueeze(-1)


def shares(weights: Tensor) -> Tensor:
    """Return (B, L, K) *weights* divided by their sum over the clicks; all zero where that is zero."""
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
