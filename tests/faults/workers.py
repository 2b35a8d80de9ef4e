"""Several engines at once, under steady clicks: restarted one after the other, more of them, fewer of them.

Each has a disk of its own, and only checkpoints to hand a partition over with. While it happens a watcher looks at the
stores on the disks, and notes for how long no click of a partition was applied.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.errors import StoreError
from engine.settings import Settings
from engine.store.rocksdb import open_for_reading
from engine.store.scans import read_offset
from tests.faults.rig import EngineProcess, Rig, wait

WORKERS = 3
SEND_EVERY_S, CLICKS_AT_ONCE = 0.1, 60
LEAST_CLICKS = 100 * CLICKS_AT_ONCE
"""A round with fewer clicks while engines came and went proves nothing."""
SETTLE_S = 3.0
LOOK_EVERY_S = 0.1


class Stream:
    """Sends clicks all the time, and watches how the partitions get on."""

    def __init__(self, rig: Rig, disks: Sequence[Settings]) -> None:
        self._rig, self._disks = rig, disks
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._watch)]
        self._moved_s: dict[str, float] = {}
        self._longest_s: dict[str, float] = {}
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def longest_pauses(self) -> list[float]:
        """Return, for each partition, the longest time without an applied click since the last call."""
        now_s = time.monotonic()
        pauses = [max(self._longest_s[name], now_s - moved_s) for name, moved_s in self._moved_s.items()]
        self._longest_s = dict.fromkeys(self._moved_s, 0.0)
        return pauses

    def _send(self) -> None:
        try:
            while not self._stopping.wait(SEND_EVERY_S):
                self._rig.send(CLICKS_AT_ONCE)
        except BaseException as error:
            self._failure = error

    def _watch(self) -> None:
        applied: dict[str, int] = {}
        while not self._stopping.wait(LOOK_EVERY_S):
            for path in [path for disk in self._disks for path in self._rig.stores(disk, "*/CURRENT")]:
                name, offset = path.parent.name, _applied_offset(path.parent)
                if offset > applied.get(name, -1):
                    now_s = time.monotonic()
                    since_s = now_s - self._moved_s.get(name, now_s)
                    self._longest_s[name] = max(self._longest_s.get(name, 0.0), since_s)
                    applied[name], self._moved_s[name] = offset, now_s


def _applied_offset(store: Path) -> int:
    try:
        db = open_for_reading(store)
    except StoreError:  # it is being replaced by a checkpoint
        return -1
    try:
        return read_offset(db)
    finally:
        db.close()


def rolling_restart(rig: Rig) -> bool:
    """Three engines, each stopped and started again while clicks come; then two leave for good."""
    disks, before = _disks(rig), rig.sent
    engines = [_join(rig, disk) for disk in disks]
    _wait_until_shared(rig, engines)
    with Stream(rig, disks) as stream:
        time.sleep(SETTLE_S)
        stream.longest_pauses()
        for place, disk in enumerate(disks):
            engines[place].stop()
            engines[place] = _join(rig, disk)
            _wait_until_shared(rig, engines)
            time.sleep(SETTLE_S)
            rig.pauses_s += stream.longest_pauses()
    hit = rig.sent - before >= LEAST_CLICKS
    _retire(rig, engines)
    return hit


def scale_up_and_down(rig: Rig) -> bool:
    """One engine, then three, then one again, while clicks come."""
    disks, before = _disks(rig), rig.sent
    engines = [_join(rig, disks[0])]
    _wait_until_shared(rig, engines)
    with Stream(rig, disks) as stream:
        time.sleep(SETTLE_S)
        stream.longest_pauses()
        for disk in disks[1:]:
            engines.append(_join(rig, disk))
            _wait_until_shared(rig, engines)
            time.sleep(SETTLE_S)
            rig.pauses_s += stream.longest_pauses()
        while len(engines) > 1:
            engines.pop().stop()
            _wait_until_shared(rig, engines)
            time.sleep(SETTLE_S)
            rig.pauses_s += stream.longest_pauses()
    hit = rig.sent - before >= LEAST_CLICKS
    _retire(rig, engines)
    return hit


def _disks(rig: Rig) -> list[Settings]:
    """Return the settings of engines that have nothing in common but log, registry and checkpoints."""
    leaving = rig.settings.model_copy(update={"leave_on_stop": True, "registry_url": rig.settings.registry})
    folders = [rig.settings.data_dir / f"worker-{time.time_ns()}-{number}" for number in range(1, WORKERS)]
    for folder in folders:
        folder.mkdir()
    return [leaving, *(leaving.model_copy(update={"data_dir": folder}) for folder in folders)]


def _join(rig: Rig, disk: Settings) -> EngineProcess:
    engine = rig.start(disk)
    wait(lambda: _owned(engine) > 0, engine, what="the engine to get partitions")
    return engine


def _wait_until_shared(rig: Rig, engines: Sequence[EngineProcess]) -> None:
    """Wait until *engines* have all partitions among them, and each has caught up."""
    every = float(rig.settings.clicks_partitions)

    def is_shared() -> bool:
        figures = [engine.figures() for engine in engines]
        owned = [each.get("mindstream_owned_partitions", 0.0) for each in figures]
        return sum(owned) == every and all(owned)

    wait(is_shared, engines[0], what="all partitions to have an owner", every_s=0.1)


def _retire(rig: Rig, engines: Sequence[EngineProcess]) -> None:
    """Have all but the first leave, and the first one do what there is to do."""
    for engine in engines[1:]:
        engine.stop()
    _wait_until_shared(rig, engines[:1])
    rig.drain(engines[0])
    engines[0].stop()


def _owned(engine: EngineProcess) -> float:
    return engine.figures().get("mindstream_owned_partitions", 0.0)


WORKER_FAULTS: dict[str, Callable[[Rig], bool]] = {"rolling-restart": rolling_restart, "scale": scale_up_and_down}
"""Rounds by the name that `--fault` takes."""
