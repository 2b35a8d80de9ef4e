"""Behavior-to-interest dynamic routing: behavior vectors in, interest capsules out.

Li et al. 2019 (MIND), section 4.3 and Algorithm 1, with its traps closed: the softmax is over the interests of each
behavior, padding and unused interests take no part, and the starting logits are a pure function of (item key, slot,
seed), so the same window always gives the same interests, whatever its batch, process or model version.
Shape letters: B windows, L clicks, K interests, D dimensions, N items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SLOTS_PER_HASH = 16
"""A 64 byte hash gives 16 four byte numbers, which make 16 normal ones."""


def route(
    behaviors: Tensor,
    strengths: Tensor,
    logits: Tensor,
    counts: Tensor,
    *,
    rounds: int,
    accumulate: bool,
    scale: float = 1.0,
    general: bool = False,
    shared_map: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cluster behavior vectors into interest capsules.

    Differs from the paper in two points: a behavior's routing weights are multiplied by its strength (recency, click
    weight), and the first interest may be general. Gradients flow through the last round alone.

    Args:
        behaviors: (B, L, D) float32, mapped by the shared matrix S; or, with *shared_map*, before it.
        strengths: (B, L) float32, 0 for padding.
        logits: (B, L, K) float32, starting routing logits; left unchanged.
        counts: (B,) int64, interest counts; the first that many of the K slots are used.
        rounds: routing iterations, at least 1.
        accumulate: add the agreement to the logits instead of assigning it.
        scale: factor on the agreement; 1 is the paper's.
        general: the first slot takes every behavior whole, and the others compete among themselves.
        shared_map: (D, D) float32 S. The map of a sum is the sum of maps, so it is applied to the few capsules and not
            to the many clicks, which is the shorter way where a click is mapped for this call alone. None: it has been.

    Returns:
        (B, K, D) float32 capsules, each shorter than 1, zero where unused; (B, L, K) float32 weights that formed
        them, zero for padding and unused slots.
    """
    counts = counts.clamp(min=1).unsqueeze(-1)  # (B, 1)
    slots = torch.arange(logits.shape[-1], device=logits.device)
    out, whole = slots >= counts, None  # of the contest
    if general:
        is_general = (counts > 1) & (slots == 0)
        out, whole = out | is_general, is_general.to(strengths.dtype).unsqueeze(-1)
    # Clicks last, so that softmax and sums run along memory; (B, K, 1) and (B, 1, L).
    closed = torch.where(out, -torch.inf, 0.0).unsqueeze(-1)
    factors = strengths.unsqueeze(1)
    logits = logits.transpose(1, 2) + closed
    with torch.no_grad():
        turned = behaviors.transpose(1, 2)
        for _ in range(rounds - 1):
            capsules, _weights = _form(behaviors, factors, logits, whole, shared_map)
            if shared_map is not None:
                capsules = capsules @ shared_map.T  # u . (e S) = (u S') . e
            # b_ij: the agreement, assigned or added; minus infinity stays where a slot is closed.
            logits = torch.baddbmm(logits if accumulate else closed, capsules, turned, alpha=scale)
    capsules, weights = _form(behaviors, factors, logits, whole, shared_map)
    return capsules, weights.transpose(1, 2)


def _form(
    behaviors: Tensor, factors: Tensor, logits: Tensor, whole: Tensor | None, shared_map: Tensor | None
) -> tuple[Tensor, Tensor]:
    weights = logits.softmax(dim=1)  # w_ij, over the interests
    if whole is not None:
        weights = weights + whole  # 0 until now
    weights = weights * factors  # padding has strength 0
    sums = torch.bmm(weights, behaviors)
    return squash(sums if shared_map is None else sums @ shared_map), weights  # u_j


def warm_logits(behaviors: Tensor, logits: Tensor, previous: Tensor, *, scale: float) -> Tensor:
    """Return starting logits that lead the clicks back to the interests that a user had before.

    Not in the paper. With it interests move less from click to click, and depend on the clicks that are gone too.

    Args:
        behaviors: (B, L, D) float32, already mapped by S.
        logits: (B, L, K) float32, the seeded ones, which a slot without a previous interest starts from.
        previous: (B, K, D) float32 interest vectors, zero for a slot that was not in use or died.
        scale: factor on the agreement with a previous interest's direction.
    """
    lengths = previous.norm(dim=-1)  # (B, K)
    directions = previous / lengths.clamp(min=torch.finfo(previous.dtype).tiny).unsqueeze(-1)
    agreement = torch.bmm(behaviors, directions.transpose(1, 2)) * scale  # (B, L, K)
    return torch.where((lengths > 0).unsqueeze(1), agreement, logits)


def squash(vectors: Tensor) -> Tensor:
    """Shrink lengths into [0, 1) and keep directions; (..., D) in, float32 (..., D) out."""
    vectors = vectors.float()
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    short: Tensor = vectors * (lengths / (1.0 + lengths * lengths))  # zero stays zero, with a gradient of zero
    return short


def count_interests(rows: np.ndarray, *, interests: int, dynamic: bool, general: bool = False) -> np.ndarray:
    """Return the interest count of each window: (B, L) item rows, 0 for padding, in; (B,) int64 out.

    K'_u = max(1, min(K, floor(log2 n))) for n distinct items (section 4.3, dynamic interest number); 0 for a window
    with no known item, which has nothing to search with. A *general* interest comes on top of those where they are
    more than one, within K.
    """
    if not dynamic:
        return np.where((rows > 0).any(axis=1), interests, 0).astype(np.int64)
    ordered = np.sort(rows, axis=1)
    is_new = ordered > 0
    is_new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    distinct = is_new.sum(axis=1)
    whole_log2 = np.frexp(np.maximum(distinct, 1))[1] - 1  # exact, unlike a rounded logarithm
    if general:
        whole_log2 = np.where(whole_log2 > 1, whole_log2 + 1, whole_log2)
    return np.where(distinct > 0, np.clip(whole_log2, 1, interests), 0).astype(np.int64)


def starting_logits(item_ids: Sequence[str], *, interests: int, seed: int) -> np.ndarray:
    """Return (N + 1, K) float32 standard normal numbers, row i + 1 for item i; row 0, padding, is zero.

    Each number depends on the item's key, the slot and the seed alone: a hash makes uniform numbers, Box-Muller makes
    them normal.
    """
    logits = np.zeros((len(item_ids) + 1, interests), dtype=np.float32)
    if not item_ids:
        return logits
    key = str(seed).encode()
    blocks = []
    for block in range(-(-interests // SLOTS_PER_HASH)):
        digests = b"".join(
            hashlib.blake2b(item.encode(), key=key, digest_size=64, salt=block.to_bytes(4, "little")).digest()
            for item in item_ids
        )
        numbers = np.frombuffer(digests, dtype="<u4").reshape(len(item_ids), SLOTS_PER_HASH // 2, 2)
        uniform = (numbers.astype(np.float64) + 0.5) / 2.0**32
        radius = np.sqrt(-2.0 * np.log(uniform[..., 0]))
        angle = 2.0 * np.pi * uniform[..., 1]
        normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        blocks.append(normal.reshape(len(item_ids), SLOTS_PER_HASH))
    logits[1:] = np.concatenate(blocks, axis=1)[:, :interests]
    return logits
