"""The simulated shop: clicks whose true interests are known. Nobody real clicked here, and every summary says so.

A seed names one world: a catalog and its themes (`engine/sources/simulated_catalog.py`), users with one to six
interests that begin, end and drift from theme to theme, sessions, repeats, noise, and a few bots that click at random
(`engine/sources/simulated_clicks.py`). No clock is read: the simulated time starts where the argument says. Because the
truth is kept (`truth`, `interest_of`), a test can ask whether each true interest got a vector (`coverage`), which no
real data set can answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from engine.errors import ConfigError
from engine.events import ClickEvent, ItemEvent
from engine.sources.simulated_catalog import make_catalog, make_themes
from engine.sources.simulated_clicks import (
    AGE_BANDS,
    COUNTRIES,
    DAY_MS,
    EVENT_TYPES,
    draw_clicks,
    in_time_order,
    make_people,
)

Key = TypeVar("Key", bound=Hashable)

START_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC, where the simulated time starts unless told otherwise."""


@dataclass(frozen=True, slots=True)
class TrueInterest:
    """One interest of one simulated user."""

    number: int
    begins_ms: int
    ends_ms: int
    """Exclusive."""
    weight: float
    """Its share among the user's interests when all are active."""
    themes: tuple[int, int]
    """The theme it starts as and the one it ends as; the same twice when it doesn't drift."""
    drifts_ms: tuple[int, int]
    """When the drift starts and when it is complete."""

    def is_active(self, at_ms: int) -> bool:
        """Return whether the user has this interest at *at_ms*."""
        return self.begins_ms <= at_ms < self.ends_ms

    def drifted(self, at_ms: int) -> float:
        """Return how much of its clicks come from the second theme at *at_ms*, 0 to 1."""
        start_ms, end_ms = self.drifts_ms
        return min(max((at_ms - start_ms) / max(end_ms - start_ms, 1), 0.0), 1.0)


