"""The behavior window: one user's kept clicks, and the one rule that says which.

A window is the `max_clicks` greatest distinct clicks and, beside them, the `max_clicks` greatest negative ones, ordered
by `(clicked_at_ms, identity)` bytewise: whoever hides an item doesn't meet it again for having clicked on others since.
Two clicks of one sort with the same pair are one click, and the later in the log is kept. The rule is a join: order of
arrival, duplicates and replay can't change the result, which is what makes at-least-once delivery exact. Nothing here
reads a clock.

Serving (`engine/store/windows.py`), training (`trainer/log.py`) and tests share these values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec

from engine.events import ClickEvent
from engine.settings import Settings

DAY_MS = 86_400_000
WindowOrder = tuple[int, bytes, bool]


def window_order(click: ClickEvent) -> WindowOrder:
    """Return what orders the clicks of a window, and tells them apart: time, identity, whether it is negative."""
    return click.clicked_at_ms, click.identity, click.is_negative


@dataclass(frozen=True, slots=True)
class SeenRule:
    """Which clicks behind the window are kept for the items they saw: so long before the newest, and so many."""

    within_ms: int
    max_clicks: int
    """Those of the window among them."""

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the rule that *settings* name; None where the window is all that counts."""
        if not settings.seen_days or not settings.exclude_seen:
            return None
        return cls(int(settings.seen_days * DAY_MS), settings.seen_max_clicks)

    def items_behind(self, clicks: Sequence[ClickEvent], *, max_clicks: int) -> tuple[str, ...]:
        """Return the distinct items that are seen behind a window of the *clicks*, in its order, newest first.

        *clicks* are all there are, and none is negative. The partition store reads the same off its keys.
        """
        if not clicks:
            return ()
        oldest_ms = clicks[-1].clicked_at_ms - self.within_ms
        counted = clicks[-self.max_clicks : -max_clicks]
        return tuple(dict.fromkeys(click.item_id for click in reversed(counted) if click.clicked_at_ms >= oldest_ms))


class BehaviorWindow(msgspec.Struct, frozen=True, gc=False):
    """One user's kept clicks, oldest first; ties are ordered by identity, bytewise, then negative clicks come last."""

    clicks: tuple[ClickEvent, ...] = ()
    seen: tuple[str, ...] = ()
    """Items of clicks behind the window that a list leaves out all the same; where a setting asks for it."""

    @classmethod
    def of(cls, clicks: Iterable[ClickEvent], *, max_clicks: int, seen: SeenRule | None = None) -> Self:
        """Return the window that *clicks*, given in log order, leave behind, and what *seen* finds behind it."""
        distinct = {window_order(click): click for click in clicks}
        return cls.of_ordered([distinct[order] for order in sorted(distinct)], max_clicks=max_clicks, seen=seen)

    @classmethod
    def of_ordered(cls, clicks: Sequence[ClickEvent], *, max_clicks: int, seen: SeenRule | None = None) -> Self:
        """Return the window of *clicks* that are distinct and in the window's order, oldest first."""
        negative = [click for click in clicks if click.is_negative]
        positive = [click for click in clicks if not click.is_negative] if negative else clicks
        kept = positive[-max_clicks:]
        if negative:
            kept = sorted([*kept, *negative[-max_clicks:]], key=window_order)
        return cls(tuple(kept), () if seen is None else seen.items_behind(positive, max_clicks=max_clicks))

    def append(self, click: ClickEvent, *, max_clicks: int) -> Self:
        """Return the window with *click*, the latest in the log, in its event-time place."""
        return self.of((*self.clicks, click), max_clicks=max_clicks)

    @property
    def item_ids(self) -> Sequence[str]:
        """The clicked items, oldest click first, repeats kept."""
        return [click.item_id for click in self.clicks]

    @property
    def newest_ms(self) -> int | None:
        """Event time of the newest click, in milliseconds; None for an empty window."""
        return self.clicks[-1].clicked_at_ms if self.clicks else None

    def __len__(self) -> int:
        return len(self.clicks)
