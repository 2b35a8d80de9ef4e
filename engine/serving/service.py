"""The query service: its parts, their order of starting, and what it says about itself.

It answers from the moment the process listens and becomes ready part by part: the broker is reached, the lists on disk
are opened and followed to the end of their topic, the catalog is read, a model version is loaded. What is missing is
named by `problems`, never waited for inside a request. A part that fails for good ends the process with its error; an
outage of Kafka never does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

import structlog

from engine import metrics
from engine.catalog import Catalog
from engine.erasures import Erasure, Erasures, erase_user
from engine.errors import LogError
from engine.hotswap import HotSwap
from engine.log import Epoch, Message, Position, Publisher, end_offsets, topic_epoch, wait_for_broker
from engine.logs import user_tag
from engine.serving import refusals
from engine.serving.arrivals import Arrivals
from engine.serving.follow import TOPIC, ListFollower
from engine.serving.freshness import Freshness
from engine.serving.spot import Spot
from engine.serving.traffic import Traffic
from engine.settings import Settings
from engine.snapshot import SnapshotHolder
from engine.store.lists import ListStore

POLL_S = 1.0
BROKER_SILENT_MS = 10_000
PUBLISH_WITHIN_S = 10.0

log = structlog.get_logger()


def wall_ms() -> int:
    """Return wall time in milliseconds."""
    return time.time_ns() // 1_000_000


class QueryService:
    """Everything the HTTP interface answers from; `start` returns at once and the parts come up behind it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.holder = SnapshotHolder()
        self.catalog = Catalog(settings)
        self.freshness = Freshness()
        self.traffic = Traffic()
        self.lists: ListStore | None = None
        self.spot = Spot(settings, self.holder, self.catalog, now_ms=wall_ms)
        self.arrivals = Arrivals()
        self.clicks_epoch: Epoch | None = None
        """The life of `clicks` that offsets belong to, as last heard from the broker; None until it was reached."""
        self._publisher = Publisher(settings)
        self._hot_swap = HotSwap(settings, self.holder, prepare=self.spot.prepare)
        self._follower: ListFollower | None = None
        self._connecting = "not reached yet"
        self._task: asyncio.Task[None] | None = None
        self.started = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Begin to bring up the parts."""
        self._task = asyncio.create_task(self._run(), name="query-service")
        self.started.set()

    async def stop(self) -> None:
        """Stop every part that came up, the last one first."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._task
        await self._stack.aclose()
        self.spot.stop()
        if self.lists is not None:
            self.lists.close()

    async def failure(self) -> BaseException | None:
        """Wait until the service can't go on; return why, or None when it was stopped."""
        assert self._task is not None
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([self._task])
        return None if not self._task.done() or self._task.cancelled() else self._task.exception()

    async def publish(self, messages: Sequence[Message], *, what: str) -> Sequence[Position]:
        """Return where Kafka keeps each of *messages*, once it acknowledged all of them.

        Raises:
            Refusal: it did not within the time a client is kept waiting, or was not reached yet and nothing was sent.
        """
        if self._follower is None:
            raise refusals.store_opening()
        try:
            async with asyncio.timeout(PUBLISH_WITHIN_S):
                return await self._publisher.send_all(messages)
        except (LogError, TimeoutError) as error:
            log.warning("publish_failed", what=what, messages=len(messages), error=str(error))
            raise refusals.log_unavailable(what) from error

    async def erase(self, user_id: str) -> Erasure:
        """Write that all that *user_id* has clicked so far is to be ignored, and return it once it is acknowledged.

        Raises:
            Refusal: the log can't be reached, or was not reached yet.
        """
        if self._follower is None:
            raise refusals.store_opening()

        async def send(message: Message) -> None:
            await self.publish([message], what="erasure")

        try:
            async with asyncio.timeout(PUBLISH_WITHIN_S):
                erasure = await erase_user(user_id, self.settings, send)
        except (LogError, TimeoutError) as error:
            log.warning("erasure_not_placed", error=str(error))
            raise refusals.log_unavailable("erasure") from error
        log.info("erasure_logged", user=user_tag(self.settings, user_id), partition=erasure.partition)
        return erasure

    def problems(self) -> dict[str, str]:
        """Return each part that keeps the service from being ready, with what it waits for; empty when ready."""
        found = {}
        silent_ms = wall_ms() - (self.traffic.last_noted_ms or 0)
        if self._follower is None:
            found["broker"] = self._connecting
        elif silent_ms > BROKER_SILENT_MS:
            found["broker"] = f"no answer within the last {BROKER_SILENT_MS // 1000} s"
        if self._follower is None or not self._follower.caught_up.is_set():
            found["lists"] = f"topic {self.settings.topic(TOPIC)} has not been read to its end yet"
        elif self._follower.lag() > self.settings.ready_max_lag:
            found["lists"] = f"{self._follower.lag()} records behind, at most {self.settings.ready_max_lag} are allowed"
        if not self.catalog.caught_up.is_set():
            found["items"] = f"topic {self.settings.topic('items')} has not been read to its end yet"
        if self.holder.current is None:
            found["model"] = "no model version is loaded; publish one with `mindstream train`"
        return found

    def status(self) -> dict[str, Any]:
        """Return the figures that the page draws."""
        now_ms = wall_ms()
        return {
            "now_ms": now_ms,
            "failing": self.problems(),
            "freshness": self.freshness.summary(now_ms=now_ms),
            "clicks": self.traffic.summary(),
            "lists": self._list_figures(),
            "model": self._model_figures(now_ms),
            "recent_users": list(self._follower.recent_users) if self._follower is not None else [],
        }

    def _list_figures(self) -> dict[str, Any]:
        snapshot = self.holder.current
        if self.lists is None or self._follower is None:
            return {"held": 0, "lag": None, "on_current_version": None}
        current = self.lists.count_at(snapshot.activation) if snapshot is not None else None
        return {"held": self.lists.count, "lag": self._follower.lag(), "on_current_version": current}

    def _model_figures(self, now_ms: int) -> dict[str, Any] | None:
        snapshot = self.holder.current
        if snapshot is None:
            return None
        return {
            "version": snapshot.model_version,
            "trained_at_ms": snapshot.trained_at_ms,
            "age_ms": max(0, now_ms - snapshot.trained_at_ms),
            "items": len(snapshot.item_ids),
            "metrics": snapshot.metrics,
        }

    async def _run(self) -> None:
        lists, clicks = await self._connect()
        self.clicks_epoch = clicks
        erasures = Erasures(self.settings, clicks.text)
        self._stack.push_async_callback(erasures.stop)
        await erasures.start()
        await erasures.wait_until_read()  # no list of an erased user is shown meanwhile: there is no store yet
        path = self.settings.data_dir / "serve" / "lists"
        self.lists = await asyncio.to_thread(
            ListStore.open, path, topic=lists.text, now_ms=wall_ms(), is_hidden=erasures.hides
        )
        follower = ListFollower(self.settings, self.lists, self.freshness, self.arrivals, now_ms=wall_ms)
        for part in (follower, self.catalog, self._hot_swap):
            self._stack.push_async_callback(part.stop)
            await part.start()
        self._follower = follower
        log.info("query_service_follows", lists=self.lists.count, topic=self.settings.topic(TOPIC))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(erasures.wait())
            tasks.create_task(follower.wait())
            tasks.create_task(self.catalog.wait())
            tasks.create_task(self._hot_swap.wait())
            tasks.create_task(self._watch_traffic())

    async def _connect(self) -> tuple[Epoch, Epoch]:
        """Connect the publisher, and return the epochs of `recall-lists` and `clicks`, as soon as Kafka answers."""
        self._stack.push_async_callback(self._publisher.stop)
        while True:
            try:
                await wait_for_broker(self.settings, 5.0)
                lists, clicks = await topic_epoch(self.settings, TOPIC), await topic_epoch(self.settings, "clicks")
                await topic_epoch(self.settings, "erasures")  # whoever follows a missing topic waits for ever
                await self._publisher.start()
                return lists, clicks
            except LogError as error:
                if str(error) != self._connecting:
                    log.warning("broker_not_reached", error=str(error))
                self._connecting = str(error)
                await asyncio.sleep(POLL_S)

    async def _watch_traffic(self) -> None:
        while True:
            try:
                epoch = await topic_epoch(self.settings, "clicks")
                offsets = await end_offsets(self.settings, "clicks", epoch=epoch)
            except LogError as error:
                log.debug("clicks_not_watched", error=str(error))  # readiness names the outage
            else:
                self.clicks_epoch, total = epoch, sum(offsets.values())
                metrics.LOG_CLICKS.set(total)
                self.traffic.note(total, now_ms=wall_ms())
            self.spot.forget_retired()
            if self._follower is not None:
                metrics.LISTS_LAG.set(self._follower.lag())
            await asyncio.sleep(POLL_S)
