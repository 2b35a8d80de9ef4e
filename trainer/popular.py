"""Popular items, overall and by category: what a user without interests is answered with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from trainer.samples import ClickLog


@dataclass(frozen=True, slots=True)
class PopularItems:
    """Item ids, most popular first."""

    overall: list[str]
    by_category: dict[str, list[str]] = field(default_factory=dict)


def popular_items(log: ClickLog, *, limit: int = 1_000, category_limit: int = 200) -> PopularItems:
    """Return the items that the most distinct users clicked; equal ones by ascending item id.

    Removed and unavailable items stay out. Many clicks of one user count once, so a bot can't fill the list.
    """
    users: Counter[str] = Counter()
    for history in log.histories:
        users.update({click.item_id for click in history.clicks if not click.is_negative})
    ordered = sorted(users, key=lambda item: (-users[item], item))
    overall: list[str] = []
    by_category: dict[str, list[str]] = {}
    for item_id in ordered:
        item = log.items.get(item_id)
        if item is not None and (item.removed or not item.available):
            continue
        if len(overall) < limit:
            overall.append(item_id)
        if item is not None and item.category is not None:
            listed = by_category.setdefault(item.category, [])
            if len(listed) < category_limit:
                listed.append(item_id)
    return PopularItems(overall, by_category)
