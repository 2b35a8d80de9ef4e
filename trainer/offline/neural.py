"""Methods that answer with vectors: capsule routing, and the single vector beside it.

Scores are the greatest inner product over the interests in use. An item with no vector, unseen in training and with no
known field, can't be recalled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from engine.errors import ConfigError
from engine.model import InterestModel, Interests, MindConfig
from trainer.checkpoint import Checkpoints
from trainer.loop import Progress, train_samples
from trainer.loss import best_scores
from trainer.offline.arrays import catalog_inputs, question_windows, training_arrays, vocabulary_rows
from trainer.offline.sets import OfflineSet, Part, Question
from trainer.options import TrainOptions
from trainer.presets import Preset, paper

BATCH_USERS = 256


class InterestMethod:
    """A trained model that answers questions of *made*."""

    def __init__(self, model: InterestModel, made: OfflineSet, *, name: str) -> None:
        self.name = name
        self.model = model
        self._row_of = vocabulary_rows(made, model.vocabulary)
        vectors = model.item_vectors(catalog_inputs(made.item_ids, made.items))
        self.item_vectors = np.concatenate([np.zeros((1, vectors.shape[1]), dtype=np.float32), vectors])
        """(N + 1, D) float32, row 0 padding."""
        self.has_vector = np.abs(self.item_vectors).max(axis=1) > 0
        """(N + 1,) bool, False for padding and items that can't be recalled."""
        self._items = torch.from_numpy(self.item_vectors)
        self._lost = torch.from_numpy(~self.has_vector)

    def users(self, questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
        """Return the (B, K, D) float32 interests of the questions and the (B, K) bool mask of those in use."""
        vectors, mask, _claims = self.users_with_claims(questions)
        return vectors, mask

    def users_with_claims(self, questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what `users` does, and the (B, K) parts of a list that the interests claim."""
        vectors, masks, claims = [], [], []
        model = self.model
        for start in range(0, len(questions), BATCH_USERS):
            asked = questions[start : start + BATCH_USERS]
            windows, positions = question_windows(asked, self._row_of, model.vocabulary, model.config)
            found = Interests(*model.extract(windows), positions, model.config.has_general_interest)
            vectors.append(found.vectors)
            masks.append(found.mask)
            claims.append(found.claims)
        return np.concatenate(vectors), np.concatenate(masks), np.concatenate(claims)

    def scores(self, questions: Sequence[Question]) -> Tensor:
        """Return the best inner products over the interests in use; -inf where there is no vector."""
        vectors, mask = self.users(questions)
        return interest_scores(torch.from_numpy(vectors), torch.from_numpy(mask), self._items).masked_fill_(
            self._lost, -torch.inf
        )


def interest_scores(vectors: Tensor, used: Tensor, items: Tensor) -> Tensor:
    """Return the (B, N + 1) best inner products over the interests in use; -inf for a user with none."""
    return best_scores(vectors, used, items).masked_fill(~used.any(dim=1, keepdim=True), -torch.inf)


def train_method(
    made: OfflineSet,
    part: Part,
    config: MindConfig,
    options: TrainOptions,
    *,
    name: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    checkpoints: Checkpoints | None = None,
) -> InterestMethod:
    """Return a model trained on *part* as a method."""
    samples, vocabulary, rows = training_arrays(made, part, config)
    model = train_samples(samples, vocabulary, rows, config, options, on_progress, checkpoints=checkpoints)
    return InterestMethod(model, made, name=name)


def single_vector() -> Preset:
    """Return the YouTube DNN: the mean of the behavior vectors through ReLU layers, one vector a user."""
    config, options = paper()
    return with_extractor(replace(config, interests=1), "single"), options


def with_extractor(config: MindConfig, extractor: str | None) -> MindConfig:
    """Return *config* with another way from clicks to interests; `single` has one interest.

    Raises:
        ConfigError: there is no such extractor.
    """
    if extractor is None:
        return config
    if extractor == "single":
        config = replace(config, interests=1)
    if any(field.name == "extractor" for field in fields(MindConfig)):
        return MindConfig.from_dict({**config.to_dict(), "extractor": extractor})
    if extractor == "mind":
        return config
    if extractor == "single":
        # With one interest, routing is the weighted mean of the behaviors: softmax over one slot is 1.
        return replace(config, recency=False)
    raise ConfigError("--extractor", got=extractor, expected="mind or single")
