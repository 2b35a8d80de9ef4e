"""Following `recall-lists`: from the log into the list store, and the one place where freshness is measured.

A list is visible from the moment its batch is written: the answer of any later query holds it. So each record that
moved its user's list forward is timed then, from `accepted_at_ms`, the time the log accepted the oldest click that the
list is the first to reflect. Lists that reflect no new click (a sweep after a model swap) carry none and aren't timed,
nor is the backlog that a starting service reads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from engine import metrics
from engine.log import Follower, Record
from engine.serving.arrivals import Arrivals
from engine.serving.freshness import Freshness
from engine.settings import Settings
from engine.store.lists import ListStore

TOPIC = "recall-lists"
RECENT_USERS = 8
"""How many of the users refreshed last the page offers to look up."""


class ListStamp(msgspec.Struct, gc=False):
    """The part of a list that says whose it is and how fresh."""

    user_id: str
    accepted_at_ms: int | None = None


_DECODE_STAMP = msgspec.json.Decoder(ListStamp).decode


class ListFollower:
    """Applies every record of `recall-lists` to *store*, from where the store ends."""

    def __init__(
        self,
        settings: Settings,
        store: ListStore,
        freshness: Freshness,
        arrivals: Arrivals,
        *,
        now_ms: Callable[[], int],
    ) -> None:
        self._store, self._freshness, self._arrivals, self._now_ms = store, freshness, arrivals, now_ms
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="lists")
        self._follower = Follower(settings, TOPIC, self._apply, start=store.next_offsets())
        self.caught_up = self._follower.caught_up
        self.recent_users: deque[str] = deque(maxlen=RECENT_USERS)

    async def start(self) -> None:
        """Begin to follow."""
        metrics.LISTS_HELD.set(self._store.count)
        await self._follower.start()

    async def stop(self) -> None:
        """End following; the batch in flight is written first, and nothing is written after."""
        await self._follower.stop()
        self._executor.shutdown(wait=True)

    async def wait(self) -> None:
        """Return when the follower is stopped; raise what ended it."""
        await self._follower.wait()

    def lag(self) -> int:
        """Return how many records of the topic were not applied yet, as of the last fetch."""
        return self._follower.lag()

    async def _apply(self, records: Sequence[Record]) -> None:
        loop = asyncio.get_running_loop()
        taken = await loop.run_in_executor(self._executor, self._store.apply, records)
        metrics.LISTS_HELD.set(self._store.count)
        self._arrivals.tell(taken)
        if self.caught_up.is_set():
            now_ms = self._now_ms()
            for record in taken:
                self._time(record.value, now_ms=now_ms)

    def _time(self, value: bytes | None, *, now_ms: int) -> None:
        try:
            stamp = _DECODE_STAMP(value or b"")
        except msgspec.MsgspecError:
            return  # the record has an order, so it was kept; an answer built from it says what is wrong
        if stamp.accepted_at_ms is None:
            return
        latency_ms = max(0, now_ms - stamp.accepted_at_ms)
        metrics.CLICK_TO_VISIBLE.observe(latency_ms / 1000)
        self._freshness.observe(latency_ms, now_ms=now_ms)
        if stamp.user_id in self.recent_users:
            self.recent_users.remove(stamp.user_id)
        self.recent_users.appendleft(stamp.user_id)
