"""Any `EventSource` of the engine as sequences: tables, folders of tables, Online Retail.

What the engine would apply is what the bench sees: the same rows are dropped, the same order within a user. Clicks of
the negative event types are neither history nor target, so they are left out here.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from engine.errors import SourceError
from engine.sources import EventSource
from trainer.offline.sequences import Kind, Profile, Sequences


def read_events(path: Path, source: EventSource) -> Sequences:
    """Return the clicks of *source*, users by ascending id (numbers by value), each oldest first.

    Raises:
        SourceError: no positive click is in it.
    """
    items: dict[str, int] = {}
    clicks: dict[str, tuple[list[int], list[int], list[float]]] = {}
    profiles: dict[str, dict[str, str | float]] = {}
    negative = 0
    for click in source.clicks():
        if click.is_negative:
            negative += 1
            continue
        rows, times_ms, weights = clicks.setdefault(click.user_id, ([], [], []))
        rows.append(items.setdefault(click.item_id, len(items) + 1))
        times_ms.append(click.clicked_at_ms)
        weights.append(click.weight)
        if click.profile:
            profiles.setdefault(click.user_id, {}).update(click.profile)
    if not clicks:
        raise SourceError(path, problem="holds no positive click", remedy="give a data set with clicks")
    users = sorted(clicks, key=_natural)
    dropped = Counter(source.dropped) + Counter({"negative event type": negative})
    return Sequences.of_lists(
        [clicks[user][0] for user in users],
        name=source.name,
        kind=Kind.USERS,
        item_ids=list(items),
        user_ids=users,
        times_ms=np.concatenate([np.array(clicks[user][1], dtype=np.int64) for user in users]),
        weights=np.concatenate([np.array(clicks[user][2], dtype=np.float32) for user in users]),
        profiles=_profiles(users, profiles),
        items={item.item_id: item for item in source.items() if not item.removed},
        remarks=[f"{count:,} rows of {path.name} left out: {reason}" for reason, count in dropped.most_common()],
    )


def _profiles(users: list[str], profiles: dict[str, dict[str, str | float]]) -> list[Profile]:
    return [profiles.get(user, {}) for user in users] if profiles else []


def _natural(user: str) -> tuple[int, int, str]:
    """Return a key that sorts ids of digits by value, before all others."""
    return (0, int(user), user) if user.isdecimal() and len(user) < 19 else (1, 0, user)
