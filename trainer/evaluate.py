"""Recall@50 on later clicks, beside popular items and item-CF, by the same rules for each.

Every user with a later click on an item outside the window counts. Items of the window, and those that the catalog
calls removed or unavailable, are left out of every list, as in serving. A user with no window before the split is
answered with the popular list under every method, and a list with fewer than 50 items is filled from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.model import InterestModel
from engine.window import BehaviorWindow
from trainer.item_cf import ItemCooccurrence
from trainer.popular import popular_items
from trainer.samples import ClickLog, UserHistory, fold_profile, user_input

TOP = 50
BATCH_USERS = 256


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over users and their standard errors, one kind of figure after the other."""

    users: int
    """Users with at least one target."""
    users_without_window: int
    """Of those, users who had no click before the split: the popular list answers them."""
    recall_at_50: float
    standard_error: float
    hitrate_at_50: float
    popular_recall_at_50: float
    popular_standard_error: float
    popular_hitrate_at_50: float
    itemcf_recall_at_50: float
    itemcf_standard_error: float
    itemcf_hitrate_at_50: float
    gain_over_popular: float
    """Mean difference of Recall@50, user by user."""
    gain_over_popular_standard_error: float
    gain_over_itemcf: float
    gain_over_itemcf_standard_error: float
    serving_recall_at_50: float | None = None
    """Of the version in service, on the same users; this and the next two are None where it can't be compared."""
    gain_over_serving: float | None = None
    gain_over_serving_standard_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Case:
    """One user's question and its right answers."""

    history: UserHistory
    targets: frozenset[str]
    left_out: frozenset[str]
    """What no list may hold: the items of the window, and what can't be had."""


def split_by_time(log: ClickLog, share: float) -> tuple[ClickLog, ClickLog]:
    """Return the clicks of *log* before a moment and those from it on, the latest *share* of all, by event time.

    Clicks of one millisecond stay together, on the later side. Both logs keep all users and items; the earlier one's
    profiles are what its own clicks say, so that nothing of the later ones is in them.
    """
    times = sorted(click.clicked_at_ms for _history, click in log)
    split_ms = times[min(int(len(times) * (1.0 - share)), len(times) - 1)] if times else 0
    before, later = [], []
    for history in log.histories:
        earlier = [click for click in history.clicks if click.clicked_at_ms < split_ms]
        before.append(UserHistory(history.user_id, earlier, fold_profile(earlier)))
        later.append(UserHistory(history.user_id, history.clicks[len(earlier) :], history.profile))
    return ClickLog(before, log.items), ClickLog(later, log.items)


def build_cases(before: ClickLog, later: ClickLog, *, max_clicks: int) -> list[Case]:
    """Return one case for each user with a positive later click on an item outside the window before the split."""
    known = {history.user_id: history for history in before.histories}
    unavailable = frozenset(item.item_id for item in before.items.values() if item.removed or not item.available)
    cases = []
    for history in later.histories:
        past = known.get(history.user_id) or UserHistory(history.user_id, [], history.profile)
        seen = frozenset(BehaviorWindow.of_ordered(past.clicks, max_clicks=max_clicks).item_ids)
        wanted = {click.item_id for click in history.clicks if not click.is_negative}
        if wanted - seen:
            cases.append(Case(past, frozenset(wanted - seen), seen | unavailable))
    return cases


