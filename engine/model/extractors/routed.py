"""Capsule networks: MIND's routing, ComiRec's, and the original one.

They differ in the map from item vectors to behavior vectors, and so in where routing may start: with one shared map,
equal starting logits would make all interests equal for ever; with a map per interest, they need not be drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.model.config import MindConfig
from engine.model.extractors.contract import Extractor, used_slots
from engine.model.routing import route, squash, warm_logits

MAP_SPREAD = 0.5
"""Deviation of a map per interest from the identity at the start, times sqrt(D)."""


class MindRouting(Extractor):
    """Behavior-to-interest routing of Li et al. 2019 (MIND), section 4.3: one map S, seeded starting logits."""

    logits: Tensor

    def __init__(self, config: MindConfig, logits: np.ndarray) -> None:
        super().__init__()
        self._config = config
        self.shared_map = nn.Parameter(torch.eye(config.dimensions))  # S
        self.register_buffer("logits", torch.from_numpy(logits), persistent=False)

    def fold(self, items: Tensor) -> Tensor:
        """Return S applied to (..., D) item vectors; in training they stay as they are, and `route` maps capsules."""
        return items if self.training else items @ self.shared_map

    def forward(
        self, behaviors: Tensor, strengths: Tensor, rows: Tensor, counts: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return capsules and routing weights; see `route`, and `warm_logits` for *previous*."""
        scale = self._config.agreement_scale
        logits = functional.embedding(rows, self.logits)
        if previous is not None:
            mapped = behaviors @ self.shared_map if self.training else behaviors
            logits = warm_logits(mapped, logits, previous, scale=scale)
        return route(
            behaviors,
            strengths,
            logits,
            counts,
            rounds=self._config.rounds,
            accumulate=self._config.accumulate_logits,
            scale=scale,
            general=self._config.has_general_interest,
            shared_map=self.shared_map if self.training else None,
        )


class ComiRecRouting(Extractor):
    """Dynamic routing of Cen et al. 2020 (ComiRec), section 3.2: own map of each interest, logits from 0, accumulated.

    Their equations have a matrix W_ij; this is the reading with one per interest j, shared by all places i of the
    window, so a click's behavior vectors fold into the item table (K D numbers an item). Their code's matrix for each
    place and interest is `CapsuleNetwork`. The maps start near the identity, theirs at N(0, 1). Strengths multiply the
    routing weights, as in `route`.
    """

    def __init__(self, config: MindConfig) -> None:
        super().__init__()
        self._rounds = config.rounds
        self.maps = nn.Parameter(_near_identity(config.interests, config.dimensions))  # (K, D, D)

    def fold(self, items: Tensor) -> Tensor:
        """Return (..., K D): every map applied to (..., D) item vectors."""
        return torch.einsum("...d,kde->...ke", items, self.maps).flatten(-2)

    def forward(
        self, behaviors: Tensor, strengths: Tensor, rows: Tensor, counts: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return capsules and routing weights; see `route_mapped`."""
        mapped = behaviors.reshape(*rows.shape, len(self.maps), -1)
        return route_mapped(mapped, strengths, counts, rounds=self._rounds)


class CapsuleNetwork(Extractor):
    """The original routing of Sabour et al. 2017, Procedure 1: own map of each place in the window and interest.

    A place is an age counted from the newest click, so padding moves nothing. L K maps don't fold into the item table:
    every window pays L K D D multiplications. As in MIND and in ComiRec's code, and unlike the original, gradients
    flow through the last round alone.
    """

    def __init__(self, config: MindConfig) -> None:
        super().__init__()
        self._rounds = config.rounds
        maps = _near_identity(config.max_clicks * config.interests, config.dimensions)
        self.maps = nn.Parameter(maps.reshape(config.max_clicks, config.interests, *maps.shape[1:]))

    def forward(
        self, behaviors: Tensor, strengths: Tensor, rows: Tensor, counts: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return capsules and routing weights; see `route_mapped`."""
        by_place = self.maps[: behaviors.shape[1]].flip(0)
        mapped = torch.einsum("bld,lkde->blke", behaviors, by_place)
        return route_mapped(mapped, strengths, counts, rounds=self._rounds)


def route_mapped(mapped: Tensor, strengths: Tensor, counts: Tensor, *, rounds: int) -> tuple[Tensor, Tensor]:
    """Route behaviors that have a vector of their own for each interest.

    Args:
        mapped: (B, L, K, D) float32, the vectors of each click towards each interest.
        strengths: (B, L) float32, 0 for padding.
        counts: (B,) int64 interest counts.
        rounds: routing iterations, at least 1; only the last one has gradients.

    Returns:
        (B, K, D) float32 capsules, each shorter than 1, and the (B, L, K) float32 weights that formed them.
    """
    mapped = mapped.transpose(1, 2)  # (B, K, L, D)
    unused = ~used_slots(counts.clamp(min=1), interests=mapped.shape[1])
    logits = strengths.new_zeros(mapped.shape[:3]).masked_fill(unused.unsqueeze(-1), -torch.inf)  # b_ij
    with torch.no_grad():
        for _ in range(rounds - 1):
            capsules, _weights = _form(mapped, strengths, logits)
            logits = logits + (mapped @ capsules.unsqueeze(-1)).squeeze(-1)
    return _form(mapped, strengths, logits)


def _form(mapped: Tensor, strengths: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    weights = logits.softmax(dim=1) * strengths.unsqueeze(1)  # c_ij, over the interests
    return squash((weights.unsqueeze(2) @ mapped).squeeze(2)), weights.transpose(1, 2)


def _near_identity(count: int, size: int) -> Tensor:
    maps: Tensor = torch.eye(size) + torch.randn(count, size, size) * MAP_SPREAD * size**-0.5
    return maps
