"""The popular list: the answer for a user without a personal one.

Every model version carries lists of popular items, overall and by category, and version 0 carries nothing else. A query
service answers from them; engines publish none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Protocol

from engine.recall import RankedItem, RecallList


class PopularItems(Protocol):
    """The popular lists of a model version, most popular first."""

    @property
    def overall(self) -> Sequence[str]:
        """Item ids over the whole catalog."""

    @property
    def by_category(self) -> Mapping[str, Sequence[str]]:
        """Item ids of each category."""


class PopularSnapshot(Protocol):
    """What a popular answer needs of a serving snapshot."""

    @property
    def model_version(self) -> str:
        """The version that the lists are part of."""

    @property
    def activation(self) -> int:
        """Offset of the version's record on `models`."""

    @property
    def trained_at_ms(self) -> int:
        """When the lists were counted."""

    @property
    def popular(self) -> PopularItems:
        """The lists."""


class ItemFacts(Protocol):
    """What a popular answer needs of the catalog."""

    def category(self, item_id: str) -> str | None:
        """Return the item's category; None where it has none or is unknown."""

    def is_available(self, item_id: str) -> bool:
        """Return False for a removed or unavailable item."""


def popular_list(
    snapshot: PopularSnapshot,
    catalog: ItemFacts,
    *,
    user_id: str,
    limit: int,
    window_item_ids: Sequence[str] = (),
    exclude: Collection[str] = (),
) -> RecallList:
    """Return the answer for a user without a personal list.

    Every other item is popular in a category of the user's window, where there is one: the categories take turns, most
    clicked first. The rest is popular overall.

    Args:
        snapshot: the version in service.
        catalog: categories and availability.
        user_id: whom the list is for.
        limit: how many items at the most.
        window_item_ids: the user's clicked items, left out of the list; empty where nothing is known.
        exclude: further item ids to leave out.

    Returns:
        A list with source `popular`; an item's score is 1 / its place, and it belongs to no interest.
    """
    clicked = Counter(filter(None, (catalog.category(item_id) for item_id in window_item_ids)))
    categories = sorted(clicked, key=lambda category: (-clicked[category], category))
    in_categories = _take_turns([snapshot.popular.by_category.get(category, ()) for category in categories])
    candidates = _take_turns([list(in_categories), snapshot.popular.overall])

    taken = {*window_item_ids, *exclude}
    chosen: list[RankedItem] = []
    for item_id in candidates:
        if len(chosen) == limit:
            break
        if item_id in taken or not catalog.is_available(item_id):
            continue
        taken.add(item_id)
        chosen.append(RankedItem(item_id, 1.0 / (len(chosen) + 1), None))
    return RecallList(
        user_id=user_id,
        items=chosen,
        computed_at_ms=snapshot.trained_at_ms,
        activation=snapshot.activation,
        model_version=snapshot.model_version,
        source="popular",
    )


def _take_turns(lists: Sequence[Sequence[str]]) -> Iterator[str]:
    return (item_id for turn in zip_longest(*lists) for item_id in turn if item_id is not None)
