"""What a model's interests recall: the exact lists, and those an engine would serve, from one search.

Each interest in use finds its best items beside the history; all that a user's interests found, and the history, is
then scored by every one of them. An item of the best fifty is among the best fifty of the interest that scores it best,
so nothing is missed, and no score of the many others is kept.

The search is exact here; an engine's index may miss a few. Where the cap of one interest makes room for items of
another that are not among its best fifty, these are not looked for: one item in 700 of Nowplaying's lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.ann.index import best_first
from engine.compiled import compiled
from engine.errors import UnusableInterests
from engine.item_rows import FlatRows
from engine.merge import ListLimits, merge_many
from trainer.offline.candidates import ExactCandidates
from trainer.offline.neural import InterestMethod
from trainer.offline.search import TOP, Answers, OnDone
from trainer.offline.sets import Question

QUESTIONS_AT_ONCE = 512


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
    ranks: np.ndarray,
    limits: ListLimits,
    on_done: OnDone | None = None,
) -> Recalled:
    """Return the lists of *method* for all *questions*.

    Args:
        method: scores by the best inner product of interests in use.
        questions: whose lists.
        ranks: (N + 1,) uint64 of the items, which break ties among what is served.
        limits: size, floor and cap of what is served.
        on_done: called with the questions answered so far and all of them.

    Raises:
        UnusableInterests: an interest is not finite.
    """
    vectors, used, claims = method.users_with_claims(questions)
    bad = int((~np.isfinite(vectors)).any(axis=(1, 2)).sum())
    if bad:
        raise UnusableInterests(f"({method.name}, being evaluated)", users=bad, of=len(questions))
    search = ExactCandidates(method.item_vectors, method.has_vector)
    unavailable, is_known = (np.zeros(len(ranks), dtype=np.bool_) for _ in range(2))
    kept, excluded, served = (np.zeros((len(questions), TOP), dtype=np.int64) for _ in range(3))
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        part = slice(start, start + QUESTIONS_AT_ONCE)
        histories = [question.history for question in questions[part]]
        seen = FlatRows.of(np.concatenate(histories), [len(history) for history in histories])
        found = search.find(vectors[part], used[part], seen, top=max(TOP, limits.size))
        _take_lists(*best_first(found.rows, found.best()), seen.rows, seen.starts, is_known, kept[part], excluded[part])
        lists = merge_many(
            found,
            used[part],
            ranks=ranks,
            unavailable=unavailable,
            seen=seen,
            limits=limits,
            claims=claims[part],
        )
        served[part, : limits.size] = np.maximum(lists.rows, 0)
        if on_done is not None:
            on_done(start + len(histories), len(questions))
    return Recalled(Answers(kept, excluded), served, vectors, used)


@compiled
def _take_lists(
    rows: np.ndarray,
    scores: np.ndarray,
    history: np.ndarray,
    starts: np.ndarray,
    is_known: np.ndarray,
    kept: np.ndarray,
    excluded: np.ndarray,
) -> None:
    """Write the first of the (B, M) *rows*, best first, to *kept*, and those of no history to *excluded*.

    *is_known* is False.
    """
    for user in range(len(rows)):
        own = history[starts[user] : starts[user + 1]]
        for row in own:
            is_known[row] = True
        count = new = 0
        for at in range(rows.shape[1]):
            row = rows[user, at]
            if not -np.inf < scores[user, at] < np.inf or new == excluded.shape[1]:
                break
            if count < kept.shape[1]:
                kept[user, count] = row
                count += 1
            if not is_known[row]:
                excluded[user, new] = row
                new += 1
        for row in own:
            is_known[row] = False
