"""InterestModel: one trained model, for serving; from windows to interests, from the catalog to item vectors.

Shape letters: B windows, K interests, D dimensions, N items, F item fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from engine.errors import ConfigError, IncompatibleVersion, InvalidInput
from engine.model.config import MindConfig
from engine.model.features import Interests, ItemInput, UserInput, WindowBatch, check_windows, encode_windows
from engine.model.network import FIELD_ROWS, MindNetwork, WindowTensors
from engine.model.vocabulary import Vocabulary

UNSTORED_PREFIX = "extractor."
"""Left out of the stored names, which are those of the paper's parts wherever the code keeps them."""
CACHED_NUMBERS = 400_000
"""So many float32 numbers of behavior vectors are routed at once on a CPU: 1.6 MB, most of which a core caches."""
ITEMS_AT_ONCE = 65_536
"""So many items are pooled together: their fields' vectors lie beside one another meanwhile."""


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
