"""One replay: the catalog, then the clicks in acknowledged chunks, each click when it is due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from engine.events import ClickEvent, ItemEvent, encode_click, encode_item
from engine.log import Message
from engine.replay.pace import Ahead, Pace, check_pace
from engine.replay.place import Place, identity_of, read_place, write_place
from engine.replay.sender import Sender
from engine.settings import Settings
from engine.sources import EventSource

CHUNK_CLICKS = 2_000
"""Clicks sent and acknowledged together at the most; what a killed replay may send twice."""
SHORTEST_SLEEP_S = 0.02
"""A paced replay wakes no more often than this, so that high rates are sent in small chunks, not click by click."""

OnProgress = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What one run of `replay` did."""

    items_sent: int
    clicks_sent: int
    next_click: int
    """Index of the first click that was not sent."""
    seconds: float
    outages: int
    """Failed attempts to reach the broker; every one of them was made up for."""
    finished: bool
    """False when it was stopped before the last click."""

    @property
    def clicks_per_s(self) -> float:
        """Acknowledged clicks per second, the waits included."""
        return self.clicks_sent / self.seconds if self.seconds > 0 else 0.0


@runtime_checkable
class ChangingCatalog(Protocol):
    """A source whose catalog changes while the clicks flow."""

    def opening_items(self) -> Iterable[ItemEvent]:
        """Yield the catalog as it stands before the first click."""
        ...

    def item_changes(self) -> Iterable[tuple[int, ItemEvent]]:
        """Yield arrivals and removals with their event times, in time order."""
        ...


