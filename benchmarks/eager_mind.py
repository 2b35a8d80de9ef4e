"""The reference of `bench_model.py`: MIND in plain eager PyTorch, operation by operation as public code writes it.

One embedding row a click and one matrix product each, behavior vectors repeated for every interest, three rounds of
routing over all of them, ReLU layers, hard label-aware attention, sampled softmax with uniform negatives shared by the
batch and the correction for their number, dense Adam. Written for this comparison; it computes the same model as our
`paper` preset with a fixed number of interests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class EagerMind(nn.Module):
    """Item ids alone, no profile, no fields."""

    def __init__(
        self,
        *,
        items: int,
        dimensions: int,
        interests: int,
        layers: Sequence[int],
        rounds: int = 3,
        repeats: bool = True,
    ) -> None:
        """Make a model; without *repeats* the interests share one copy of the behavior vectors, as nothing forbids.

        Args:
            items: N.
            dimensions: D.
            interests: K, all of them in use.
            layers: sizes of the ReLU layers after the capsules, the last of them D; none leaves the capsules alone.
            rounds: of routing.
            repeats: a copy of the behavior vectors for each interest.
        """
        super().__init__()
        self.copies = interests if repeats else 1
        self.items = nn.Embedding(items + 1, dimensions, padding_idx=0)
        self.shared_map = nn.Linear(dimensions, dimensions, bias=False)
        self.interests, self.rounds = interests, rounds
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise((dimensions, *layers)))
        nn.init.normal_(self.items.weight, std=dimensions**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the (B, K, D) interests of (B, L) item rows, 0 for padding."""
        batch, length = rows.shape
        mask = (rows > 0).unsqueeze(1).expand(-1, self.interests, -1)  # (B, K, L)
        behaviors = self.shared_map(self.items(rows))
        behaviors = behaviors.unsqueeze(1).repeat(1, self.copies, 1, 1)  # (B, K, L, D)
        fixed = behaviors.detach()
        logits = torch.randn(batch, self.interests, length, device=rows.device)
        for step in range(self.rounds):
            weights = torch.softmax(logits, dim=1)
            weights = torch.where(mask, weights, torch.zeros_like(weights))
            weights = weights.unflatten(1, (self.copies, -1))  # (B, K, 1, L), or (B, 1, K, L) with one copy
            last = step == self.rounds - 1
            capsules = torch.matmul(weights, behaviors if last else fixed)
            squared = capsules.square().sum(dim=-1, keepdim=True)
            capsules = squared / (1 + squared) / torch.sqrt(squared + 1e-9) * capsules
            if not last:
                logits = torch.matmul(fixed, capsules.transpose(2, 3)).transpose(2, 3).flatten(1, 2)
        vectors = capsules.flatten(1, 2)
        for layer in self.layers:
            vectors = functional.relu(layer(vectors))
        return vectors

    def loss(self, rows: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        """Return the mean loss of (B,) target rows against (M,) negative rows."""
        capsules = self(rows)
        wanted = self.items(targets)
        scores = torch.matmul(capsules, wanted.unsqueeze(-1)).squeeze(-1)  # (B, K)
        chosen = capsules[torch.arange(len(rows), device=rows.device), scores.argmax(dim=1)]
        own = (chosen * wanted).sum(dim=1, keepdim=True)
        others = chosen @ self.items(negatives).T + math.log((self.items.num_embeddings - 1) / len(negatives))
        others = others.masked_fill(targets.unsqueeze(1) == negatives.unsqueeze(0), -torch.inf)
        first = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        return functional.cross_entropy(torch.cat([own, others], dim=1), first)
