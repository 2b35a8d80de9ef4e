"""Clusters of a window's item vectors, which nothing is trained for: k-means, and Ward clusters with their medoids.

They answer why routing and not simply clustering. Gradients reach the item vectors that form a capsule, through the
last step alone; which click is in which cluster has none.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.model.config import MindConfig
from engine.model.extractors.contract import Extractor, shares, used_slots


class KMeans(Extractor):
    """Lloyd's k-means with K'_u means, `rounds` iterations.

    The first mean starts at the click with the greatest seeded number of its item, each next one at the click farthest
    from those before. A mean that no click is nearest to takes the click nearest to it, so none is empty: with fewer
    distinct clicks than interests some interests are equal.
    """

    logits: Tensor

    def __init__(self, config: MindConfig, logits: np.ndarray) -> None:
        super().__init__()
        self._rounds = config.rounds
        self._interests = config.interests
        self.register_buffer("logits", torch.from_numpy(logits), persistent=False)

    def forward(
        self, behaviors: Tensor, strengths: Tensor, rows: Tensor, counts: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the means weighted by the strengths, and each click's share in its mean."""
        used = used_slots(counts, interests=self._interests)
        with torch.no_grad():
            weights = self._cluster(behaviors, strengths, self.logits[rows][..., 0], used)
        return weights.transpose(1, 2) @ behaviors, weights

    def _cluster(self, behaviors: Tensor, strengths: Tensor, seeds: Tensor, used: Tensor) -> Tensor:
        present = strengths > 0
        means = _far_apart(behaviors, present, seeds, count=self._interests)
        weights = _nearest_shares(behaviors, strengths, means, used)
        for _ in range(self._rounds - 1):
            means = weights.transpose(1, 2) @ behaviors
            weights = _nearest_shares(behaviors, strengths, means, used)
        return weights


