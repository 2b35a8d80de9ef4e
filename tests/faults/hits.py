"""The faults: each hits an engine once, and says whether it was hit at work.

A hit that found nothing under way proves nothing; it is counted as invalid, not as passed.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.broker_hits import BROKER_FAULTS
from tests.faults.disk_hits import DISK_FAULTS
from tests.faults.points import POINTS
from tests.faults.rig import EngineProcess, Rig, wait
from tests.faults.work import ROUND_CLICKS, finish, kill_in_backlog, until
from tests.faults.workers import WORKER_FAULTS

Hit = Callable[[Rig], bool]
"""Does the harm; returns whether it hit the engine at work."""


def kill_at_random(rig: Rig) -> bool:
    """`kill -9` of an engine with a backlog, after a share of it that is drawn."""
    return kill_in_backlog(rig)


def kill_at(point: str) -> Hit:
    """`kill -9` at a named point of the engine's work."""

    def hit(rig: Rig) -> bool:
        rig.send(ROUND_CLICKS)
        before = rig.applied()
        engine = rig.start(point=point, times=1 if point == "before_positions" else rig.random.randrange(1, 4))
        until(lambda: not engine.is_running, within_s=60.0)
        died = not engine.is_running and engine.process.returncode == -signal.SIGKILL
        if engine.is_running:
            engine.kill()
        # Behind the writes there may be no backlog any more: then the work was the refresh, and the point proves it.
        return died and (rig.applied() < rig.logged() or "dead" not in point) and before < rig.logged()

    return hit


def wipe_the_disk(rig: Rig) -> bool:
    """`kill -9`, and everything that the engine had on disk is gone, and so are its checkpoints."""
    hit = kill_in_backlog(rig)
    shutil.rmtree(rig.settings.data_dir / "engine")
    shutil.rmtree(rig.settings.data_dir / "checkpoints", ignore_errors=True)
    return hit


def wipe_the_disk_beside_checkpoints(rig: Rig) -> bool:
    """`kill -9`, and everything that the engine had on disk is gone; the next one must begin at its checkpoints."""
    if not rig.checkpoints():
        finish(rig)
    hit = kill_in_backlog(rig)
    shutil.rmtree(rig.settings.data_dir / "engine")
    engine = rig.start()
    wait(lambda: _opened(engine, "checkpoint") > 0, engine, what="a checkpoint to be taken as base")
    engine.kill()
    return hit


def bring_back_an_old_disk(rig: Rig) -> bool:
    """`kill -9`, and the disk is the one of an earlier day; half the time its checkpoints are gone too."""
    disk, old = rig.settings.data_dir / "engine", rig.settings.data_dir / "old"
    if not disk.exists():
        finish(rig)
    shutil.copytree(disk, old)
    before = rig.applied()
    hit = kill_in_backlog(rig)
    shutil.rmtree(disk)
    old.rename(disk)
    if rig.random.random() < 0.5:
        shutil.rmtree(rig.settings.data_dir / "checkpoints", ignore_errors=True)
    return hit and before == rig.applied()


