"""MindNetwork, the weights and the forward pass; InterestModel, the same for serving.

Multi-Interest Network with Dynamic routing (Li et al. 2019): item side, extractor, layers over concat(profile,
capsule), label-aware attention. The extractor is MIND's routing, or another one that the config names. History items
and targets share one table and are pooled alike, so the inner product of an interest and an item vector is the score,
and an item that training never saw has a vector from its fields.
Shape letters: B windows, L clicks, K interests, D dimensions, N items, F item fields, P profile attributes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import ConfigError, IncompatibleVersion, InvalidInput
from engine.model.config import MindConfig
from engine.model.extractors import make_extractor
from engine.model.extractors.contract import used_slots
from engine.model.features import Interests, ItemInput, UserInput, WindowBatch, check_windows, encode_windows
from engine.model.gather import gather
from engine.model.vocabulary import Vocabulary

FIELD_ROWS = "item_field_rows"
"""Name of the only integer tensor: the (N + 1, F) rows of every known item's fields."""
UNSTORED_PREFIX = "extractor."
"""Left out of the stored names, which are those of the paper's parts wherever the code keeps them."""

CACHED_NUMBERS = 400_000
"""So many float32 numbers of behavior vectors are routed at once on a CPU: 1.6 MB, most of which a core caches."""
ITEMS_AT_ONCE = 65_536
"""So many items are pooled together: their fields' vectors lie beside one another meanwhile."""


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
    """The trainable part; `InterestModel` wraps it for serving, `trainer/loop.py` trains it."""

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


