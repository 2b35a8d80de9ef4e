"""Small click logs: written out by hand, or drawn with a known structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.events import ItemEvent
from tests.builders import make_click
from trainer.samples import ClickLog, UserHistory


def make_history(user_id: str, items: Sequence[str], *, start_ms: int = 0, **profile: str | float) -> UserHistory:
    """One click a millisecond from *start_ms*; an item written "-x" is a dislike of x."""
    clicks = [
        make_click(
            user_id=user_id,
            item_id=item.removeprefix("-"),
            clicked_at_ms=start_ms + place,
            event_type="dislike" if item.startswith("-") else "click",
        )
        for place, item in enumerate(items)
    ]
    return UserHistory(user_id, clicks, dict(profile))


def make_log(histories: Mapping[str, Sequence[str]], items: Sequence[ItemEvent] = ()) -> ClickLog:
    """One history a user, all starting at 0 ms."""
    made = [make_history(user_id, clicked) for user_id, clicked in histories.items()]
    return ClickLog(made, {item.item_id: item for item in items})


def draw_groups(*, users: int = 60, clicks: int = 16, groups: int = 4, per_group: int = 8, seed: int = 0) -> ClickLog:
    """Users who each click at random inside one group of items; the group is the items' category."""
    random = np.random.default_rng(seed)
    histories = [
        make_history(
            f"u{user}", [f"g{user % groups}-{random.integers(per_group)}" for _ in range(clicks)], country="FR"
        )
        for user in range(users)
    ]
    catalog = [
        ItemEvent(item_id=f"g{group}-{place}", category=f"g{group}")
        for group in range(groups)
        for place in range(per_group)
    ]
    return ClickLog(histories, {item.item_id: item for item in catalog})
