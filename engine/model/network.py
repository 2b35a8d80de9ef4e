"""MindNetwork: the weights and the forward pass.

Multi-Interest Network with Dynamic routing (Li et al. 2019): item side, extractor, layers over concat(profile,
capsule), label-aware attention. The extractor is MIND's routing, or another one that the config names. History items
and targets share one table and are pooled alike, so the inner product of an interest and an item vector is the score,
and an item that training never saw has a vector from its fields.
Shape letters: B windows, L clicks, K interests, D dimensions, N items, F item fields, P profile attributes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.model.config import MindConfig
from engine.model.extractors import make_extractor
from engine.model.extractors.contract import used_slots
from engine.model.features import WindowBatch
from engine.model.gather import gather
from engine.model.vocabulary import Vocabulary

FIELD_ROWS = "item_field_rows"
"""Name of the only integer tensor: the (N + 1, F) rows of every known item's fields."""


@dataclass(frozen=True, slots=True)
class WindowTensors:
    """A `WindowBatch` on the device of the network, field by field."""

    rows: Tensor
    strengths: Tensor
    counts: Tensor
    profile_rows: Tensor
    profile_numbers: Tensor

    @classmethod
    def of(cls, batch: WindowBatch, device: torch.device) -> Self:
        """Return *batch* on *device*."""
        arrays = (batch.rows, batch.strengths, batch.counts, batch.profile_rows, batch.profile_numbers)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    def part(self, places: slice) -> Self:
        """Return the windows at *places*."""
        fields = (self.rows, self.strengths, self.counts, self.profile_rows, self.profile_numbers)
        return type(self)(*(field[places] for field in fields))