class InterestModel:
    """One trained model, read-only: windows to interests, items to vectors.

    Every method may be called from any thread. What the extractor does to each item alone (S, in MIND) is folded into
    the item table once, here, so a window costs one gather. Results depend on the user or item alone: not on the
    batch, its padding, the process or earlier calls.
    """

    def __init__(self, network: MindNetwork, vocabulary: Vocabulary, *, device: str = "cpu") -> None:
        self.config = network.config
        self.vocabulary = vocabulary
        self._device = torch.device(device)
        self._network = network.to(self._device).eval().requires_grad_(False)
        with torch.no_grad():
            blocks = [self._network.map_behaviors(items) for items in self._pooled_items()]
            self._behaviors = torch.cat(blocks)  # (N + 1, D)
        self._trained_fields = self._network.item_field_rows.cpu().numpy()  # (N + 1, F)

    def interests(self, users: Sequence[UserInput], *, previous: np.ndarray | None = None) -> Interests:
        """Return the interests of *users*; one without a known, positive click has none in use and zero vectors.

        Args:
            users: B windows and profiles.
            previous: (B, K, D) float32 interests that the users had before, zero for none, for `mind` to start from;
                then the answer depends on them too. None: on the windows alone.
        """
        batch, positions = encode_windows(users, self.vocabulary, self.config)
        vectors, mask, weights = self.extract(batch, previous=previous)
        return Interests(vectors, mask, weights, positions, self.config.has_general_interest)

    def user_vectors(
        self, windows: Sequence[Sequence[str]], profiles: Sequence[Mapping[str, str | float]] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the (B, K, D) float32 interests of B windows and their (B, K) bool mask, True for those in use.

        Args:
            windows: clicked item ids, the oldest first; ids that training never saw are skipped.
            profiles: one a window; None: all unknown.

        Raises:
            InvalidInput: they are not one a window, a window is one text, or a value of a profile is none.
        """
        known = profiles if profiles is not None else [{}] * len(windows)
        if len(known) != len(windows):
            raise InvalidInput("profiles", got=len(known), expected=f"one a window, {len(windows)}")
        users = [UserInput(window, profile=profile) for window, profile in zip(windows, known, strict=True)]
        found = self.interests(users)
        return found.vectors, found.mask

    def extract(
        self, batch: WindowBatch, *, previous: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return vectors, mask and weights, as in `Interests`, of windows that are arrays already.

        Raises:
            InvalidInput: an array of *batch*, or *previous*, has another type, shape or range.
        """
        check_windows(batch, self.vocabulary, self.config)
        if previous is not None:
            self._check_previous(previous, len(batch.rows))
        windows = WindowTensors.of(batch, self._device)
        before = None if previous is None else torch.from_numpy(previous).to(self._device)
        with torch.inference_mode():
            vectors, weights = self._network.route_rows(
                self._behaviors, windows, before, at_once=self._windows_at_once(batch)
            )
        mask = np.arange(self.config.interests) < batch.counts[:, None]
        return vectors.cpu().numpy(), mask, weights.cpu().numpy()

    def _check_previous(self, previous: np.ndarray, count: int) -> None:
        shape = (count, self.config.interests, self.config.dimensions)
        if previous.dtype != np.float32 or previous.shape != shape:
            got = f"{previous.dtype} of shape {previous.shape}"
            raise InvalidInput("previous interests", got=got, expected=f"float32 of shape {shape}")
        if not np.isfinite(previous).all():
            raise InvalidInput("previous interests", got="NaN or infinity", expected="finite numbers")

    def _windows_at_once(self, batch: WindowBatch) -> int:
        """Return how many windows are routed together: all on a GPU, as many as fit a core's cache on a CPU."""
        if self._device.type != "cpu":
            return max(len(batch.rows), 1)
        numbers: int = batch.rows.shape[1] * self._behaviors.shape[1]
        return max(1, CACHED_NUMBERS // max(numbers, 1))

    def item_vectors(self, items: Sequence[ItemInput]) -> np.ndarray:
        """Return the (N, D) float32 vectors of *items* as the catalog describes them now.

        A known item keeps the fields of its training where *items* gives none. An unknown one is the mean of its known
        fields; with none of those its vector is zero, and it can't be recalled.

        Raises:
            InvalidInput: one is no `ItemInput`, or a value of its fields is NaN, or no text and no number.
        """
        for item in items:
            if not isinstance(item, ItemInput):
                raise InvalidInput("an item", got=item, expected="an ItemInput")
        known = np.array([self.vocabulary.item_rows.get(item.item_id, 0) for item in items], dtype=np.int64)
        given = np.array([self.vocabulary.field_rows(item) for item in items], dtype=np.int64)
        rows = torch.from_numpy(known).to(self._device)
        with torch.inference_mode():
            trained = self._network.item_field_rows[rows]
            now = torch.from_numpy(given.reshape(trained.shape)).to(self._device)
            field_rows = torch.where(now > 0, now, trained)
            vectors = self._network.pool(self._network.item_ids(rows), (rows > 0).float(), field_rows)
        return vectors.cpu().numpy()

    def differ(self, items: Sequence[ItemInput]) -> np.ndarray:
        """Return (N,) bool, True for *items* that have another vector than training gave them, unknown ones included.

        False for an unknown item without a known field: it has no vector.

        Raises:
            InvalidInput: a value of an item's fields is NaN, or no text and no number.
        """
        if not self.vocabulary.item_fields:
            return np.zeros(len(items), dtype=np.bool_)
        known = np.array([self.vocabulary.item_rows.get(item.item_id, 0) for item in items], dtype=np.int64)
        given = np.array([self.vocabulary.field_rows(item) for item in items], dtype=np.int64).reshape(len(items), -1)
        trained = self._trained_fields[known]
        return np.asarray(((given > 0) & (given != trained)).any(axis=1))

    def all_item_vectors(self) -> tuple[list[str], np.ndarray]:
        """Return the ids of all known items and their (N, D) float32 vectors, in row order."""
        vectors = np.empty((len(self.vocabulary.item_ids) + 1, self.config.dimensions), dtype=np.float32)
        start = 0
        with torch.inference_mode():
            for items in self._pooled_items():
                vectors[start : start + len(items)] = items.cpu().numpy()
                start += len(items)
        return list(self.vocabulary.item_ids), vectors[1:]

    def _pooled_items(self) -> Iterator[Tensor]:
        """Yield the vectors of padding and all known items, in row order, a block at a time."""
        rows = torch.arange(len(self.vocabulary.item_ids) + 1, device=self._device)
        for start in range(0, len(rows), ITEMS_AT_ONCE):
            yield self._network.pool_items(rows[start : start + ITEMS_AT_ONCE])

    def parts(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
        """Return config, vocabulary (both plain JSON values) and tensors: all that `load_parts` needs."""
        tensors = {name: tensor.cpu().numpy().copy() for name, tensor in _stored_tensors(self._network).items()}
        return self.config.to_dict(), self.vocabulary.to_dict(), tensors

    @classmethod
    def load_parts(
        cls,
        config: Mapping[str, Any],
        vocabulary: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        *,
        device: str = "cpu",
        version: str = "(unnamed)",
    ) -> Self:
        """Return the model whose `parts` these are.

        Raises:
            IncompatibleVersion: the parts don't fit this build or one another; it names *version*.
        """
        try:
            mind_config = MindConfig.from_dict(config)
        except ConfigError as error:
            raise IncompatibleVersion(version, part=error.key, got=error.got, expected=error.expected) from error
        try:
            words = Vocabulary.from_dict(vocabulary)
        except (KeyError, TypeError, ValueError) as error:
            raise IncompatibleVersion(version, part="vocabulary", got=repr(error), expected="readable") from error
        field_rows = torch.zeros(len(words.item_ids) + 1, len(words.item_fields), dtype=torch.int64)
        network = MindNetwork(mind_config, words, field_rows)
        _check_tensors(tensors, network, words, version)
        with torch.no_grad():
            for name, tensor in _stored_tensors(network).items():
                tensor.numpy()[...] = tensors[name]
        return cls(network, words, device=device)


def _stored_tensors(network: MindNetwork) -> dict[str, Tensor]:
    """Return the tensors of *network* by the names they are stored under."""
    return {name.removeprefix(UNSTORED_PREFIX): tensor for name, tensor in network.state_dict().items()}


def _check_tensors(
    tensors: Mapping[str, np.ndarray], network: MindNetwork, vocabulary: Vocabulary, version: str
) -> None:
    expected = {
        name: f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
        for name, tensor in _stored_tensors(network).items()
    }
    got = {name: f"{tensor.dtype} of shape {tensor.shape}" for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | got.keys()):
        if got.get(name) != expected.get(name):
            part = f"tensor {name}"
            raise IncompatibleVersion(version, part=part, got=got.get(name), expected=expected.get(name))
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise IncompatibleVersion(version, part=f"tensor {name}", got="not finite", expected="finite numbers")
    rows = tensors[FIELD_ROWS]
    if rows.size and (rows.min() < 0 or rows.max() > vocabulary.field_row_count):
        part = f"tensor {FIELD_ROWS}"
        raise IncompatibleVersion(
            version, part=part, got=int(rows.max()), expected=f"0 to {vocabulary.field_row_count}"
        )
