from __future__ import annotations

import asyncio
import time

import pytest

from engine.errors import EngineFrozen
from engine.pulse import Pulse


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_gap_shorter_than_the_session_is_no_freeze() -> None:
    clock = Clock()
    pulse = Pulse(10.0, clock=clock)

    for _ in range(5):
        clock.now_s += 5.9
        pulse.beat()

    pulse.check()


def test_a_process_that_was_frozen_publishes_nothing_more() -> None:
    clock = Clock()
    pulse = Pulse(10.0, clock=clock)
    clock.now_s = 14.0

    with pytest.raises(
        EngineFrozen, match=r"stood still for 14\.0 s, and after 6\.0 s another one may have its partitions"
    ):
        pulse.check()
    clock.now_s = 14.1
    with pytest.raises(EngineFrozen):
        pulse.beat()
    with pytest.raises(EngineFrozen):
        pulse.check()


async def test_a_loop_that_stands_still_ends_the_beat() -> None:
    pulse = Pulse(0.5)
    beating = asyncio.create_task(pulse.keep())
    await asyncio.sleep(0)

    time.sleep(0.5)  # the loop stands still, as in a stopped process

    with pytest.raises(EngineFrozen):
        await beating
