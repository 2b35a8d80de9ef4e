"""Recovery: the one way to the store of a partition that is taken over.

Of the store on this machine and the checkpoints of its epoch, the one with the greatest offset is the base; the log
from there makes the rest. A store that RocksDB can't read is moved aside, not deleted, and counts as none. Nothing is
ever mixed: a checkpoint is fetched beside the stores, compared with its manifest, opened, and renamed into its place.

The directories, all below `<data_dir>/engine` and so under the lock of the one engine that may use them:

    partitions/clicks-0      the store
    fetching/                checkpoints on their way here; what a crash left is removed at the next start
    aside/clicks-0-<ms>      the last damaged store of each partition
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import structlog

from engine import metrics
from engine.errors import CheckpointsUnusable, DamagedCheckpoint, DamagedStore, LogError
from engine.settings import Settings
from engine.store.checkpoints import Checkpoint, Checkpoints
from engine.store.header import StoreHeader, stores_dir
from engine.store.rocksdb import verify
from engine.store.scans import read_offset_of
from engine.store.windows import PartitionStore
from engine.window import SeenRule

SUSPECT = "suspect-stores"
"""Name of the file that a run leaves which met an unreadable block: the next one reads each base whole first."""

Base = Literal["local", "checkpoint", "log"]

log = structlog.get_logger()


class Bounds(NamedTuple):
    """First offset that a partition of the log still holds, and the one after its last."""

    first: int
    end: int


class Recovery:
    """Opens the stores of partitions that are taken over; any method is called from one thread."""

    def __init__(
        self,
        settings: Settings,
        checkpoints: Checkpoints | None = None,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Prepare to open stores, and clear away what a crash left half fetched.

        Args:
            settings: where the stores are, and whether a gap in the log is accepted.
            checkpoints: where copies of stores are; None where there are none.
            now_ms: wall time, for the names of stores that are moved aside.
        """
        self._settings, self._checkpoints, self._now_ms = settings, checkpoints, now_ms
        self._seen_rule = SeenRule.of(settings)
        directory = settings.data_dir / "engine"
        self._fetching, self._aside = directory / "fetching", directory / "aside"
        shutil.rmtree(self._fetching, ignore_errors=True)
        suspect = directory / SUSPECT
        self._verifies = suspect.exists()
        suspect.unlink(missing_ok=True)

    def path(self, header: StoreHeader) -> Path:
        """Return where the store of *header*'s partition stands."""
        return stores_dir(self._settings) / f"{header.topic}-{header.partition}"

    def open(self, header: StoreHeader, held: Bounds) -> PartitionStore:
        """Open the store of *header*'s partition on its best base; a new one where there is none.

        Whether the log goes on where the store ends is for `next_offset` to say.

        Raises:
            StoreFormatError: the store on this machine was made for another header.
            StoreBusy: another process holds it.
            StoreNotWritten: the disk is full or failing.
            CheckpointsUnusable: they can't be read, and the log alone can't make the store.
            LogError: a checkpoint has applied more than the log ever held.
        """
        local = self._open_local(header)
        applied = -1 if local is None else local.applied_offset
        base: Base = "log" if applied < 0 else "local"
        try:
            best = self._fetch_better(header, held, than=applied)
        except BaseException:
            if local is not None:
                local.close()
            raise
        if best is not None:
            if local is not None:
                local.close()
            self._move_in(best, header)
            local, base = None, "checkpoint"
        store = local or PartitionStore.open(self.path(header), header, seen=self._seen_rule)
        metrics.STORES_OPENED.labels(base).inc()
        log.info("store_opened", partition=header.partition, base=base, applied_offset=store.applied_offset)
        return store

    def next_offset(self, store: PartitionStore, held: Bounds) -> int:
        """Return the offset of the next record to apply to *store*.

        Raises:
            LogError: the log no longer holds what the store needs next, or ends before what it applied.
        """
        position, topic = store.applied_offset + 1, store.header.topic
        subject = f"partition {store.header.partition} of {topic}"
        if position > held.end:
            raise LogError(
                subject,
                problem=f"ends at offset {held.end}, but the store has applied {position - 1}: the log lost records",
                remedy=f"restore the log, or move {self.path(store.header)} aside and rebuild from what is left",
            )
        if position >= held.first:
            return position
        if not self._settings.accept_log_gap:
            raise LogError(
                subject,
                problem=f"begins at offset {held.first}, but the store needs offset {position} next",
                remedy=f"{self._where_to_look()}MINDSTREAM_ACCEPT_LOG_GAP=true goes on without the clicks in between",
            )
        metrics.LOG_GAPS.inc()
        log.warning("log_gap_accepted", partition=store.header.partition, needed=position, begins_at=held.first)
        return held.first

    def suspect(self) -> None:
        """Have the next start read every base whole, store or checkpoint: this run met a block it could not read."""
        directory = self._settings.data_dir / "engine"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / SUSPECT).touch()

    def forget_aside(self, header: StoreHeader) -> None:
        """Delete the damaged store of *header*'s partition that was set aside: it may hold users who were erased."""
        for place in self._aside.glob(f"{header.topic}-{header.partition}-[0-9]*"):
            shutil.rmtree(place)

    # --- the store on this machine

    def _open_local(self, header: StoreHeader) -> PartitionStore | None:
        path = self.path(header)
        if not path.exists():
            return None
        try:
            if self._verifies:
                verify(path)
            return PartitionStore.open(path, header, seen=self._seen_rule)
        except DamagedStore as error:
            self._set_aside(path, error)
            return None

    def _set_aside(self, path: Path, error: DamagedStore) -> None:
        """Keep the damaged store for whoever wants to look at it; the one before it, of this partition, goes."""
        self._aside.mkdir(parents=True, exist_ok=True)
        earlier = list(self._aside.glob(f"{path.name}-[0-9]*"))
        place = self._aside / f"{path.name}-{self._now_ms()}"
        path.rename(place)
        for old in earlier:
            shutil.rmtree(old)
        metrics.STORES_SET_ASIDE.inc()
        log.error("store_set_aside", path=str(path), moved_to=str(place), cause=error.cause)

    # --- checkpoints

    def _fetch_better(self, header: StoreHeader, held: Bounds, *, than: int) -> Path | None:
        """Return the fetched checkpoint of the greatest offset beyond *than* that the log goes on from, or None."""
        if self._checkpoints is None:
            return None
        try:
            found = self._checkpoints.find(header)
            for checkpoint in found:
                if checkpoint.applied_offset <= than:
                    break
                if checkpoint.applied_offset + 1 > held.end:
                    raise self._beyond_the_log(header, held, checkpoint)
                if (folder := self._fetch(header, checkpoint)) is not None:
                    return folder
        except CheckpointsUnusable as error:
            if than + 1 < held.first:
                raise
            log.warning("checkpoints_unusable", error=str(error), goes_on_from=than)
        return None

    def _fetch(self, header: StoreHeader, checkpoint: Checkpoint) -> Path | None:
        """Fetch and open *checkpoint*; None where it is damaged."""
        assert self._checkpoints is not None
        began_s = time.perf_counter()
        name = f"{header.topic}-{header.partition}"
        log.info("checkpoint_fetching", partition=header.partition, path=checkpoint.path, bytes=checkpoint.size)
        folder = self._fetching / f"{name}-{checkpoint.applied_offset}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            self._checkpoints.fetch(checkpoint, folder)
            if self._verifies:  # a checkpoint is a faithful copy, also of a block that nobody could read
                verify(folder)
            applied = read_offset_of(folder)
            if applied != checkpoint.applied_offset:
                got, expected = f"applied offset {applied}", f"{checkpoint.applied_offset}"
                raise DamagedCheckpoint(checkpoint.path, file="the store", got=got, expected=expected)
        except (DamagedCheckpoint, DamagedStore) as error:
            shutil.rmtree(folder, ignore_errors=True)
            log.error("checkpoint_refused", path=checkpoint.path, error=str(error))
            return None
        log.info("checkpoint_fetched", partition=header.partition, seconds=round(time.perf_counter() - began_s, 3))
        return folder

    def _move_in(self, folder: Path, header: StoreHeader) -> None:
        """Put the fetched store in its place; after a crash in between there is none, and it is fetched again."""
        path = self.path(header)
        outdated = folder.with_name(f"{folder.name}-outdated")
        shutil.rmtree(outdated, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(outdated)
        folder.rename(path)
        shutil.rmtree(outdated, ignore_errors=True)

    def _beyond_the_log(self, header: StoreHeader, held: Bounds, checkpoint: Checkpoint) -> LogError:
        return LogError(
            f"partition {header.partition} of {header.topic}",
            problem=f"ends at offset {held.end}, but checkpoint {checkpoint.path} has applied "
            f"{checkpoint.applied_offset}: the log lost records",
            remedy="restore the log, or delete the manifests of the checkpoints beyond its end",
        )

    def _where_to_look(self) -> str:
        if self._checkpoints is None:
            return "name the place of its checkpoints in MINDSTREAM_CHECKPOINT_URL, or "
        return f"no checkpoint at {self._checkpoints.url} fits; "
