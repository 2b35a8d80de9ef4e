"""Where training starts: item vectors whose inner products say how often two items are clicked near one another.

How often users click two items, nearer clicks weighing more (1 / distance, as GloVe counts; Pennington et al. 2014), is
scaled to a cosine, and the square root of that taken, as in Hellinger PCA (Lebret and Collobert 2014): without the root
a few pairs that always come together take most of the rank. The leading eigenvectors are the start. A recency-weighted
sum of behavior vectors then begins near item-based collaborative filtering, and training goes on from there. Each field
value starts as the mean of its items, and an item with no neighbors among its like.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.model.network import MindNetwork
from trainer.samples import Samples

NEAR = 10
"""Clicks of one user count as together up to this distance, or as far as targets are drawn."""
MOST_PAIRS = 20_000_000
"""Where there would be more, the nearest pairs alone are counted, for time and memory."""
OVERSAMPLING = 32
POWER_ITERATIONS = 5


def start_items(network: MindNetwork, samples: Samples, *, horizon: int, seed: int) -> None:
    """Set the item tables of *network* so that pooled item vectors are the factors of *samples*.

    Clicks count as together up to `NEAR` or *horizon* apart: what is a target of one another, and no less.
    """
    items = network.item_ids.num_embeddings - 1
    size = network.config.dimensions
    factors = torch.zeros(items + 1, size)
    found = item_factors(samples, items=items, rank=size, reach=max(NEAR, horizon), seed=seed)
    factors[:, : found.shape[1]] = found
    rows = network.item_field_rows.cpu()
    number = (rows > 0).sum(dim=1, keepdim=True)
    with torch.no_grad():
        fields = _field_means(factors, rows, network.item_fields.num_embeddings)
        of_fields = fields[rows].sum(dim=1)
        is_alone = (factors == 0).all(dim=1, keepdim=True)
        factors = torch.where(is_alone, of_fields / number.clamp(min=1), factors)
        ids = factors * (1 + number) - of_fields
        ids[0] = 0.0
        network.item_fields.weight.copy_(fields)
        network.item_ids.weight.copy_(ids)


def item_factors(samples: Samples, *, items: int, rank: int, reach: int, seed: int) -> Tensor:
    """Return the (N + 1, R) float32 start of each item, R at most *rank*; zero for row 0 and items with no neighbor.

    Eigenvectors by a randomized range finder (Halko et al. 2011) with power iterations, those of negative eigenvalues
    left out; lengths are the roots of what they would be, so that rare items are not too quiet to be heard.
    """
    near = near_cosines(samples, items=items, reach=reach).sqrt()
    mirrored = near.t().coalesce()

    def times(vectors: Tensor) -> Tensor:
        product: Tensor = torch.sparse.mm(near, vectors)
        return product.add_(torch.sparse.mm(mirrored, vectors))

    width = min(rank + OVERSAMPLING, items + 1)
    random = np.random.default_rng(seed).standard_normal((items + 1, width)).astype(np.float32)
    basis = torch.linalg.qr(times(torch.from_numpy(random)))[0]
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(times(basis))[0]
    small = basis.T @ times(basis)
    values, vectors = torch.linalg.eigh((small + small.T) / 2)  # ascending
    values, vectors = values[-rank:].clamp(min=0.0), vectors[:, -rank:]
    factors: Tensor = (basis @ vectors) * values.sqrt()
    has_neighbor = torch.zeros(items + 1, 1)
    has_neighbor[near.indices().flatten()] = 1.0
    lengths = factors.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    heard: Tensor = has_neighbor * factors / lengths.sqrt()
    return heard


def near_cosines(samples: Samples, *, items: int, reach: int) -> Tensor:
    """Return the cosines of near co-occurrence, (N + 1, N + 1) sparse float32, each pair once with the lower row first.

    Two items' sum of 1 / distance over all places where one user clicked both, up to *reach* apart, by the geometric
    mean of what each of them has with all others.
    """
    reach = max(1, min(reach, MOST_PAIRS // max(len(samples.rows), 1)))
    shape, ends, weights = (items + 1, items + 1), list[np.ndarray](), list[np.ndarray]()
    for distance in range(1, reach + 1):
        first, second = samples.rows[:-distance], samples.rows[distance:]
        is_pair = (samples.users[:-distance] == samples.users[distance:]) & (first != second)
        ends.append(np.stack([np.minimum(first, second)[is_pair], np.maximum(first, second)[is_pair]]))
        weights.append(np.full(ends[-1].shape[1], 1.0 / distance, dtype=np.float32))
    pairs, counts = torch.from_numpy(np.concatenate(ends, axis=1)), torch.from_numpy(np.concatenate(weights))
    together = torch.sparse_coo_tensor(pairs, counts, shape, check_invariants=False).coalesce()
    (lower, higher), sums = together.indices(), together.values()
    degrees = torch.zeros(items + 1).index_add_(0, lower, sums).index_add_(0, higher, sums)
    cosines = sums / (degrees[lower] * degrees[higher]).sqrt()
    return torch.sparse_coo_tensor(together.indices(), cosines, shape, check_invariants=False, is_coalesced=True)


def _field_means(factors: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return (count, D), the mean factor of the items that have each field value, those with no factor left out."""
    total = torch.zeros(count, factors.shape[1])
    number = torch.zeros(count, 1)
    has_factor = (factors != 0).any(dim=1, keepdim=True).float()
    for column in rows.unbind(dim=1):
        total.index_add_(0, column, factors)
        number.index_add_(0, column, has_factor)
    total[0] = 0.0
    return total / number.clamp(min=1.0)
