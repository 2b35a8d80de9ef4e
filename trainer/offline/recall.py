"""What a model's interests recall: the exact lists, and those an engine would serve, from one search.

Each interest in use finds its best items, as many more than a list holds as the history could take away; all that a
user's interests found is then scored by every one of them. An item of the best fifty is among the best fifty of the
interest that scores it best, so nothing is missed, and no score of the many others is kept.

The search is exact here; an engine's index may miss a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ann.exact import ExactIndex
from engine.ann.index import best_first
from engine.ann.products import inner_products
from engine.errors import UnusableInterests
from engine.item_rows import NO_ROW, FlatRows, ItemRows
from engine.merge import Candidates, ListLimits, merge_many
from trainer.offline.neural import InterestMethod
from trainer.offline.search import TOP, Answers, OnDone, flat_histories
from trainer.offline.sets import Question

QUESTIONS_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Recalled:
    """The lists of one model for Q questions, and the interests that they come from."""

    answers: Answers
    served: np.ndarray
    """(Q, 50) int64 item rows, best first, merged with floors and caps, the history left out; 0 where they ran out."""
    vectors: np.ndarray
    """(Q, K, D) float32 interests."""
    used: np.ndarray
    """(Q, K) bool, True for those in use."""


def recall_lists(
    method: InterestMethod,
    questions: Sequence[Question],
    *,
    item_ids: Sequence[str],
    limits: ListLimits,
    on_done: OnDone | None = None,
) -> Recalled:
    """Return the lists of *method* for all *questions*.

    Args:
        method: scores by the best inner product of interests in use.
        questions: whose lists.
        item_ids: ids of the rows from 1, which break ties among what is served.
        limits: size, floor and cap of what is served.
        on_done: called with the questions answered so far and all of them.

    Raises:
        UnusableInterests: an interest is not finite.
    """
    vectors, used, claims = method.users_with_claims(questions)
    bad = int((~np.isfinite(vectors)).any(axis=(1, 2)).sum())
    if bad:
        raise UnusableInterests(f"({method.name}, being evaluated)", users=bad, of=len(questions))
    index = ExactIndex(method.item_vectors, rows=np.flatnonzero(method.has_vector))
    items = ItemRows(["", *item_ids])  # padding stands in row 0 here, and is never found
    unavailable = np.zeros(len(items), dtype=np.bool_)
    kept, excluded, served = (np.zeros((len(questions), TOP), dtype=np.int64) for _ in range(3))
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        part = slice(start, start + QUESTIONS_AT_ONCE)
        found = _candidates(index, vectors[part], used[part], questions[part])
        scores = found.best()
        kept[part] = _best(scores, found.rows)
        scores[_is_of_history(found.rows, questions[part])] = -np.inf
        excluded[part] = _best(scores, found.rows)
        histories = [question.history for question in questions[part]]
        lists = merge_many(
            found,
            used[part],
            ranks=items.ranks,
            unavailable=unavailable,
            seen=FlatRows.of(np.concatenate(histories), [len(history) for history in histories]),
            limits=limits,
            claims=claims[part],
        )
        served[part, : limits.size] = np.maximum(lists.rows, 0)
        if on_done is not None:
            on_done(start + len(found.rows), len(questions))
    return Recalled(Answers(kept, excluded), served, vectors, used)


def _candidates(index: ExactIndex, vectors: np.ndarray, used: np.ndarray, questions: Sequence[Question]) -> Candidates:
    """Return all that could stand in a list of B questions, each row of a question once; -1 fills the places left."""
    longest = max(len(np.unique(question.history)) for question in questions)
    depth = min(TOP + longest, index.size)
    rows = np.full((*used.shape, depth), NO_ROW, dtype=np.int64)
    rows[used] = index.candidates(vectors[used], depth)
    rows = np.sort(rows.reshape(len(used), -1), axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = NO_ROW
    return Candidates(rows, inner_products(index.vectors, vectors, used, rows))


def _is_of_history(found: np.ndarray, questions: Sequence[Question]) -> np.ndarray:
    """Return (B, M) bool, True at the items in (B, M) *found* that are in the question's history."""
    places, rows = flat_histories(questions)
    width = 1 + max(int(found.max(initial=0)), int(rows.max(initial=0)))
    asked = np.arange(len(questions))[:, None] * width + found
    is_of_history: np.ndarray = np.isin(asked, places * width + rows) & (found != NO_ROW)
    return is_of_history


def _best(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the (B, 50) rows of the greatest scores, best first, ties by ascending row; 0 fills the places left."""
    best, values = (part[:, :TOP] for part in best_first(rows, scores))
    found = np.zeros((len(rows), TOP), dtype=np.int64)
    found[:, : best.shape[1]] = np.where(np.isfinite(values), best, 0)
    return found