class MindNetwork(nn.Module):
    """The trainable part; `trainer/loop.py` trains it, `InterestModel` wraps it for serving."""

    item_field_rows: Tensor

    def __init__(self, config: MindConfig, vocabulary: Vocabulary, field_rows: Tensor) -> None:
        super().__init__()
        self.config = config
        size = config.dimensions
        self.item_ids = nn.Embedding(len(vocabulary.item_ids) + 1, size, padding_idx=0)
        self.item_fields = nn.Embedding(vocabulary.field_row_count + 1, size, padding_idx=0)
        self.extractor = make_extractor(config, vocabulary.item_ids)
        self.recency = nn.Parameter(-config.recency_start * torch.arange(config.max_clicks, dtype=torch.float32))
        self.scale = nn.Parameter(torch.tensor(float(config.interest_scale)))
        self.profile = ProfileLayer(config, vocabulary)
        sizes = (size + self.profile.width, *config.hidden, size)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.register_buffer(FIELD_ROWS, field_rows)
        self._initialize()

    def _initialize(self) -> None:
        for table in (self.item_ids, self.item_fields):
            nn.init.normal_(table.weight, std=self.config.dimensions**-0.5)
            with torch.no_grad():
                table.weight[0] = 0.0
        if self.config.residual:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)  # the layers start as nothing beside the capsule

    def pool_items(self, rows: Tensor, *, id_kept: Tensor | None = None) -> Tensor:
        """Return (..., D) vectors of known items: the mean of the id's vector and those of the fields present.

        Args:
            rows: (...) int64 item rows; 0 gives a zero vector.
            id_kept: (...) bool, False to leave the id out where the item has a field; None keeps every id.
        """
        if not self.item_field_rows.shape[1]:
            return gather(self.item_ids.weight, rows)  # nothing to pool; row 0 is zero
        field_rows = self.item_field_rows[rows]  # (..., F)
        has_id = (rows > 0).float()
        if id_kept is not None:
            has_id = has_id * (id_kept | (field_rows == 0).all(dim=-1)).float()
        return self.pool(gather(self.item_ids.weight, rows), has_id, field_rows)

    def pool(self, id_vectors: Tensor, has_id: Tensor, field_rows: Tensor) -> Tensor:
        """Return the (..., D) mean of the id vectors where *has_id* is 1 and of the (..., F) field rows above 0."""
        total = id_vectors * has_id.unsqueeze(-1)
        present = has_id
        if field_rows.shape[-1]:
            total = total + gather(self.item_fields.weight, field_rows).sum(dim=-2)
            present = present + (field_rows > 0).sum(dim=-1)
        return total / present.clamp(min=1.0).unsqueeze(-1)

    def map_behaviors(self, vectors: Tensor) -> Tensor:
        """Return the (..., W) behavior vectors of (..., D) item vectors: S applied, in MIND."""
        return self.extractor.fold(vectors)

    def forward(
        self, behaviors: Tensor, windows: WindowTensors, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the interests of B windows.

        Args:
            behaviors: (B, L, W) item vectors, mapped by `map_behaviors`.
            windows: the rest of the same windows.
            previous: (B, K, D) float32 interests to start routing from; zero for none.

        Returns:
            (B, K, D) float32 interest vectors, zero where unused, and the (B, L, K) float32 routing weights.
        """
        capsules, weights = self._extract(behaviors, windows, self._strengths(windows), previous)
        return self._finish(capsules, windows), weights

    def route_rows(
        self, table: Tensor, windows: WindowTensors, previous: Tensor | None = None, *, at_once: int
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, gathering the behavior vectors of *at_once* windows at a time.

        On a CPU the gathered vectors then stay in the cache through all rounds of routing.

        Args:
            table: (N + 1, W) item vectors, mapped by `map_behaviors`, for the rows of *windows*.
            windows: B windows.
            previous: as in `forward`.
            at_once: at least 1.
        """
        strengths = self._strengths(windows)
        capsules, weights = [], []
        for start in range(0, max(len(windows.rows), 1), at_once):
            places = slice(start, start + at_once)
            part = windows.part(places)
            known = None if previous is None else previous[places]
            found = self._extract(functional.embedding(part.rows, table), part, strengths[places], known)
            capsules.append(found[0])
            weights.append(found[1])
        return self._finish(torch.cat(capsules), windows), torch.cat(weights)

    def _strengths(self, windows: WindowTensors) -> Tensor:
        """Return (B, L) how much each click counts, its age considered."""
        if not self.config.recency:
            return windows.strengths
        return windows.strengths * self.recency[: windows.rows.shape[1]].flip(0).exp()

    def _extract(
        self, behaviors: Tensor, windows: WindowTensors, strengths: Tensor, previous: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        count, length = windows.rows.shape
        if not count or not length:
            slots = self.config.interests
            return behaviors.new_zeros(count, slots, self.config.dimensions), behaviors.new_zeros(count, length, slots)
        capsules, weights = self.extractor(behaviors, strengths, windows.rows, windows.counts, previous)
        return capsules, weights

    def _finish(self, capsules: Tensor, windows: WindowTensors) -> Tensor:
        """Return (B, K, D) interests of the capsules, zero where unused."""
        vectors = self._layers(capsules, windows)
        return vectors * used_slots(windows.counts, interests=self.config.interests).unsqueeze(-1)

    def _layers(self, capsules: Tensor, windows: WindowTensors) -> Tensor:
        hidden = capsules
        if self.profile.width:
            profiles = self.profile(windows.profile_rows, windows.profile_numbers)
            hidden = torch.cat([profiles.unsqueeze(1).expand(-1, capsules.shape[1], -1), capsules], dim=-1)
        for layer in self.layers[:-1]:
            hidden = functional.relu(layer(hidden))
        vectors: Tensor = self.layers[-1](hidden)
        vectors = capsules + vectors if self.config.residual else functional.relu(vectors)
        return functional.normalize(vectors, dim=-1) * self.scale if self.config.normalize_interests else vectors


class ProfileLayer(nn.Module):
    """Profile attributes to one vector: a row for each text and for "unknown", a direction for each number."""

    starts: Tensor

    def __init__(self, config: MindConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        fields = vocabulary.profile_fields
        sizes = [2 if field.is_number else field.row_count + 1 for field in fields]
        self.width = len(fields) * config.profile_dimensions
        self.values = nn.Embedding(max(sum(sizes), 1), config.profile_dimensions)
        self.directions = nn.Parameter(torch.zeros(len(fields), config.profile_dimensions))
        nn.init.normal_(self.values.weight, std=0.1)
        starts = torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0)[:-1]
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """Return (B, width) float32 for the (B, P) `profile_rows` and `profile_numbers` of a window batch."""
        vectors: Tensor = self.values(rows + self.starts) + numbers.unsqueeze(-1) * self.directions
        return vectors.flatten(1)


def attend(interests: Tensor, used: Tensor, targets: Tensor, *, power: float) -> Tensor:
    """Return the (B, D) user vectors that face *targets*: label-aware attention, section 4.4.

    The paper's softmax(pow(score, p)) breaks on negative scores; this is softmax(p * score), as monotone: p = 0 weighs
    the interests alike, p = inf takes the best one alone.

    Args:
        interests: (B, K, D) float32.
        used: (B, K) bool, at least one True in each row.
        targets: (B, D) float32 item vectors.
        power: p, 0 to inf.
    """
    scores = torch.bmm(interests, targets.unsqueeze(-1)).squeeze(-1).masked_fill(~used, -torch.inf)  # (B, K)
    if math.isinf(power):
        best = scores.argmax(dim=-1).view(-1, 1, 1).expand(-1, 1, interests.shape[-1])
        return interests.gather(1, best).squeeze(1)
    weights = (scores * power if power else torch.zeros_like(scores)).masked_fill(~used, -torch.inf).softmax(dim=-1)
    return torch.bmm(weights.unsqueeze(1), interests).squeeze(1)
