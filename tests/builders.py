"""Builders: the smallest valid value, with what the test is about spelled out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engine.events import ClickEvent, ItemEvent
from engine.window import BehaviorWindow

NOON_MS = 1_291_204_800_000
"""2010-12-01 12:00 UTC; an event time for tests that don't care which."""


def make_click(
    *,
    user_id: str = "u1",
    item_id: str = "i1",
    clicked_at_ms: int = NOON_MS,
    event_id: str | None = None,
    event_type: str = "click",
    weight: float = 1.0,
    profile: dict[str, str | float] | None = None,
) -> ClickEvent:
    return ClickEvent(
        user_id=user_id,
        item_id=item_id,
        clicked_at_ms=clicked_at_ms,
        event_id=event_id,
        event_type=event_type,
        weight=weight,
        profile=profile,
    )


def make_window(*, clicked_at_ms: Sequence[int], user_id: str = "u1", max_clicks: int = 50) -> BehaviorWindow:
    clicks = [make_click(user_id=user_id, item_id=f"i{at}", clicked_at_ms=at) for at in clicked_at_ms]
    return BehaviorWindow.of(clicks, max_clicks=max_clicks)


class ListSource:
    """A source of the clicks and items in two lists."""

    simulated = False
    dropped: Mapping[str, int] = {}

    def __init__(self, clicks: Sequence[ClickEvent], items: Sequence[ItemEvent] = (), *, name: str = "list") -> None:
        self._clicks, self._items = clicks, items
        self.name, self.click_count = name, len(clicks)

    def clicks(self) -> Iterator[ClickEvent]:
        return iter(self._clicks)

    def items(self) -> Iterator[ItemEvent]:
        return iter(self._items)
