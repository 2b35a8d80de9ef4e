"""An engine at work, for a fault to hit: begun on a backlog, killed in it, or left to finish."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.faults.rig import EngineProcess, Rig, wait

ROUND_CLICKS = 12_000


def begin_on_backlog(rig: Rig, **options: str) -> tuple[EngineProcess, int]:
    """Send clicks, start an engine with *options* in its environment, and return it at work, and where the log ends."""
    rig.send(ROUND_CLICKS)
    before, end = rig.applied(), rig.logged()
    engine = rig.start(environment=options)
    wait(lambda: rig.applied() > before, engine, what="work to begin", every_s=0.002)
    return engine, end


def until(is_true: Callable[[], bool], *, within_s: float) -> None:
    """Wait until *is_true*, or the time is over."""
    deadline = time.monotonic() + within_s
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.05)


def kill_in_backlog(rig: Rig) -> bool:
    """Send clicks, and `kill -9` an engine after a share of them that is drawn; return whether some were left."""
    rig.send(ROUND_CLICKS)
    before, end = rig.applied(), rig.logged()
    goal = before + int((end - before) * rig.random.uniform(0.05, 0.7))
    engine = rig.start()
    wait(lambda: rig.applied() > goal, engine, what="work to begin", every_s=0.002)
    engine.kill()
    return before < rig.applied() < end


def finish(rig: Rig) -> None:
    """Have an engine do all there is to do, and stop it; it leaves a store and a checkpoint of each partition."""
    engine = rig.start()
    rig.drain(engine)
    engine.stop()
