"""Faults of the disk: files cut, corrupted or gone, no room, a write that fails, a disk that is read-only at once."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable

from tests.faults.failing_disk import FailingDisk
from tests.faults.rig import EngineProcess, Rig, wait
from tests.faults.small_disk import SmallDisk
from tests.faults.work import ROUND_CLICKS, begin_on_backlog, finish, kill_in_backlog, until


def cut_the_wal(rig: Rig) -> bool:
    """`kill -9`, and the end of a write-ahead log is missing, as after a power cut."""
    hit = kill_in_backlog(rig)
    logs = [path for path in rig.stores(None, "*/*.log") if path.stat().st_size > 100]
    if not logs:
        return False
    path = rig.random.choice(logs)
    size = path.stat().st_size
    with path.open("r+b") as log:
        log.truncate(rig.random.randrange(size // 2, size))
    return hit


def corrupt_a_table(rig: Rig) -> bool:
    """`kill -9`, and a table has other bytes; an engine must notice, and one started after it set the store aside."""
    hit = kill_in_backlog(rig)
    tables = [path for path in rig.stores(None, "*/*.sst") if path.stat().st_size > 1_000]
    if not tables:
        return False
    path = rig.random.choice(tables)
    content = bytearray(path.read_bytes())
    for _ in range(200):
        content[rig.random.randrange(len(content))] ^= 0xFF
    path.write_bytes(bytes(content))
    for _ in range(2):  # the first may open the store, meet the block at work, and end for the second to look for it
        engine = rig.start()
        until(lambda engine=engine: not engine.is_running or _set_aside(rig), within_s=60.0)  # type: ignore[misc]
        if engine.is_running:
            engine.kill()
        if _set_aside(rig):
            break
    noticed = _set_aside(rig)
    shutil.rmtree(rig.settings.data_dir / "engine" / "aside" if noticed else path.parent)
    return hit and noticed


def corrupt_the_manifest(rig: Rig) -> bool:
    """`kill -9`, and a store's MANIFEST or CURRENT has other bytes, is cut, or is gone; then an engine starts on it."""
    hit = kill_in_backlog(rig)
    path = rig.random.choice([*rig.stores(None, "*/MANIFEST-*"), *rig.stores(None, "*/CURRENT")])
    content = bytearray(path.read_bytes())
    match rig.random.choice(["flip", "cut", "delete"]):
        case "flip":
            content[rig.random.randrange(len(content))] ^= 1 << rig.random.randrange(8)
            path.write_bytes(bytes(content))
        case "cut":
            path.write_bytes(bytes(content[: rig.random.randrange(len(content))]))
        case _:
            path.unlink()
    engine = rig.start()
    until(lambda: not engine.is_running or engine.figures().get("mindstream_owned_partitions", 0) > 0, within_s=60.0)
    if engine.is_running:
        rig.drain(engine)
        engine.kill()
    shutil.rmtree(rig.settings.data_dir / "engine" / "aside", ignore_errors=True)
    return hit


def fail_a_write(rig: Rig) -> bool:
    """One write, sync, rename or opening of a file, drawn, fails with EIO or ENOSPC under an engine at work."""
    disk = _failing_disk(rig)
    engine, _ = begin_on_backlog(rig, **disk.environment)
    error = rig.random.choice([errno.EIO, errno.EIO, errno.ENOSPC])
    disk.fail(error, after=int(10 ** rig.random.uniform(0.0, 3.0)))
    until(lambda: disk.failed > 0 or not _goes_on(rig, engine), within_s=60.0)
    hit = disk.failed > 0 and rig.applied() < rig.logged()
    until(lambda: not engine.is_running, within_s=5.0)
    if engine.is_running:  # it was a file that it can do without
        engine.kill()
    else:
        _expect_the_sentence(engine)
    return hit


def make_the_disk_read_only(rig: Rig) -> bool:
    """From one moment on every change of the disk fails with EROFS, as where ext4 remounts itself after an error."""
    disk = _failing_disk(rig)
    engine, _ = begin_on_backlog(rig, **disk.environment)
    disk.fail(errno.EROFS, for_ever=True)
    until(lambda: not _goes_on(rig, engine), within_s=60.0)
    hit = disk.failed > 0 and rig.applied() < rig.logged()
    if engine.is_running:
        raise RuntimeError(f"the engine goes on without a disk: {engine.last_lines()}")
    _expect_the_sentence(engine)
    finish(rig)
    return hit


def _failing_disk(rig: Rig) -> FailingDisk:
    return FailingDisk(rig.settings.data_dir / "engine", build_dir=rig.settings.data_dir / "failing-disk")


def _expect_the_sentence(engine: EngineProcess) -> None:
    if engine.process.returncode == 0 or "can't be written" not in engine.last_lines():
        raise RuntimeError(f"the engine ended with {engine.process.returncode}: {engine.last_lines()}")


def fill_the_disk(rig: Rig) -> bool:
    """The disk of an engine at work is full; it must say so and end, and go on when there is room."""
    rig.send(ROUND_CLICKS)
    with SmallDisk(rig.settings.data_dir / "engine") as disk:
        if not disk.is_mounted:  # not root
            return False
        before = rig.applied()
        engine = rig.start()
        wait(lambda: rig.applied() > before, engine, what="work to begin", every_s=0.002)
        disk.fill()
        until(lambda: not _goes_on(rig, engine), within_s=60.0)
        said = engine.last_lines()
        hit = engine.process.poll() not in (None, 0) and "can't be written" in said and rig.applied() < rig.logged()
        if engine.is_running:
            engine.kill()
        disk.make_room()
        finish(rig)
    return hit


def _goes_on(rig: Rig, engine: EngineProcess) -> bool:
    """Give *engine* more to write, as RocksDB has room of its own for some; return whether it runs."""
    if engine.is_running:
        rig.send(ROUND_CLICKS)
    return engine.is_running


def _set_aside(rig: Rig) -> bool:
    return any((rig.settings.data_dir / "engine" / "aside").glob("*"))


DISK_FAULTS: dict[str, Callable[[Rig], bool]] = {
    "cut-wal": cut_the_wal,
    "corrupt-table": corrupt_a_table,
    "corrupt-manifest": corrupt_the_manifest,
    "full-disk": fill_the_disk,
    "failed-write": fail_a_write,
    "read-only-disk": make_the_disk_read_only,
}
"""Rounds by the name that `--fault` takes."""
