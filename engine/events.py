"""Click and item events: the two messages that come in from outside, decoded strictly.

First of the files one click passes through. Producers send JSON (the contract stands in docs/events.md); `decode_click`
and `decode_item` turn a Kafka record into a frozen value or raise `MalformedEvent` with a reason from a closed set.
Nothing is coerced: an id is a string, a time is an integer, a number is finite. Ids are compared as bytes, so two
Unicode spellings of one name are two ids.
"""

from __future__ import annotations

import msgspec


class ClickEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One user, one item, one event time.

    `clicked_at_ms` is event time in UTC milliseconds; it orders the window. `event_id` tells two clicks on one item
    apart; without it two clicks of one item in the same millisecond are one click.
    """

    user_id: str
    item_id: str
    clicked_at_ms: int
    event_id: str | None = None
    event_type: str = "click"
    weight: float = 1.0
    profile: dict[str, str | float] | None = None

    @property
    def identity(self) -> bytes:
        """What tells clicks of one millisecond apart: the event id, or the item id where there is none."""
        return (self.event_id if self.event_id is not None else self.item_id).encode()


class ItemEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One catalog entry, or its removal; the last record of an item wins."""

    item_id: str
    title: str | None = None
    category: str | None = None
    brand: str | None = None
    shop: str | None = None
    features: dict[str, str | float] = {}
    available: bool = True
    removed: bool = False