async def replay(
    settings: Settings,
    source: EventSource,
    *,
    first: int = 0,
    last: int | None = None,
    rate: float | None = None,
    speed: float | None = None,
    restamp: bool = False,
    send_items: bool = True,
    resume_file: Path | None = None,
    on_progress: OnProgress | None = None,
    stop: asyncio.Event | None = None,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> ReplayReport:
    """Send clicks [*first*, *last*) of *source*, the catalog before them, and return what was sent.

    Args:
        settings: names the cluster and the topics.
        source: what to send.
        first: index of the first click.
        last: index after the last click; None means to the end.
        rate: clicks per second. Without *rate* and *speed* everything goes as fast as the broker takes it.
        speed: event time runs this many times faster than the clock, counted from the first click sent.
        restamp: make every click a new one of this moment: `clicked_at_ms` is the time of sending, and `event_id` is
            unique. A chunk sent twice is then two chunks.
        send_items: send the catalog too. A source whose catalog changes has its changes sent at their place among the
            clicks.
        resume_file: where the place is kept; a run that finds a place of the same source and the same log goes on
            there when it lies after *first*.
        on_progress: called after each chunk with the clicks done since *first*, the clicks in all, and clicks/s.
        stop: when set, the run ends after the chunk in flight, its place saved.
        now_ms: the clock of *restamp*.

    Raises:
        ConfigError: both *rate* and *speed* are given, or one isn't positive.
        SourceError: the resume file belongs to another source, or can't be read.
    """
    check_pace(rate=rate, speed=speed)
    last = source.click_count if last is None else min(last, source.click_count)
    async with Sender(settings, stop or asyncio.Event()) as sender:
        identity = identity_of(source)
        epoch = await sender.epoch()
        place = read_place(resume_file, source=identity, log_epoch=epoch)
        start = max(first, place.next_click) if place else first
        run = _Run(sender=sender, settings=settings, first=first, last=last, next_click=start, on_progress=on_progress)

        def save() -> None:
            if resume_file is not None:
                write_place(resume_file, Place(identity, epoch, run.next_click, run.items_done))

        run.items_done = bool(place and place.items_sent)
        changes = await run.send_catalog(source) if send_items else iter(())
        save()
        stamp = _restamped(now_ms) if restamp else None
        await run.send_clicks(source, changes, Pace(rate=rate, speed=speed), stamp=stamp, save=save)
        return run.report(time.monotonic() - run.started_s)


@dataclass
class _Run:
    """One run's place and counts."""

    sender: Sender
    settings: Settings
    first: int
    last: int
    next_click: int
    on_progress: OnProgress | None
    items_done: bool = False
    items_sent: int = 0
    clicks_sent: int = 0
    started_s: float = field(default_factory=time.monotonic)

    async def send_catalog(self, source: EventSource) -> Iterator[tuple[int, ItemEvent]]:
        """Send the catalog unless an earlier run did; return the changes that are to go along with the clicks."""
        if not self.items_done:
            await self._send_items(source.opening_items() if isinstance(source, ChangingCatalog) else source.items())
            self.items_done = not self.sender.stopped
        return iter(source.item_changes()) if isinstance(source, ChangingCatalog) else iter(())

    async def send_clicks(
        self,
        source: EventSource,
        changes: Iterator[tuple[int, ItemEvent]],
        pace: Pace,
        *,
        stamp: Callable[[int, ClickEvent], ClickEvent] | None,
        save: Callable[[], None],
    ) -> None:
        """Send the clicks from `next_click` to `last`, each when it is due."""
        clicks = Ahead(islice(source.clicks(), self.next_click, self.last))
        pending = Ahead(changes)
        pace.start(clicks.head)
        while clicks.head is not None and not self.sender.stopped:
            due = pace.take_due(clicks, limit=CHUNK_CLICKS)
            if not due:
                await self.sender.sleep(max(SHORTEST_SLEEP_S, pace.seconds_until(clicks.head)))
                continue
            await self._send_items(_changes_through(pending, due[-1].clicked_at_ms))
            if stamp is not None:
                due = [stamp(self.next_click + place, click) for place, click in enumerate(due)]
            if not await self._send_chunk(due):
                return
            save()
            self._show()
        if self.next_click >= source.click_count:
            await self._send_items(_changes_through(pending, None))

    async def _send_chunk(self, clicks: Sequence[ClickEvent]) -> bool:
        topic = self.settings.topic("clicks")
        messages = [Message(topic, encode_click(click), key=click.user_id.encode()) for click in clicks]
        if not await self.sender.send(messages):
            return False
        self.next_click += len(clicks)
        self.clicks_sent += len(clicks)
        return True

    def report(self, seconds: float) -> ReplayReport:
        """Return what was done until now."""
        return ReplayReport(
            items_sent=self.items_sent,
            clicks_sent=self.clicks_sent,
            next_click=self.next_click,
            seconds=seconds,
            outages=self.sender.outages,
            finished=self.next_click >= self.last,
        )

    async def _send_items(self, items: Iterable[ItemEvent]) -> None:
        topic = self.settings.topic("items")
        waiting = iter(items)
        while chunk := list(islice(waiting, CHUNK_CLICKS)):
            messages = [Message(topic, encode_item(item), key=item.item_id.encode()) for item in chunk]
            if not await self.sender.send(messages):
                return
            self.items_sent += len(chunk)

    def _show(self) -> None:
        if self.on_progress is not None:
            elapsed_s = max(time.monotonic() - self.started_s, 1e-9)
            self.on_progress(self.next_click - self.first, self.last - self.first, self.clicks_sent / elapsed_s)


def _changes_through(changes: Ahead[tuple[int, ItemEvent]], at_ms: int | None) -> Iterator[ItemEvent]:
    """Take the catalog changes up to *at_ms*, inclusive; all of them for None."""
    while changes.head is not None and (at_ms is None or changes.head[0] <= at_ms):
        yield changes.take()[1]


def _restamped(now_ms: Callable[[], int]) -> Callable[[int, ClickEvent], ClickEvent]:
    def stamp(index: int, click: ClickEvent) -> ClickEvent:
        at_ms = now_ms()
        # The padded index keeps the source's order among clicks of one millisecond.
        return msgspec.structs.replace(click, clicked_at_ms=at_ms, event_id=f"live:{index:09d}:{at_ms}")

    return stamp
