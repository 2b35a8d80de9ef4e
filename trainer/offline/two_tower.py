"""A plain two-tower model, as most teams would write it first: the yardstick for what routing adds.

User tower: mean of the window's item vectors and the profile, through one ReLU layer. Item tower: mean of id and field
vectors, of a table of its own. Softmax over the items of the batch with the logQ correction, accidental hits masked,
Adam at one rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.model import MindConfig, Vocabulary
from engine.model.features import WindowBatch
from engine.model.network import ProfileLayer
from trainer.offline.arrays import catalog_inputs, question_windows, training_arrays, vocabulary_rows
from trainer.offline.sets import OfflineSet, Part, Question
from trainer.options import TrainOptions
from trainer.samples import cut_windows

LEARNING_RATE = 3e-3
SCALE = 8.0
"""Both vectors have length 1 in training, so their product is sharpened by this much."""


class Towers(nn.Module):
    """The two towers; item rows are the vocabulary's."""

    def __init__(self, config: MindConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        size = config.dimensions
        self.behaviors = nn.EmbeddingBag(len(vocabulary.item_ids) + 1, size, mode="mean", padding_idx=0)
        self.items = nn.EmbeddingBag(len(vocabulary.item_ids) + 1 + vocabulary.field_row_count, size, padding_idx=0)
        self.profile = ProfileLayer(config, vocabulary)
        self.hidden = nn.Linear(size + self.profile.width, 2 * size)
        self.last = nn.Linear(2 * size, size)

    def user_vectors(self, windows: WindowBatch) -> Tensor:
        """Return (B, D) vectors of length 1."""
        profile = self.profile(torch.from_numpy(windows.profile_rows), torch.from_numpy(windows.profile_numbers))
        mean = self.behaviors(torch.from_numpy(windows.rows))
        hidden = functional.relu(self.hidden(torch.cat([mean, profile], dim=1)))
        return functional.normalize(self.last(hidden), dim=1)

    def item_vectors(self, parts: Tensor) -> Tensor:
        """Return (B, D) vectors of length 1, zero for an item with no part; *parts* are (B, 1 + F) rows, 0 for none."""
        return functional.normalize(self.items(parts), dim=1)


class TwoTower:
    """The trained towers as a method."""

    name = "two-tower"

    def __init__(
        self,
        made: OfflineSet,
        part: Part,
        config: MindConfig,
        options: TrainOptions,
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._set, self._config = made, config
        self._samples, self._vocabulary, field_rows = training_arrays(made, part, config)
        self._row_of = vocabulary_rows(made, self._vocabulary)
        torch.manual_seed(options.seed)
        self._towers = Towers(config, self._vocabulary)
        known = np.arange(len(field_rows))[:, None]
        parts = np.concatenate([known, np.where(field_rows > 0, field_rows + len(known) - 1, 0)], axis=1)
        self._train(torch.from_numpy(parts), options, on_progress)
        self._towers.eval()
        self._items = self._catalog()

    def scores(self, questions: Sequence[Question]) -> Tensor:
        """Return the inner products; -inf for items that have no vector and users with no known click."""
        windows, _positions = question_windows(questions, self._row_of, self._vocabulary, self._config)
        if not windows.rows.shape[1]:
            return torch.full((len(questions), len(self._items)), -torch.inf)
        with torch.no_grad():
            scores = self._towers.user_vectors(windows) @ self._items.T
        scores.masked_fill_(~self._items.any(dim=1), -torch.inf)
        return scores.masked_fill_(torch.from_numpy(windows.counts == 0).unsqueeze(1), -torch.inf)

    def _catalog(self) -> Tensor:
        """Return the (N + 1, D) vectors of the set's items."""
        rows = [[0] * (1 + len(self._vocabulary.item_fields))]
        base = len(self._vocabulary.item_ids)
        for item in catalog_inputs(self._set.item_ids, self._set.items):
            given = [row and base + row for row in self._vocabulary.field_rows(item)]
            rows.append([self._vocabulary.item_rows.get(item.item_id, 0), *given])
        with torch.no_grad():
            return self._towers.item_vectors(torch.tensor(rows))

    def _train(self, parts: Tensor, options: TrainOptions, on_progress: Callable[[int, int], None]) -> None:
        samples, random = self._samples, np.random.default_rng(options.seed)
        share = torch.from_numpy(np.bincount(samples.rows[samples.targets], minlength=len(parts))).double()
        logged = (share / share.sum()).clamp(min=1e-12).log().float()  # log Q
        optimizer = torch.optim.Adam(self._towers.parameters(), lr=LEARNING_RATE)
        started, steps = time.monotonic(), max(1, int(options.epochs * len(samples.targets) / options.batch_size))
        for step in range(steps):
            ends = samples.targets[random.integers(len(samples.targets), size=options.batch_size)]
            wanted = torch.from_numpy(samples.rows[ends])
            users = self._towers.user_vectors(cut_windows(samples, ends, self._config))
            scores = SCALE * users @ self._towers.item_vectors(parts[wanted]).T - logged[wanted]
            same = wanted.unsqueeze(0) == wanted.unsqueeze(1)
            same.fill_diagonal_(False)
            loss = functional.cross_entropy(scores.masked_fill(same, -torch.inf), torch.arange(len(wanted)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            on_progress(step + 1, steps)
            if time.monotonic() - started > options.max_seconds:
                break