class WardMedoids(Extractor):
    """Ward's hierarchical clusters and their medoids: Pal et al. 2020 (PinnerSage), sections 4.1 to 4.3.

    Clusters merge until K'_u are left, where theirs merge up to a threshold; the capsule is the medoid, the click with
    the least sum of squared distances to its cluster (the newest of equal ones). Slots stand in the order of their
    clusters' importance, the sum of the strengths, which are exp(-recency_start * age) where theirs are
    exp(-lambda * days). The weights tell the clusters, of which the vector shows the medoid alone. With fewer clicks
    than interests the clusters are repeated.
    """

    def __init__(self, config: MindConfig) -> None:
        super().__init__()
        self._interests = config.interests

    def forward(
        self, behaviors: Tensor, strengths: Tensor, rows: Tensor, counts: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the medoids, and each click's share in its cluster."""
        with torch.no_grad():
            present = strengths > 0
            distances = _distances(behaviors, rows)  # (B, L, L)
            labels = _merge(distances, present, counts)
            slots = _slots_by_importance(labels, strengths, interests=self._interests)
            members = (labels.unsqueeze(-1) == slots.unsqueeze(1)) & present.unsqueeze(-1)  # (B, L, K)
            members &= used_slots(counts, interests=self._interests).unsqueeze(1)
            medoids = _medoids(distances, members)  # (B, K)
            weights = shares(members * strengths.unsqueeze(-1))
        index = medoids.unsqueeze(-1).expand(-1, -1, behaviors.shape[-1])
        return behaviors.gather(1, index) * members.any(dim=1).unsqueeze(-1), weights


def _far_apart(behaviors: Tensor, present: Tensor, seeds: Tensor, *, count: int) -> Tensor:
    """Return (B, K, D) starting means."""
    place = seeds.masked_fill(~present, -torch.inf).argmax(dim=1)
    windows = torch.arange(len(behaviors), device=behaviors.device)
    means = [behaviors[windows, place]]
    distance = torch.full_like(seeds, torch.inf)
    for _ in range(count - 1):
        # Differences, not inner products: clicks on one item must be at exactly 0 from one another.
        distance = torch.minimum(distance, (behaviors - means[-1].unsqueeze(1)).square().sum(dim=-1))
        means.append(behaviors[windows, distance.masked_fill(~present, -1.0).argmax(dim=1)])
    return torch.stack(means, dim=1)


def _nearest_shares(behaviors: Tensor, strengths: Tensor, means: Tensor, used: Tensor) -> Tensor:
    """Return the (B, L, K) shares of the clicks in the mean nearest to each, and of the nearest click in a bare one."""
    present = strengths > 0
    distances = torch.stack([(behaviors - mean.unsqueeze(1)).square().sum(dim=-1) for mean in means.unbind(1)], dim=-1)
    count = means.shape[1]
    nearest = distances.masked_fill(~used.unsqueeze(1), torch.inf).argmin(dim=-1)
    members = functional.one_hot(nearest, count).bool() & present.unsqueeze(-1)
    bare = used & ~members.any(dim=1)  # (B, K)
    closest = distances.masked_fill(~present.unsqueeze(-1), torch.inf).argmin(dim=1)  # (B, K)
    taken = functional.one_hot(closest, behaviors.shape[1]).bool() & bare.unsqueeze(-1)
    members = (members | taken.transpose(1, 2)) & used.unsqueeze(1)
    return shares(members * strengths.unsqueeze(-1))


def _distances(behaviors: Tensor, rows: Tensor) -> Tensor:
    """Return (B, L, L) float64 squared distances, exactly 0 between clicks on one item and exactly symmetric."""
    wide = behaviors.double()
    inner = wide @ wide.transpose(1, 2)
    lengths = inner.diagonal(dim1=1, dim2=2)
    distances = (lengths.unsqueeze(1) + lengths.unsqueeze(2) - inner - inner.transpose(1, 2)).clamp(min=0.0)
    return distances.masked_fill(rows.unsqueeze(1) == rows.unsqueeze(2), 0.0)


def _merge(distances: Tensor, present: Tensor, counts: Tensor) -> Tensor:
    """Return (B, L) int64 labels: Ward linkage until *counts* clusters are left, each named by its oldest click.

    The distance of a merged cluster to the others follows from those of its parts (Lance and Williams 1967).
    """
    clicks = distances.shape[1]
    labels = torch.arange(clicks, device=distances.device).expand(len(distances), -1).clone()
    windows = torch.arange(len(distances), device=distances.device)
    apart = present.unsqueeze(1) & present.unsqueeze(2) & ~torch.eye(clicks, dtype=torch.bool, device=distances.device)
    costs = distances.masked_fill(~apart, torch.inf)
    sizes = present.to(distances.dtype)
    merges = present.sum(dim=1) - counts.clamp(min=1)
    for step in range(int(merges.max())):
        cheapest = costs.flatten(1).argmin(dim=1)
        first, second = cheapest // clicks, cheapest % clicks  # first < second: costs are symmetric
        own, other = sizes[windows, first].unsqueeze(-1), sizes[windows, second].unsqueeze(-1)
        cost = costs[windows, first, second].unsqueeze(-1)
        merged = (own + sizes) * costs[windows, first] + (other + sizes) * costs[windows, second] - sizes * cost
        merged = merged / (own + other + sizes)
        go = step < merges
        at, first, second = windows[go], first[go], second[go]
        costs[at, first], costs[at, :, first] = merged[go], merged[go]
        costs[at, second], costs[at, :, second] = torch.inf, torch.inf
        sizes[at, first] += sizes[at, second]
        sizes[at, second] = 0.0
        labels[at] = torch.where(labels[at] == second.unsqueeze(-1), first.unsqueeze(-1), labels[at])
    return labels.masked_fill(~present, -1)


def _slots_by_importance(labels: Tensor, strengths: Tensor, *, interests: int) -> Tensor:
    """Return the (B, K) labels of the clusters, the most important first, repeated where there are fewer than K."""
    names = torch.arange(labels.shape[1], device=labels.device)
    members = labels.unsqueeze(-1) == names  # (B, L clicks, L clusters)
    importance = (members * strengths.unsqueeze(-1)).sum(dim=1)
    order = importance.argsort(dim=1, descending=True, stable=True)
    found = members.any(dim=1).sum(dim=1, keepdim=True).clamp(min=1)
    return order.gather(1, torch.arange(interests, device=labels.device) % found)


def _medoids(distances: Tensor, members: Tensor) -> Tensor:
    """Return (B, K) int64, the place of each cluster's medoid, the newest of equal ones; any place for no cluster."""
    sums = distances @ members.to(distances.dtype)  # (B, L, K)
    sums = sums.masked_fill(~members, torch.inf).flip(1)
    return distances.shape[1] - 1 - sums.argmin(dim=1)
