"""Work on the spot: routing and search in the query service, off the event loop and bounded.

One thread, because routing and search would only slow each other down, and because the plain answers need the rest.
Who comes while `max_recalls_at_once` requests are under way is refused at once; a request that is given up in the queue
never runs. Each piece of work takes the snapshot in service when it starts, and keeps it to its end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from engine.adhoc import AdHocLists
from engine.catalog import Catalog
from engine.errors import UnusableInterests
from engine.serving import refusals
from engine.settings import Settings
from engine.snapshot import ServingSnapshot, SnapshotHolder

Result = TypeVar("Result")


class Spot:
    """Runs work on an `AdHocLists` of the version in service."""

    def __init__(
        self, settings: Settings, holder: SnapshotHolder, catalog: Catalog, *, now_ms: Callable[[], int]
    ) -> None:
        self._settings, self._holder, self._catalog, self._now_ms = settings, holder, catalog, now_ms
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="recall-on-the-spot")
        self._free = threading.BoundedSemaphore(settings.max_recalls_at_once)
        self._lists: AdHocLists | None = None
        self._prepared: AdHocLists | None = None

    def prepare(self, snapshot: ServingSnapshot) -> None:
        """Bring the items of *snapshot*, which is about to serve, to the present; any thread may call this."""
        if snapshot.model is not None:
            self._prepared = self._new_lists(snapshot)

    async def run(self, work: Callable[[AdHocLists], Result]) -> Result:
        """Return what *work*, called in the one thread, makes of the version in service.

        Raises:
            Refusal: too much is under way, no trained version is in service, or it makes no interests of the clicks.
        """
        if not self._free.acquire(blocking=False):
            raise refusals.too_busy(self._settings.max_recalls_at_once)
        try:
            future = self._executor.submit(self._call, work)
        except RuntimeError:  # the service stops
            self._free.release()
            raise
        future.add_done_callback(lambda _: self._free.release())
        return await asyncio.wrap_future(future)

    def forget_retired(self) -> None:
        """Let go of a version that is not in service any more, so that its memory is free."""
        lists = self._lists
        current = self._holder.current
        if lists is not None and (current is None or lists.snapshot.model is not current.model):
            self._lists = None

    def stop(self) -> None:
        """End the work under way; what waits is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _call(self, work: Callable[[AdHocLists], Result]) -> Result:
        snapshot = self._holder.current
        if snapshot is None or snapshot.model is None:
            raise refusals.no_trained_version()
        lists = self._lists
        if lists is None or not lists.adopt(snapshot):
            prepared, self._prepared = self._prepared, None
            self._lists = lists = prepared if prepared and prepared.adopt(snapshot) else self._new_lists(snapshot)
        try:
            return work(lists)
        except UnusableInterests as error:
            raise refusals.no_interests(lists.snapshot.model_version) from error

    def _new_lists(self, snapshot: ServingSnapshot) -> AdHocLists:
        return AdHocLists(self._settings, snapshot, self._catalog, epoch="", now_ms=self._now_ms)
