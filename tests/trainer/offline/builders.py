"""Builders of the smallest sets that a test of the offline bench needs."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.events import ItemEvent
from trainer.offline.sets import OfflineSet, Part, Question


def rows_of(*rows: int) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def ask(history: Sequence[int], targets: Sequence[int], user_id: str = "u") -> Question:
    return Question(user_id, rows_of(*history), rows_of(*sorted(targets)))


def make_part(*sequences: Sequence[int]) -> Part:
    return Part([rows_of(*rows) for rows in sequences], [f"u{number}" for number in range(len(sequences))])


def make_set(
    part: Part,
    test: Sequence[Question],
    *,
    items: int,
    valid: Sequence[Question] = (),
    catalog: Mapping[str, ItemEvent] | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> OfflineSet:
    """Return a set whose items are `i1`, `i2`, ..."""
    return OfflineSet(
        name="made",
        split="comirec",
        item_ids=[f"i{row}" for row in range(1, items + 1)],
        train=part,
        final_train=part,
        valid=valid,
        test=test,
        items=catalog or {},
        categories=categories or {},
    )


class FixedScores:
    """A method that always gives the same scores, one of padding first."""

    name = "fixed"

    def __init__(self, *scores: float) -> None:
        self._scores = torch.tensor(scores)

    def scores(self, questions: Sequence[Question]) -> Tensor:
        return self._scores.repeat(len(questions), 1)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def draw_sequences(*, users: int, items: int, longest: int, seed: int = 3) -> list[np.ndarray]:
    """Return random sequences with repeats, some of them empty."""
    random = np.random.default_rng(seed)
    return [random.integers(1, items + 1, size=random.integers(0, longest + 1)) for _ in range(users)]
