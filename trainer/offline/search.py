"""Exact top-N: scores to item rows, deterministic to the last tie.

A method scores every item for a batch of questions; from the same scores come two lists, one with the history among
the candidates and one without. Row 0, padding, is never a candidate; an item scored -inf is none either, and a list
that runs out of candidates ends in zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.ann.index import best_first
from engine.ann.selection import top_places
from engine.errors import UnusableInterests
from trainer.offline.sets import Question

TOP = 50
CHUNK_SCORES = 16_000_000
"""So many scores are held at a time: 64 MB."""

OnDone = Callable[[int, int], None]
"""Called with the questions answered so far and all of them."""


class Method(Protocol):
    """Anything that scores all items for a user's history."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def scores(self, questions: Sequence[Question]) -> Tensor:
        """Return (B, N + 1) float32 scores, greater is better, -inf for what can't be recalled; may be written to."""
        ...


@dataclass(frozen=True, slots=True)
class Answers:
    """The lists of one method for Q questions, best first."""

    kept: np.ndarray
    """(Q, 50) int64 item rows, the history among the candidates; 0 where they ran out."""
    excluded: np.ndarray
    """(Q, 50) int64, without the items of the history."""


def answer(
    method: Method, questions: Sequence[Question], *, items: int, top: int = TOP, on_done: OnDone | None = None
) -> Answers:
    """Return the lists of *method* for all *questions*.

    Raises:
        UnusableInterests: a score is not a number.
    """
    kept = np.zeros((len(questions), top), dtype=np.int64)
    excluded = np.zeros_like(kept)
    for start, batch in chunks(questions, items):
        scores = method.scores(batch)
        scores[:, 0] = -torch.inf
        bad = int(torch.isnan(scores.amax(dim=1)).sum())  # the greatest of a row with a NaN is NaN
        if bad:
            raise UnusableInterests(f"({method.name}, being evaluated)", users=bad, of=len(batch))
        kept[start : start + len(batch)] = top_rows(scores, top)
        excluded[start : start + len(batch)] = top_rows(mask_histories(scores, batch), top)
        if on_done is not None:
            on_done(start + len(batch), len(questions))
    return Answers(kept, excluded)


def chunks(questions: Sequence[Question], items: int) -> Iterator[tuple[int, Sequence[Question]]]:
    """Yield the questions in batches whose scores fit `CHUNK_SCORES`, each with its place."""
    size = max(1, min(512, CHUNK_SCORES // (items + 1)))
    for start in range(0, len(questions), size):
        yield start, questions[start : start + size]


def mask_histories(scores: Tensor, questions: Sequence[Question]) -> Tensor:
    """Return *scores*, changed in place, with -inf at the items of each question's history."""
    places, rows = flat_histories(questions)
    scores[torch.from_numpy(places), torch.from_numpy(rows)] = -torch.inf
    return scores


def flat_histories(questions: Sequence[Question], *, last: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the question numbers and item rows of all history clicks, or of the *last* ones of each question."""
    histories = [question.history if last is None else question.history[-last:] for question in questions]
    places = np.repeat(np.arange(len(questions)), [len(history) for history in histories])
    return places, np.concatenate([np.zeros(0, dtype=np.int64), *histories])


def top_rows(scores: Tensor, count: int) -> np.ndarray:
    """Return the (B, count) int64 positions of the greatest *scores*, best first, ties by ascending position.

    Positions scored -inf are none; 0 fills the places that are left.
    """
    held = scores.numpy()
    places = top_places(held, min(count, held.shape[1]))
    rows, values = best_first(places, np.take_along_axis(held, places, axis=1))
    answer = np.zeros((len(held), count), dtype=np.int64)
    answer[:, : rows.shape[1]] = np.where(values > -np.inf, rows, 0)
    return answer
