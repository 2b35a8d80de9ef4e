"""When each click of a replay is due, and an iterator that can be looked at before it is taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from engine.errors import ConfigError
from engine.events import ClickEvent

T = TypeVar("T")


def check_pace(*, rate: float | None, speed: float | None) -> None:
    """Raise ConfigError unless at most one of the two is given, and that one is positive."""
    if rate is not None and speed is not None:
        raise ConfigError("speed", got=speed, expected="left out when a rate is given")
    for key, value in (("rate", rate), ("speed", speed)):
        if value is not None and not value > 0:
            raise ConfigError(key, got=value, expected="a number, more than 0")


class Ahead(Generic[T]):
    """An iterator whose next element can be looked at."""

    def __init__(self, elements: Iterator[T]) -> None:
        self._elements = elements
        self.head: T | None = next(elements, None)

    def take(self) -> T:
        """Return the head and look at the next element."""
        taken, self.head = self.head, next(self._elements, None)
        assert taken is not None
        return taken


class Pace:
    """When each click is due, in seconds since the first one of this run."""

    def __init__(self, *, rate: float | None, speed: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._speed, self._clock = rate, speed, clock
        self._started_s = 0.0
        self._first_ms = 0
        self._taken = 0

    def start(self, click: ClickEvent | None) -> None:
        """Set the clock going; *click* is the first of the run."""
        self._started_s = self._clock()
        self._first_ms = click.clicked_at_ms if click else 0

    def take_due(self, clicks: Ahead[ClickEvent], *, limit: int) -> list[ClickEvent]:
        """Take and return the clicks that are due by now."""
        due: list[ClickEvent] = []
        while clicks.head is not None and len(due) < limit and self.seconds_until(clicks.head) <= 0:
            due.append(clicks.take())
            self._taken += 1
        return due

    def seconds_until(self, click: ClickEvent) -> float:
        """Return how long it is until *click*, the next one, is due; 0 or less when it is."""
        if self._rate is not None:
            due_s = self._taken / self._rate
        elif self._speed is not None:
            due_s = (click.clicked_at_ms - self._first_ms) / 1_000 / self._speed
        else:
            return 0.0
        return due_s - (self._clock() - self._started_s)
