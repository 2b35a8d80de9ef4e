"""Arrivals: a request that waits for a user's next list sleeps until the follower has written it.

Nothing polls: each waiting request holds one future under its user, and the follower completes those of the users whose
lists moved. All on the event loop, where nothing comes between looking at the store and beginning to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from engine.serving import refusals

MAX_WAITING = 1_000
"""So many requests wait at once."""


class Keyed(Protocol):
    """What is read of a record of `recall-lists`."""

    @property
    def key(self) -> bytes | None:
        """The UTF-8 user id."""


class Arrivals:
    """Who waits for which user's list."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}
        self._count = 0

    def tell(self, records: Sequence[Keyed]) -> None:
        """Wake who waits for one of the users whose lists *records* moved forward."""
        if not self._waiting:
            return
        for record in records:
            for future in self._waiting.get(record.key or b"", ()):
                if not future.done():
                    future.set_result(None)

    async def wait(self, user_id: str, is_there: Callable[[], bool], *, wait_ms: int) -> bool:
        """Return whether *is_there*, asked now and after each new list of the user, held within *wait_ms*.

        Raises:
            Refusal: too many wait already.
        """
        if is_there():
            return True
        if wait_ms == 0:
            return False
        if self._count >= MAX_WAITING:
            raise refusals.too_many_waiting(MAX_WAITING)
        self._count += 1
        try:
            async with asyncio.timeout(wait_ms / 1000):
                while not is_there():
                    await self._next(user_id.encode())
            return True
        except TimeoutError:
            return is_there()
        finally:
            self._count -= 1

    async def _next(self, key: bytes) -> None:
        future = asyncio.get_running_loop().create_future()
        futures = self._waiting.setdefault(key, set())
        futures.add(future)
        try:
            await future
        finally:
            futures.discard(future)
            if not futures and self._waiting.get(key) is futures:
                del self._waiting[key]
