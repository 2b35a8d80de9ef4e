"""HotSwap: follows `models`, loads what is announced beside what serves, and swaps one reference.

A record on `models` names a version and the sha256 of its manifest; its offset is the activation, so announcing an
older version again is newer, and that is a rollback. The last record counts: versions announced while another was
loading are skipped. Loading runs in a thread of its own, one at a time. A version that fails any check is refused,
logged and counted, and what serves goes on serving. At a start, when nothing serves yet, the announcements before a
refused one are tried too, newest first. A registry that can't be reached is asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from engine import metrics
from engine.errors import RegistryUnusable
from engine.log import Follower, Record
from engine.settings import Settings
from engine.snapshot import ServingSnapshot, SnapshotHolder, check_registry, load_snapshot

TOPIC = "models"
RETRY_S = (1.0, 60.0)
"""First and longest pause before a registry that can't be reached is asked again."""
_REMEMBERED = 50

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Announcement:
    """One record of `models`: a version to serve from now on."""

    activation: int
    """The record's offset."""
    model_version: str
    manifest_sha256: str


class HotSwap:
    """Keeps a `SnapshotHolder` on the version that was announced last; lives on the event loop that started it."""

    def __init__(
        self,
        settings: Settings,
        holder: SnapshotHolder,
        on_swap: Callable[[ServingSnapshot], None] | None = None,
        prepare: Callable[[ServingSnapshot], None] | None = None,
    ) -> None:
        """Describe what to keep current; nothing is read before `start`.

        Args:
            settings: where log and registry are, and how to search.
            holder: what readers take their snapshot from.
            on_swap: called on the event loop after each swap, with the snapshot that now serves.
            prepare: called in the loading thread with a snapshot that is about to serve; what it raises refuses it. It
                takes the snapshot's index over, so that an index built anew can take its place in memory.

        Raises:
            ConfigError: the registry's address is none that can be opened here.
        """
        check_registry(settings)
        self._settings = settings
        self._holder = holder
        self._on_swap, self._prepare = on_swap, prepare
        self._follower = Follower(settings, TOPIC, self.apply)
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hotswap")
        self._announced: list[Announcement] = []
        self._refused: set[int] = set()
        self._served: Announcement | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.caught_up = asyncio.Event()
        """Set once the last version announced before the start serves or was refused; also where there is none."""

    async def start(self) -> None:
        """Begin to follow and to load in the background."""
        await self._follower.start()
        self._task = asyncio.create_task(self._serve_newest(), name="hotswap")

    async def stop(self) -> None:
        """Stop following; a load in progress is given up. The current snapshot stays in place."""
        await self._follower.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def wait(self) -> None:
        """Wait until following ends, and raise what ended it."""
        following = asyncio.create_task(self._follower.wait())
        watched = {following} if self._task is None else {following, self._task}
        try:
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            following.cancel()

    async def apply(self, records: Sequence[Record]) -> None:
        """Note what *records* of `models` announce; one that can't be read is refused."""
        for record in records:
            announcement = read_announcement(record.value, activation=record.offset)
            if announcement is None:
                self._count_refusal(record.offset, "unreadable", "the record is not an announcement")
            else:
                self._announced = [*self._announced, announcement][-_REMEMBERED:]
        self._news.set()

    async def _serve_newest(self) -> None:
        # Starting from the log's end: a backlog of old announcements is not served through one by one.
        await self._follower.caught_up.wait()
        pause_s = RETRY_S[0]
        while True:
            self._news.clear()
            candidate = self._next_candidate()
            if candidate is None:
                self.caught_up.set()
                await self._news.wait()
            elif await self._try(candidate):
                pause_s = RETRY_S[0]
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), pause_s)
                pause_s = min(2 * pause_s, RETRY_S[1])

    def _next_candidate(self) -> Announcement | None:
        """Return the announcement to load now; None where the best possible one serves."""
        for announcement in reversed(self._announced):
            if self._served is not None and announcement.activation <= self._served.activation:
                return None
            if announcement.activation not in self._refused:
                return announcement
            if self._holder.current is not None:
                return None
        return None

    async def _try(self, announcement: Announcement) -> bool:
        """Load and serve a version, or refuse it; False if it is to be tried again because the registry is away."""
        loop = asyncio.get_running_loop()
        try:
            snapshot = self._again(announcement)
            if snapshot is None:
                snapshot = await loop.run_in_executor(self._loader, self._load, announcement)
        except RegistryUnusable as error:
            log.warning("registry_unusable", version=announcement.model_version, problem=str(error))
            return False
        except Exception as error:
            # Not only ours: whatever a library makes of a version that passed every check must not end what serves.
            self._refuse(announcement, type(error).__name__, error)
        else:
            self._serve(announcement, snapshot)
        return True

    def _load(self, announcement: Announcement) -> ServingSnapshot:
        snapshot = load_snapshot(
            self._settings,
            announcement.model_version,
            announcement.activation,
            manifest_sha256=announcement.manifest_sha256,
        )
        if self._prepare is None:
            return snapshot
        self._prepare(snapshot)
        return snapshot.without_index()

    def _again(self, announcement: Announcement) -> ServingSnapshot | None:
        """Return what serves under the new activation, if the same version was announced again."""
        current, served = self._holder.current, self._served
        if current is None or served is None or served.manifest_sha256 != announcement.manifest_sha256:
            return None
        return current.activated(announcement.activation)

    def _serve(self, announcement: Announcement, snapshot: ServingSnapshot) -> None:
        retired = self._holder.swap(snapshot)
        self._served = announcement
        metrics.show_model(snapshot.model_version)
        metrics.MODEL_AGE.set(snapshot.trained_at_ms / 1000)
        metrics.SWAPS.labels("swapped").inc()
        log.info(
            "model_swapped",
            version=snapshot.model_version,
            activation=snapshot.activation,
            retired=retired.model_version if retired else None,
            items=len(snapshot.item_ids),
        )
        if self._on_swap is not None:
            self._on_swap(snapshot)

    def _refuse(self, announcement: Announcement, reason: str, error: Exception) -> None:
        self._refused.add(announcement.activation)
        self._count_refusal(announcement.activation, reason, str(error), version=announcement.model_version)

    def _count_refusal(self, activation: int, reason: str, problem: str, version: str | None = None) -> None:
        metrics.SWAPS.labels("refused").inc()
        current = self._holder.current
        log.warning(
            "model_refused",
            version=version,
            activation=activation,
            reason=reason,
            problem=problem,
            still_serving=current.model_version if current else None,
        )


def read_announcement(value: bytes | None, *, activation: int) -> Announcement | None:
    """Return what a record's *value* announces; None where it is no announcement."""
    try:
        content = json.loads(value or b"")
        version, sha256 = content["model_version"], content["manifest_sha256"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(version, str) or not isinstance(sha256, str):
        return None
    return Announcement(activation, version, sha256)
