"""A training part as the arrays that `trainer/loop.py` learns from.

The vocabulary holds the items that training saw, in the order of the set's rows; others have no vector of their own,
only what their fields say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.events import ItemEvent
from engine.model import ItemInput, MindConfig, UserInput, Vocabulary
from engine.model.features import click_strengths, encode_profiles
from trainer.offline.sets import OfflineSet, Part, Question
from trainer.samples import Samples, field_rows, item_input


def training_arrays(made: OfflineSet, part: Part, config: MindConfig) -> tuple[Samples, Vocabulary, np.ndarray]:
    """Return what `train_samples` takes: samples, vocabulary, and the (M + 1, F) int64 field rows of its items."""
    trained = np.flatnonzero(part.counts(made.item_count))
    item_ids = [made.item_ids[row - 1] for row in trained.tolist()]
    inputs = {item: item_input(made.items[item]) for item in item_ids if item in made.items}
    profiles = part.profiles or [{}] * len(part.sequences)
    vocabulary = Vocabulary.build(item_ids, inputs, profiles)
    new_row = np.zeros(made.item_count + 1, dtype=np.int64)
    new_row[trained] = np.arange(1, len(trained) + 1)
    lengths = np.array([len(rows) for rows in part.sequences], dtype=np.int64)
    users = np.repeat(np.arange(len(lengths)), lengths)
    profile_rows, profile_numbers = encode_profiles(profiles, vocabulary.profile_fields)
    samples = Samples(
        rows=new_row[part.flat()],
        strengths=click_strengths(part.flat_weights(), config),
        users=users,
        starts=np.append(0, np.cumsum(lengths))[:-1],
        profile_rows=profile_rows,
        profile_numbers=profile_numbers,
        targets=np.flatnonzero(users[1:] == users[:-1]) + 1,
    )
    return samples, vocabulary, field_rows(vocabulary, made.items)


def user_inputs(made: OfflineSet, questions: Sequence[Question], *, max_clicks: int) -> list[UserInput]:
    """Return what the model sees of each question; of a history the newest clicks that it could use."""
    ids = made.item_ids
    newest = slice(-4 * max_clicks, None)  # the model skips unknown items, so it may take more to find as many known
    return [
        UserInput(
            [ids[row - 1] for row in question.history[newest].tolist()],
            weights=() if question.weights is None else question.weights[newest].tolist(),
            profile=question.profile,
        )
        for question in questions
    ]


def catalog_inputs(item_ids: Sequence[str], items: Mapping[str, ItemEvent]) -> list[ItemInput]:
    """Return what the model sees of every item."""
    return [item_input(items[item]) if item in items else ItemInput(item) for item in item_ids]
