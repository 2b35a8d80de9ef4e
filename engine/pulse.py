"""Pulse: whether this process was frozen so long that its partitions may be another engine's.

A process that is stopped (SIGSTOP, a paused virtual machine) sends no heartbeats; the group gives its partitions away,
and nothing tells it so when it goes on. What it was about to publish is old by then. So the event loop beats all the
time, a gap in the beat that is as long as a session is taken for a lost lease, and the engine ends: started again, it
asks for its partitions like any other. `check` stands right before what others would read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from engine.errors import EngineFrozen

EVERY_S = 0.25
SESSION_SHARE = 0.6
"""Of the session: the group counts from the last heartbeat, which is up to a quarter of a session old."""


class Pulse:
    """The beat of one event loop; to be used on its thread alone."""

    def __init__(self, session_timeout_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_s, self._clock = SESSION_SHARE * session_timeout_s, clock
        self._beat_at = clock()
        self._frozen_s: float | None = None

    def check(self) -> None:
        """Raise EngineFrozen if the last beat is too long ago, or one ever was."""
        gap_s = self._clock() - self._beat_at
        if self._frozen_s is None and gap_s > self._longest_s:
            self._frozen_s = gap_s
        if self._frozen_s is not None:
            raise EngineFrozen(self._frozen_s, longest_s=self._longest_s)

    def beat(self) -> None:
        """Note that the loop goes on; raises as `check` does."""
        self.check()
        self._beat_at = self._clock()

    async def keep(self) -> None:
        """Beat until cancelled.

        Raises:
            EngineFrozen: the loop stood still for too long.
        """
        while True:
            self.beat()
            await asyncio.sleep(EVERY_S)
