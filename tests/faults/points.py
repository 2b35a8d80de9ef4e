"""Named points of the engine's work: an engine started here kills itself with SIGKILL when it gets to one.

    python -m tests.faults.points after_write 3      the third time that a batch is in the store

Nothing of this is in the engine: its functions are wrapped in a process made for the test.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from engine.cli import main
from engine.microbatch import ListMaker
from engine.refresh import RefreshLoop
from engine.store.windows import PartitionStore
from engine.streams.clicks import Ingest
from engine.streams.dead_letters import DeadLetters

POINTS: dict[str, tuple[type, str, bool]] = {
    "before_dead_letters": (DeadLetters, "send", False),
    "after_dead_letters": (DeadLetters, "send", True),
    "before_write": (PartitionStore, "apply", False),
    "after_write": (PartitionStore, "apply", True),
    "before_lists": (ListMaker, "make", False),
    "before_publish": (RefreshLoop, "_publish", False),
    "after_publish": (RefreshLoop, "_publish", True),
    "before_settle": (PartitionStore, "settle", False),
    "after_settle": (PartitionStore, "settle", True),
    "before_positions": (Ingest, "start_positions", True),
}
"""Point: the class and function that it stands before (False) or behind (True)."""


def arm(point: str, times: int) -> None:
    """Have this process killed the *times*-th time that it gets to *point*."""
    owner, name, is_behind = POINTS[point]
    passed = 0

    def pass_by() -> None:
        nonlocal passed
        passed += 1
        if passed >= times:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, wrapped(getattr(owner, name), pass_by, is_behind=is_behind))


def wrapped(function: Callable[..., Any], pass_by: Callable[[], None], *, is_behind: bool) -> Callable[..., Any]:
    """Return *function* with a call of *pass_by* before or behind it."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*arguments: Any, **named: Any) -> Any:
            if not is_behind:
                pass_by()
            answer = await function(*arguments, **named)
            if is_behind:
                pass_by()
            return answer

        return awaited

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        if not is_behind:
            pass_by()
        answer = function(*arguments, **named)
        if is_behind:
            pass_by()
        return answer

    return called


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.argv[1:] = ["engine"]
    main()