def evaluate(
    model: InterestModel,
    before: ClickLog,
    later: ClickLog,
    *,
    max_clicks: int | None = None,
    serving: InterestModel | None = None,
) -> Evaluation:
    """Return how well *model*, popular items and item-CF foresee *later* from *before*.

    Args:
        model: trained on *before*, or on less.
        before: the log up to the split.
        later: the log from it on, the same users.
        max_clicks: clicks that a window holds in serving; None takes the model's own bound.
        serving: the version in service, where it has seen none of *later* either.
    """
    limit = max_clicks or model.config.max_clicks
    cases = build_cases(before, later, max_clicks=limit)
    fallback = popular_items(before).overall
    lists = {
        "model": model_lists(model, cases, fallback, max_clicks=limit),
        "popular": [complete([], case, fallback) for case in cases],
        "itemcf": item_cf_lists(before, cases, fallback, max_clicks=limit),
    }
    if serving is not None:
        lists["serving"] = model_lists(serving, cases, fallback, max_clicks=limit)
    recalls = {
        name: np.array([_recall(*pair) for pair in zip(answers, cases, strict=True)]) for name, answers in lists.items()
    }
    figures: dict[str, float] = {}
    for name, prefix in (("model", ""), ("popular", "popular_"), ("itemcf", "itemcf_")):
        figures[f"{prefix}recall_at_50"], figures[f"{prefix}standard_error"] = _mean(recalls[name])
        figures[f"{prefix}hitrate_at_50"], _error = _mean((recalls[name] > 0).astype(np.float64))
        if prefix:
            gain, error = _mean(recalls["model"] - recalls[name])
            figures[f"gain_over_{name}"], figures[f"gain_over_{name}_standard_error"] = gain, error
    if serving is not None:
        figures["serving_recall_at_50"], _error = _mean(recalls["serving"])
        gain, error = _mean(recalls["model"] - recalls["serving"])
        figures["gain_over_serving"], figures["gain_over_serving_standard_error"] = gain, error
    without = sum(not case.history.clicks for case in cases)
    return Evaluation(users=len(cases), users_without_window=without, **figures)


def model_lists(
    model: InterestModel, cases: Sequence[Case], fallback: Sequence[str], *, max_clicks: int
) -> list[list[str]]:
    """Return the model's list for each case: the greatest inner product over the interests in use, exactly."""
    item_ids, vectors = model.all_item_vectors()
    lists = []
    for start in range(0, len(cases), BATCH_USERS):
        batch = cases[start : start + BATCH_USERS]
        found = model.interests([user_input(case.history, max_clicks=max_clicks) for case in batch])
        for case, interests, mask in zip(batch, found.vectors, found.mask, strict=True):
            best: list[str] = []
            if mask.any():
                scores = (interests[mask] @ vectors.T).max(axis=0)
                best = [item_ids[index] for index in _top(scores, TOP + len(case.left_out))]
            lists.append(complete(best, case, fallback))
    return lists


def item_cf_lists(
    before: ClickLog, cases: Sequence[Case], fallback: Sequence[str], *, max_clicks: int
) -> list[list[str]]:
    """Return the list of item-based collaborative filtering for each case."""
    item_ids = sorted({click.item_id for _history, click in before})
    rows = {item: row for row, item in enumerate(item_ids, start=1)}

    def positive_rows(history: UserHistory) -> np.ndarray:
        kept = [rows[c.item_id] for c in history.clicks if not c.is_negative]
        return np.array(kept, dtype=np.int64)

    together = ItemCooccurrence([positive_rows(history) for history in before.histories], items=len(item_ids))
    lists = []
    for case in cases:
        scores = together.scores(positive_rows(case.history)[-max_clicks:])
        best = [item_ids[row - 1] for row in _top(scores, TOP + len(case.left_out)) if scores[row] > 0]
        lists.append(complete(best, case, fallback))
    return lists


def complete(best: Sequence[str], case: Case, fallback: Sequence[str]) -> list[str]:
    """Return the first 50 of *best*, then of *fallback*, that a list may hold, each once."""
    kept = [item for item in dict.fromkeys([*best, *fallback]) if item not in case.left_out]
    return kept[:TOP]


def _top(scores: np.ndarray, count: int) -> list[int]:
    """Return the positions of the *count* greatest scores, best first, equal ones by ascending position."""
    count = min(count, len(scores))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= least)
    order = np.argsort(-scores[candidates], kind="stable")[:count]
    chosen: list[int] = candidates[order].tolist()
    return chosen


def _recall(answer: Sequence[str], case: Case) -> float:
    return len(case.targets.intersection(answer)) / len(case.targets)


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error; zeros for no values."""
    if not len(values):
        return 0.0, 0.0
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return float(values.mean()), spread / len(values) ** 0.5