class SimulatedShop:
    """A deterministic shop: the same arguments give the same events, in every process.

    Making one takes about a second; events are built while they are read.
    """

    name = "simulated-shop"
    simulated = True

    def __init__(
        self,
        seed: int = 7,
        *,
        items: int = 4_000,
        users: int = 3_000,
        clicks: int = 120_000,
        start_ms: int = START_MS,
        days: int = 56,
        bots: int = 5,
    ) -> None:
        for key, got, least in (("items", items, 200), ("users", users, bots + 1), ("clicks", clicks, 10 * users)):
            if got < least:
                raise ConfigError(key, got=got, expected=f"at least {least} in a simulated shop")
        generator = np.random.Generator(np.random.PCG64(seed))
        self.click_count = clicks
        self.dropped: Mapping[str, int] = {}
        self._start_ms, self._span_ms, self._bots = start_ms, days * DAY_MS, bots
        self._catalog = make_catalog(generator, items=items)
        self._themes = make_themes(generator, self._catalog)
        self._people = make_people(generator, self._themes, users=users)
        drawn = draw_clicks(generator, self._catalog, self._themes, self._people, clicks=clicks, days=days, bots=bots)
        self._clicks = in_time_order(drawn, start_ms=start_ms, span_ms=self._span_ms)

    @property
    def user_ids(self) -> Sequence[str]:
        """Every user, bots included."""
        return [_user_id(row) for row in range(len(self._people.country))]

    @property
    def bots(self) -> frozenset[str]:
        """The users that click at random."""
        users = len(self._people.country)
        return frozenset(_user_id(row) for row in range(users - self._bots, users))

    def clicks(self) -> Iterator[ClickEvent]:
        """Yield the clicks in time order; the click of index i has the event id `c` and i in eight digits."""
        profiles = [
            {"country": COUNTRIES[country], "age_band": AGE_BANDS[age]}
            for country, age in zip(self._people.country, self._people.age, strict=True)
        ]
        columns = (self._clicks.at_ms, self._clicks.user, self._clicks.item, self._clicks.kind)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for index, (at_ms, user, item, kind) in enumerate(rows):
            yield ClickEvent(
                user_id=_user_id(user),
                item_id=self._catalog.events[item].item_id,
                clicked_at_ms=at_ms,
                event_id=f"c{index:08d}",
                event_type=EVENT_TYPES[kind],
                profile=dict(profiles[user]),
            )

    def items(self) -> Iterator[ItemEvent]:
        """Yield the catalog as it stands at the end: every item that ever was, then the removals."""
        yield from self._catalog.events
        for event, leaves in zip(self._catalog.events, self._catalog.leaves, strict=True):
            if leaves <= 1.0:
                yield ItemEvent(item_id=event.item_id, removed=True)

    def opening_items(self) -> Iterator[ItemEvent]:
        """Yield the items that are there before the first click."""
        for event, arrives in zip(self._catalog.events, self._catalog.arrives, strict=True):
            if arrives < 0:
                yield event

    def item_changes(self) -> Iterator[tuple[int, ItemEvent]]:
        """Yield arrivals and removals with their event times in milliseconds, in time order."""
        changes: list[tuple[int, ItemEvent]] = []
        columns = zip(self._catalog.events, self._catalog.arrives, self._catalog.leaves, strict=True)
        for event, arrives, leaves in columns:
            if arrives >= 0:
                changes.append((self._moment(arrives), event))
            if leaves <= 1.0:
                changes.append((self._moment(leaves), ItemEvent(item_id=event.item_id, removed=True)))
        yield from sorted(changes, key=lambda change: (change[0], change[1].item_id))

    def truth(self, user_id: str) -> list[TrueInterest]:
        """Return the true interests of a user, 1 to 6 of them; none for a bot."""
        if user_id in self.bots:
            return []
        row, people = int(user_id[1:]), self._people
        return [
            TrueInterest(
                number=slot,
                begins_ms=self._moment(people.begins[row, slot]),
                ends_ms=self._moment(people.ends[row, slot]),
                weight=float(people.weight[row, slot]),
                themes=(int(people.themes[row, slot, 0]), int(people.themes[row, slot, 1])),
                drifts_ms=(self._moment(people.drifts[row, slot, 0]), self._moment(people.drifts[row, slot, 1])),
            )
            for slot in np.flatnonzero(people.weight[row]).tolist()
        ]

    def item_shares(self, interest: TrueInterest, at_ms: int) -> dict[str, float]:
        """Return the chance of each item in the next click of *interest* at *at_ms*; sums to 1.

        An item that isn't in the catalog at that time is drawn again, so its chance goes to the others.
        """
        shares: Counter[int] = Counter()
        part = interest.drifted(at_ms)
        at = (at_ms - self._start_ms) / self._span_ms
        for theme, part_of_theme in zip(interest.themes, (1.0 - part, part), strict=True):
            rows = self._themes.items[theme]
            present = (self._catalog.arrives[rows] <= at) & (at < self._catalog.leaves[rows])
            for row, share in zip(rows[present].tolist(), self._themes.shares[theme][present].tolist(), strict=True):
                shares[row] += share * part_of_theme
        total = sum(shares.values())
        return {self._catalog.events[row].item_id: share / total for row, share in shares.items() if share > 0}

    def interest_of(self, click_index: int) -> int | None:
        """Return the number of the true interest behind a click; None for noise and for a bot's click."""
        number = int(self._clicks.interest[click_index])
        return number if number >= 0 else None

    def _moment(self, share: float) -> int:
        """Return a share of the simulated time as event time in milliseconds, held within it."""
        return self._start_ms + round(min(max(float(share), 0.0), 1.0) * self._span_ms)


def coverage(truth: Mapping[Key, int | None], clicks_by_interest: Mapping[int, Sequence[Key]]) -> dict[int, bool]:
    """Return, for each true interest in a window, whether some interest vector stands for it.

    A vector stands for the true interest that most of its clicks have; a tie stands for none.

    Args:
        truth: each click of the window (event id, index, whatever tells them apart) and its true interest; None for
            noise.
        clicks_by_interest: the clicks that formed each interest vector.
    """
    covered = {interest: False for interest in truth.values() if interest is not None}
    for clicks in clicks_by_interest.values():
        votes = Counter(interest for click in clicks if (interest := truth.get(click)) is not None).most_common(2)
        if votes and (len(votes) == 1 or votes[0][1] > votes[1][1]):
            covered[votes[0][0]] = True
    return covered


def _user_id(row: int) -> str:
    return f"u{row:05d}"
