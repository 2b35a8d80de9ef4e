"""Where training starts: item vectors from a truncated SVD of who clicked what.

With columns scaled to length 1, inner products of the rank D factors approximate the cosine of co-occurrence, so a
recency-weighted sum of behavior vectors starts near item-based collaborative filtering, and training goes on from
there. Each field value starts as the mean of its items, so an item with no clicks starts among its like.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.model.mind import MindNetwork
from trainer.samples import Samples

OVERSAMPLING = 16
POWER_ITERATIONS = 4


def start_items(network: MindNetwork, samples: Samples, *, seed: int) -> None:
    """Set the item tables of *network* so that pooled item vectors are the factors of *samples*."""
    items = network.item_ids.num_embeddings - 1
    size = network.config.dimensions
    factors = torch.zeros(items + 1, size)
    found = item_factors(samples, items=items, rank=size, seed=seed)
    factors[:, : found.shape[1]] = found
    rows = network.item_field_rows.cpu()
    with torch.no_grad():
        fields = _field_means(factors, rows, network.item_fields.num_embeddings)
        present = 1 + (rows > 0).sum(dim=1, keepdim=True)
        ids = factors * present - fields[rows].sum(dim=1)
        ids[0] = 0.0
        network.item_fields.weight.copy_(fields)
        network.item_ids.weight.copy_(ids)


def item_factors(samples: Samples, *, items: int, rank: int, seed: int) -> Tensor:
    """Return the (N + 1, R) float32 right factors, scaled by the singular values; row 0 is zero and R at most *rank*.

    A randomized range finder (Halko et al. 2011) with power iterations on the sparse (U, N) matrix.
    """
    pairs = np.unique(np.stack([samples.users, samples.rows]), axis=1)
    counts = np.bincount(pairs[1], minlength=items + 1)
    values = torch.from_numpy(1.0 / np.sqrt(counts[pairs[1]])).float()
    shape = (len(samples.starts), items + 1)
    clicked = torch.sparse_coo_tensor(torch.from_numpy(pairs), values, shape, check_invariants=False).coalesce()
    transposed = clicked.t().coalesce()
    width = min(rank + OVERSAMPLING, *shape)
    random = np.random.default_rng(seed).standard_normal((items + 1, width)).astype(np.float32)
    basis = torch.linalg.qr(torch.sparse.mm(clicked, torch.from_numpy(random)))[0]
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(torch.sparse.mm(transposed, basis))[0]
        basis = torch.linalg.qr(torch.sparse.mm(clicked, basis))[0]
    narrow = torch.sparse.mm(transposed, basis)  # (N + 1, width)
    left, singular, _right = torch.linalg.svd(narrow, full_matrices=False)
    factors: Tensor = left[:, :rank] * singular[:rank]
    return factors


def _field_means(factors: Tensor, rows: Tensor, count: int) -> Tensor:
    total = torch.zeros(count, factors.shape[1])
    number = torch.zeros(count, 1)
    for column in rows.unbind(dim=1):
        total.index_add_(0, column, factors)
        number.index_add_(0, column, torch.ones(len(column), 1))
    total[0] = 0.0
    return total / number.clamp(min=1.0)
