"""The lists of a model's interests, against the definitions in plain loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from engine.errors import UnusableInterests
from engine.item_rows import ItemRows
from engine.merge import ListLimits, merge
from tests.trainer.offline.builders import ask
from trainer.offline import recall
from trainer.offline.neural import InterestMethod
from trainer.offline.recall import recall_lists
from trainer.offline.sets import Question, ranks_of

ITEMS, DIMENSIONS, INTERESTS, USERS = 400, 3, 3, 40
IDS = [f"i{row}" for row in range(1, ITEMS + 1)]
LIMITS = ListLimits(size=50, floor=0.1, cap=0.6)


class FixedInterests(InterestMethod):
    """Small whole numbers throughout, so that sums are exact and many scores are equal."""

    def __init__(self, seed: int = 3) -> None:
        random = np.random.default_rng(seed)
        self.name = "fixed"
        self.item_vectors = random.integers(-3, 4, size=(ITEMS + 1, DIMENSIONS)).astype(np.float32)
        self.item_vectors[[0, 5, 77]] = 0.0
        self.has_vector = np.abs(self.item_vectors).max(axis=1) > 0
        self.vectors = random.integers(-3, 4, size=(USERS, INTERESTS, DIMENSIONS)).astype(np.float32)
        self.used = np.arange(INTERESTS) < random.integers(0, INTERESTS + 1, size=(USERS, 1))
        self._histories = [random.integers(1, ITEMS + 1, size=size) for size in random.integers(0, 200, size=USERS)]

    @property
    def questions(self) -> Sequence[Question]:
        """One a user, in the user's id."""
        return [ask(history.tolist(), [1], str(user)) for user, history in enumerate(self._histories)]

    def users_with_claims(self, questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        asked = [int(question.user_id) for question in questions]
        return self.vectors[asked], self.used[asked], self.claims()[asked]

    def claims(self) -> np.ndarray:
        parts = np.array([5.0, 2.0, 1.0]) * self.used
        claims: np.ndarray = parts / np.maximum(parts.sum(axis=1, keepdims=True), 1.0)
        return claims


def plain_list(method: FixedInterests, user: int, left_out: Sequence[int]) -> list[int]:
    """Return the best fifty items by the best interest in use, equal scores by ascending row, then zeros."""
    scores = method.item_vectors @ method.vectors[user][method.used[user]].T
    rows = [row for row in range(1, ITEMS + 1) if method.has_vector[row] and row not in left_out and scores.shape[1]]
    best = sorted(rows, key=lambda row: (-scores[row].max(), row))[:50]
    return best + [0] * (50 - len(best))


def plain_served(method: FixedInterests, user: int, left_out: Sequence[int]) -> list[int]:
    """Return what the engine's merge makes of every item scored by every interest in use."""
    numbers = np.flatnonzero(method.used[user]).tolist()
    if not numbers:
        return [0] * 50
    merged = merge(
        np.tile(np.arange(ITEMS), (len(numbers), 1)),
        (method.vectors[user][numbers] @ method.item_vectors[1:].T).astype(np.float32),
        numbers,
        items=ItemRows(IDS),
        unavailable=np.logical_not(method.has_vector[1:]),
        seen={row - 1 for row in left_out},
        limits=LIMITS,
        claims=method.claims()[user][numbers].tolist(),
    )
    rows = [IDS.index(item.item_id) + 1 for item in merged]
    return rows + [0] * (50 - len(rows))


@pytest.mark.parametrize("at_once", [1, 7, 128])
def test_lists_are_those_of_the_definitions_whoever_is_asked_beside(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(recall, "QUESTIONS_AT_ONCE", at_once)
    method = FixedInterests()

    found = recall_lists(method, method.questions, ranks=ranks_of(IDS), limits=LIMITS)

    assert not method.used.all()
    assert not method.used.any(axis=1).all()
    for user, question in enumerate(method.questions):
        history = question.history.tolist()
        assert found.answers.kept[user].tolist() == plain_list(method, user, [])
        assert found.answers.excluded[user].tolist() == plain_list(method, user, history)
        assert found.served[user].tolist() == plain_served(method, user, history)
    assert np.array_equal(found.vectors, method.vectors)
    assert np.array_equal(found.used, method.used)


def test_a_history_of_nearly_everything_leaves_what_is_left() -> None:
    method = FixedInterests()
    method.used[0] = True
    rest = [9, 300, 301]
    question = ask([row for row in range(1, ITEMS + 1) if row not in rest], [9], "0")

    found = recall_lists(method, [question], ranks=ranks_of(IDS), limits=LIMITS)

    assert sorted(found.answers.excluded[0].tolist())[-3:] == rest
    assert found.answers.excluded[0].tolist() == plain_list(method, 0, question.history.tolist())
    assert sorted(found.served[0].tolist())[-3:] == rest


def test_progress_is_told_and_ends_with_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "QUESTIONS_AT_ONCE", 16)
    method, told = FixedInterests(), list[tuple[int, int]]()

    recall_lists(
        method,
        method.questions,
        ranks=ranks_of(IDS),
        limits=LIMITS,
        on_done=lambda done, total: told.append((done, total)),
    )

    assert told == [(16, USERS), (32, USERS), (40, USERS)]


def test_an_interest_that_is_no_number_is_an_error_and_not_a_list() -> None:
    method = FixedInterests()
    method.vectors[3, 0, 0], method.vectors[5, 1, 1] = np.nan, np.inf

    with pytest.raises(UnusableInterests, match="not finite numbers for 2 of 40 users"):
        recall_lists(method, method.questions, ranks=ranks_of(IDS), limits=LIMITS)
