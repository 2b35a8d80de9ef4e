"""Lists that came too late: those of an engine that no longer owned the partition, behind newer ones.

A frozen engine that wakes up publishes nothing more (`engine/pulse.py`), but what it had handed to its network before
arrives. A reader keeps the greater list, and compaction the last one: a query service that starts afresh would show the
older. So whoever takes a partition over follows `recall-lists` for as long as such a connection can live, and refreshes
the users anew whose list went backwards. A broker closes a connection that says nothing for ten minutes
(`connections.max.idle.ms`), so after a quarter of an hour nothing more can come, and following ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from engine import metrics
from engine.errors import LogError, StoreError
from engine.log import Follower, Record, end_offsets
from engine.settings import Settings
from engine.store.lists import ListOrder
from engine.store.windows import PartitionStore

TOPIC = "recall-lists"
WATCHED_S = 900.0
LOOK_BACK = 1_000
"""So many records of each partition from before the taking over are looked at too."""
PATIENCE_S = 5.0
"""A newer list that an older one seems to follow may itself come behind it; so long is waited for that."""
EVERY_S = 1.0
AGAIN_S = 5.0

log = structlog.get_logger()
Suspects = dict[tuple[int, str], float]


class ListWatch:
    """Watches the partitions of one engine; to be used on one event loop."""

    def __init__(
        self,
        settings: Settings,
        epoch: str,
        stores: Callable[[], Mapping[int, PartitionStore]],
        on_overwritten: Callable[[], None],
        *,
        on_failure: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch nothing before `begin`.

        Args:
            settings: how to reach the log.
            epoch: the life of `clicks` that this engine's lists are of.
            stores: returns the open stores by partition.
            on_overwritten: called when users of them wait for a refresh.
            on_failure: called with what a store raises, which ends the watching.
            clock: seconds.
        """
        self._settings, self._epoch = settings, epoch
        self._stores, self._clock = stores, clock
        self._on_overwritten, self._on_failure = on_overwritten, on_failure
        self._begun = asyncio.Event()
        self._until_s = 0.0
        self._suspects: Suspects = {}

    def begin(self) -> None:
        """Watch for a while: partitions were taken over."""
        self._until_s = self._clock() + WATCHED_S
        self._begun.set()

    async def keep(self) -> None:
        """Follow the lists whenever there is something to watch, for ever."""
        while True:
            await self._begun.wait()
            self._begun.clear()
            self._suspects.clear()
            while self._is_due():
                try:
                    await self._follow()
                except LogError as error:  # the broker is away, or the topic is another one now
                    log.warning("list_watch_interrupted", problem=str(error), again_in_s=AGAIN_S)
                    await asyncio.sleep(AGAIN_S)
                except StoreError as error:
                    self._on_failure(error)
                    return

    def _is_due(self) -> bool:
        """Return whether to go on as before: the time is not over, and no more partitions were taken over."""
        return self._clock() < self._until_s and not self._begun.is_set()

    async def _follow(self) -> None:
        """Follow them for as long as it is due, from a little before now."""
        ends = await end_offsets(self._settings, TOPIC)
        start = {partition: max(0, end - LOOK_BACK) for partition, end in ends.items()}
        follower = Follower(self._settings, TOPIC, self.apply, start=start)
        await follower.start()
        following = asyncio.create_task(follower.wait())
        try:
            while self._is_due() and not following.done():
                await asyncio.wait({following}, timeout=EVERY_S)
                if follower.lag() == 0:
                    await self.refresh_overwritten()
            if following.done():
                following.result()
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            await follower.stop()

    async def apply(self, records: Sequence[Record]) -> None:
        """Take in *records* of one partition, in log order."""
        store = self._stores().get(records[0].partition)
        if store is not None:
            await asyncio.to_thread(self._look, store, records)

    def _look(self, store: PartitionStore, records: Sequence[Record]) -> None:
        for record in records:
            user = (record.key or b"").decode(errors="replace")
            try:
                order = ListOrder.of(record.headers)
            except (KeyError, TypeError, ValueError):
                continue  # none of ours, and readers pass it over
            newest = store.listed(user)
            is_older = newest is not None and (
                order.epoch != self._epoch.encode() or (order.window_offset, order.activation) < newest
            )
            if is_older:
                self._suspects.setdefault((record.partition, user), self._clock())
            else:
                self._suspects.pop((record.partition, user), None)

    async def refresh_overwritten(self) -> None:
        """Have those users refreshed whose newer list did not come behind the older one in time."""
        long_ago = self._clock() - PATIENCE_S
        due = [suspect for suspect, noted_at in self._suspects.items() if noted_at <= long_ago]
        for partition in {partition for partition, _ in due}:
            users = [user for number, user in due if number == partition]
            for user in users:
                del self._suspects[partition, user]
            store = self._stores().get(partition)
            if store is not None:
                await asyncio.to_thread(store.mark_again, users)
                metrics.LISTS_OVERWRITTEN.inc(len(users))
                log.warning("lists_overwritten", partition=partition, users=len(users))
        if due:
            self._on_overwritten()
