"""Replay: sends a source's catalog to `items` and its clicks to `clicks`, at a chosen pace, and can be continued.

Every chunk is acknowledged before the next one is sent, and only then is the place written to the resume file. So a
replay that was killed loses nothing and sends at most one chunk twice, which the window rule melts away. A broker
outage is waited out. Records carry the user id or the item id as key; partitions are Kafka's own choice by that key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import structlog

from engine.errors import LogError
from engine.events import ClickEvent, ItemEvent, encode_click, encode_item
from engine.log import Message, Publisher, topic_epoch, wait_for_broker
from engine.settings import Settings
from engine.sources import ChangingCatalog, EventSource
from engine.sources.pace import Ahead, Pace, check_pace
from engine.sources.place import Place, identity_of, read_place, write_place

CHUNK_CLICKS = 2_000
"""Clicks sent and acknowledged together at the most; what a killed replay may send twice."""
SHORTEST_SLEEP_S = 0.02
"""A paced replay wakes no more often than this, so that high rates are sent in small chunks, not click by click."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
"""Waits between attempts while the broker is away; each is twice the one before."""
MOST_REFUSALS, MOST_REFUSALS_AT_START = 10, 3
"""Failures in a row, with a broker that answers, after which it is no outage but a refusal: no such topic, for one."""
GRACE_S = 5.0
"""How long an attempt under way may go on after the caller asked for the end."""

OnProgress = Callable[[int, int, float], None]
T = TypeVar("T")
log = structlog.get_logger()


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
    async with _Sender(settings, stop or asyncio.Event()) as sender:
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

    sender: _Sender
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


class _Sender:
    """A publisher that outlives outages of the broker."""

    def __init__(self, settings: Settings, stop: asyncio.Event) -> None:
        self._settings, self._stop = settings, stop
        self._publisher: Publisher | None = None
        self.outages = 0

    @property
    def stopped(self) -> bool:
        """True once the caller asked for the end."""
        return self._stop.is_set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def epoch(self) -> str:
        """Return the identity of the `clicks` topic, waiting for the broker; empty when stopped before."""
        epoch = await self._insist(lambda: topic_epoch(self._settings, "clicks"), most_refusals=MOST_REFUSALS_AT_START)
        return epoch.text if epoch else ""

    async def send(self, messages: Sequence[Message]) -> bool:
        """Send *messages* and return True when all are acknowledged, False when stopped before that."""
        return await self._insist(lambda: self._send_once(messages)) is not None

    async def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the caller asks for the end."""
        try:
            await asyncio.wait_for(self._stop.wait(), timeout=seconds)
        except TimeoutError:
            return

    async def _insist(
        self, attempt: Callable[[], Coroutine[Any, Any, T]], *, most_refusals: int = MOST_REFUSALS
    ) -> T | None:
        """Return what *attempt* returns, trying until it succeeds; None when stopped before that."""
        wait_s, refusals = FIRST_WAIT_S, 0
        while True:
            try:
                return await self._until_stopped(attempt())
            except LogError as error:
                self.outages += 1
                refusals = refusals + 1 if await self._broker_answers() else 0
                if refusals >= most_refusals:
                    raise
                log.warning("replay_waits_for_broker", problem=str(error), wait_s=wait_s)
            await self._close()
            await self.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            if self.stopped:
                return None

    async def _until_stopped(self, attempt: Coroutine[Any, Any, T]) -> T | None:
        """Await *attempt*, but only a little longer once the caller asked for the end."""
        task, stop = asyncio.ensure_future(attempt), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({task}, timeout=GRACE_S)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stop.cancel()

    async def _broker_answers(self) -> bool:
        try:
            await wait_for_broker(self._settings, 0.0)
        except LogError:
            return False
        return True

    async def _send_once(self, messages: Sequence[Message]) -> bool:
        if self._publisher is None:
            publisher = Publisher(self._settings)
            await publisher.start()
            self._publisher = publisher
        await self._publisher.send_all(messages)
        return True

    async def _close(self) -> None:
        # A failed idempotent producer may refuse everything from then on, so each outage gets a new one.
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            try:
                await publisher.stop()
            except LogError as error:
                log.warning("replay_publisher_not_stopped", problem=str(error))