def erase_under_work(rig: Rig) -> bool:
    """Users are erased while an engine works, which is killed; half the time its disk is then an older one."""
    rig.send(ROUND_CLICKS)
    disk, old = rig.settings.data_dir / "engine", rig.settings.data_dir / "old"
    is_old = disk.exists() and rig.random.random() < 0.5
    if is_old:
        shutil.copytree(disk, old)
    before, end = rig.applied(), rig.logged()
    rig.erase(5)
    engine = rig.start()
    wait(lambda: rig.applied() > before, engine, what="work to begin", every_s=0.002)
    hit = before < rig.applied() < end
    rig.erase(10)
    rig.send(ROUND_CLICKS // 4)
    rig.erase(5)
    time.sleep(rig.random.uniform(0.0, 1.0))
    erased = engine.figures().get("mindstream_users_erased_total", 0.0)
    engine.kill()
    if is_old:
        shutil.rmtree(disk)
        old.rename(disk)
    return hit and erased > 0


def freeze_until_another_took_over(rig: Rig) -> bool:
    """SIGSTOP for longer than the session lasts; another engine takes over; SIGCONT: the old one is a zombie."""
    rig.send(ROUND_CLICKS)
    before = rig.applied()
    old = rig.start()
    wait(lambda: rig.applied() > before, old, what="work to begin", every_s=0.002)
    old.signal(signal.SIGSTOP)
    hit = before < rig.applied() < rig.logged()
    other = rig.settings.model_copy(update={"data_dir": rig.settings.data_dir / f"other-{time.time_ns()}"})
    other.data_dir.mkdir()
    other = other.model_copy(update={"registry_url": rig.settings.registry})
    new = rig.start(other)
    partitions = float(rig.settings.clicks_partitions)
    wait(lambda: new.figures().get("mindstream_owned_partitions", 0) == partitions, new, what="the other to take over")
    wait(lambda: rig.applied(other) == rig.logged(), new, what="the other to read the log")
    old.signal(signal.SIGCONT)
    rig.send(ROUND_CLICKS // 4)
    time.sleep(3.0)
    stop_or_kill(old)
    wait(lambda: rig.applied(other) == rig.logged(), new, what="the other to go on alone")
    stop_or_kill(new)
    _adopt(rig, other.data_dir)
    return hit


def storm_of_rebalances(rig: Rig) -> bool:
    """Another engine, with a disk of its own, joins three times in mid-work, and leaves politely or by `kill -9`."""
    rig.send(ROUND_CLICKS)
    before = rig.applied()
    first = rig.start()
    wait(lambda: rig.applied() > before, first, what="work to begin", every_s=0.002)
    hits = [_receive_a_guest(rig) for _ in range(3)]
    partitions = float(rig.settings.clicks_partitions)
    wait(lambda: first.figures().get("mindstream_owned_partitions", 0) == partitions, first, what="all to come back")
    stop_or_kill(first)
    return any(hits)


def _receive_a_guest(rig: Rig) -> bool:
    """Let another engine join and leave; return whether there was work when it came."""
    had_work = rig.applied() < rig.logged()
    folder = rig.settings.data_dir / f"guest-{time.time_ns()}"
    folder.mkdir()
    guest = rig.start(rig.settings.model_copy(update={"data_dir": folder, "registry_url": rig.settings.registry}))
    rig.send(ROUND_CLICKS)
    wait(lambda: guest.figures().get("mindstream_owned_partitions", 0) > 0, guest, what="the guest to join")
    time.sleep(rig.random.uniform(0.0, 2.0))
    if rig.random.random() < 0.5:
        guest.kill()
    else:
        guest.stop()
    rig.send(ROUND_CLICKS)
    return had_work


def stop_or_kill(engine: EngineProcess) -> None:
    """End *engine*, politely if it still listens."""
    if engine.is_running:
        engine.stop()


def _adopt(rig: Rig, folder: Path) -> None:
    """Let the stores of the engine that was right be those of the next rounds."""
    shutil.rmtree(rig.settings.data_dir / "engine")
    shutil.move(folder / "engine", rig.settings.data_dir / "engine")


def _opened(engine: EngineProcess, base: str) -> float:
    return engine.figures().get(f'mindstream_stores_opened_total{{base="{base}"}}', 0.0)


FAULTS: dict[str, Hit] = {
    "kill": kill_at_random,
    **{f"kill-{point.replace('_', '-')}": kill_at(point) for point in POINTS},
    "wiped-disk": wipe_the_disk,
    "wiped-disk-checkpoints": wipe_the_disk_beside_checkpoints,
    "old-disk": bring_back_an_old_disk,
    "erasures": erase_under_work,
    "rebalances": storm_of_rebalances,
    "zombie": freeze_until_another_took_over,
    **DISK_FAULTS,
    **BROKER_FAULTS,
    **WORKER_FAULTS,
}
"""Every fault by the name that `--fault` takes."""
