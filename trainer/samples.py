"""ClickLog, the trainer's input; Samples, the same as flat arrays that training cuts windows from.

Every click after a user's first is a target once an epoch, and the window before it, cut as in serving, is what
predicts it. Negative event types are neither history nor target. Pure functions of in-memory data; `trainer/log.py`
reads the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.events import ClickEvent, ItemEvent
from engine.model import ItemInput, MindConfig, UserInput, Vocabulary
from engine.model.features import WindowBatch, click_strengths, encode_profiles
from engine.model.routing import count_interests
from engine.window import BehaviorWindow


@dataclass(frozen=True, slots=True)
class UserHistory:
    """All of one user's distinct clicks, in a window's order, and the folded profile."""

    user_id: str
    clicks: list[ClickEvent]
    profile: dict[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClickLog:
    """The folded click log and the catalog, as of one reading."""

    histories: list[UserHistory]
    items: dict[str, ItemEvent] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[UserHistory, ClickEvent]]:
        return ((history, click) for history in self.histories for click in history.clicks)

    @property
    def click_count(self) -> int:
        """Clicks of all users."""
        return sum(len(history.clicks) for history in self.histories)


@dataclass(frozen=True, slots=True)
class Samples:
    """Flat arrays over all positive clicks, user by user, oldest first; C clicks, U users, T targets."""

    rows: np.ndarray
    """(C,) int64 item rows."""
    strengths: np.ndarray
    """(C,) float32 factors from the clicks' weights."""
    users: np.ndarray
    """(C,) int64 user numbers."""
    starts: np.ndarray
    """(U,) int64, where each user's clicks start."""
    profile_rows: np.ndarray
    profile_numbers: np.ndarray
    targets: np.ndarray
    """(T,) int64 positions in `rows` that have a click of the same user before them."""


def fold_profile(clicks: Sequence[ClickEvent]) -> dict[str, str | float]:
    """Return the profile that *clicks*, in ascending order, leave behind: attribute by attribute the last one wins."""
    profile: dict[str, str | float] = {}
    for click in clicks:
        profile.update(click.profile or {})
    return dict(sorted(profile.items()))


def user_input(history: UserHistory, *, max_clicks: int) -> UserInput:
    """Return what an engine's window of *max_clicks* clicks would hold of *history*."""
    clicks = BehaviorWindow.of_ordered(history.clicks, max_clicks=max_clicks).clicks
    return UserInput(
        item_ids=[click.item_id for click in clicks],
        weights=[click.weight for click in clicks],
        profile=history.profile,
        event_types=[click.event_type for click in clicks],
    )


def item_input(item: ItemEvent) -> ItemInput:
    """Return what the model sees of a catalog entry."""
    return ItemInput(item.item_id, item.category, item.brand, item.shop, item.features)


def build_vocabulary(log: ClickLog) -> Vocabulary:
    """Return the vocabulary of *log*: the clicked items, the most clicked first, ties by item id."""
    clicks = Counter(click.item_id for _history, click in log)
    item_ids = sorted(clicks, key=lambda item: (-clicks[item], item))
    items = {item: item_input(log.items[item]) for item in item_ids if item in log.items}
    return Vocabulary.build(item_ids, items, [history.profile for history in log.histories])


def field_rows(vocabulary: Vocabulary, items: Mapping[str, ItemEvent]) -> np.ndarray:
    """Return the (N + 1, F) int64 rows of all known items' fields; row 0 is zero."""
    rows = np.zeros((len(vocabulary.item_ids) + 1, len(vocabulary.item_fields)), dtype=np.int64)
    for row, item in enumerate(vocabulary.item_ids, start=1):
        if item in items:
            rows[row] = vocabulary.field_rows(item_input(items[item]))
    return rows


def build_samples(log: ClickLog, vocabulary: Vocabulary, config: MindConfig) -> Samples:
    """Return the arrays of *log*; clicks on items outside *vocabulary* are left out."""
    rows: list[int] = []
    weights: list[float] = []
    users: list[int] = []
    starts: list[int] = []
    for number, history in enumerate(log.histories):
        starts.append(len(rows))
        for click in history.clicks:
            row = vocabulary.item_rows.get(click.item_id)
            if row is not None and not click.is_negative:
                rows.append(row)
                weights.append(click.weight)
                users.append(number)
    user_of = np.array(users, dtype=np.int64)
    profile_rows, profile_numbers = encode_profiles(
        [history.profile for history in log.histories], vocabulary.profile_fields
    )
    return Samples(
        rows=np.array(rows, dtype=np.int64),
        strengths=click_strengths(np.array(weights, dtype=np.float32), config),
        users=user_of,
        starts=np.array(starts, dtype=np.int64),
        profile_rows=profile_rows,
        profile_numbers=profile_numbers,
        targets=np.flatnonzero(user_of[1:] == user_of[:-1]) + 1,
    )


def cut_windows(samples: Samples, ends: np.ndarray, config: MindConfig) -> WindowBatch:
    """Return the windows that end just before the (B,) positions *ends*: at most `max_clicks` clicks of one user."""
    places = ends[:, None] - np.arange(config.max_clicks, 0, -1)
    inside = places >= samples.starts[samples.users[ends]][:, None]
    kept = inside.any(axis=0)
    places, inside = np.where(inside, places, 0)[:, kept], inside[:, kept]
    rows = samples.rows[places] * inside
    users = samples.users[ends]
    return WindowBatch(
        rows=rows,
        strengths=samples.strengths[places] * inside,
        counts=count_interests(
            rows,
            interests=config.interests,
            dynamic=config.dynamic_interests,
            general=config.has_general_interest,
        ),
        profile_rows=samples.profile_rows[users],
        profile_numbers=samples.profile_numbers[users],
    )
