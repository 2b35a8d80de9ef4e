"""A training part as the arrays that `trainer/loop.py` learns from.

The vocabulary holds the items that training saw, in the order of the set's rows; others have no vector of their own,
only what their fields say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.events import ItemEvent
from engine.model import ItemInput, MindConfig, Vocabulary
from engine.model.features import KnownClicks, WindowBatch, click_strengths, encode_clicks, encode_profiles
from trainer.offline.search import flat_histories
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


def question_windows(
    questions: Sequence[Question], row_of: np.ndarray, vocabulary: Vocabulary, config: MindConfig
) -> tuple[WindowBatch, np.ndarray]:
    """Return what the model sees of each question, as `encode_windows` makes it.

    Args:
        questions: of a set.
        row_of: (N + 1,) the vocabulary's row of each of the set's; 0 for an item that training never saw.
        vocabulary: what the rows are of.
        config: how long windows are, and what weights count.
    """
    lengths = [len(question.history) for question in questions]
    owners, rows = flat_histories(questions)
    known_rows = row_of[rows]
    known = np.flatnonzero(known_rows)
    owners, firsts = owners[known], np.cumsum(lengths) - lengths
    weights = None
    if config.weight_power:
        each = [np.ones(len(one.history)) if one.weights is None else one.weights for one in questions]
        weights = np.concatenate([np.zeros(0), *each]).astype(np.float32)[known]
    clicks = KnownClicks(known_rows[known], owners, known - firsts[owners], weights)
    return encode_clicks(clicks, [question.profile for question in questions], vocabulary, config)


def vocabulary_rows(made: OfflineSet, vocabulary: Vocabulary) -> np.ndarray:
    """Return (N + 1,) int64 the vocabulary's row of each of the set's; 0 for an item that training never saw."""
    rows = [vocabulary.item_rows.get(item, 0) for item in made.item_ids]
    return np.array([0, *rows], dtype=np.int64)


def catalog_inputs(item_ids: Sequence[str], items: Mapping[str, ItemEvent]) -> list[ItemInput]:
    """Return what the model sees of every item."""
    return [item_input(items[item]) if item in items else ItemInput(item) for item in item_ids]
