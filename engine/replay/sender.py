"""Sending that outlives an outage of the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from engine.errors import LogError
from engine.log import Message, Publisher, topic_epoch, wait_for_broker
from engine.settings import Settings

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
"""Waits between attempts while the broker is away; each is twice the one before."""
MOST_REFUSALS, MOST_REFUSALS_AT_START = 10, 3
"""Failures in a row, with a broker that answers, after which it is no outage but a refusal: no such topic, for one."""
GRACE_S = 5.0
"""How long an attempt under way may go on after the caller asked for the end."""

T = TypeVar("T")
log = structlog.get_logger()


class Sender:
    """A publisher that outlives outages of the broker."""

    def __init__(self, settings: Settings, stop: asyncio.Event) -> None:
        self._settings, self._stop = settings, stop
        self._publisher: Publisher | None = None
        self.outages = 0

    @property
    def stopped(self) -> bool:
        """True once the caller asked for the end."""
        return self._stop.is_set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def epoch(self) -> str:
        """Return the identity of the `clicks` topic, waiting for the broker; empty when stopped before."""
        epoch = await self._insist(lambda: topic_epoch(self._settings, "clicks"), most_refusals=MOST_REFUSALS_AT_START)
        return epoch.text if epoch else ""

    async def send(self, messages: Sequence[Message]) -> bool:
        """Send *messages* and return True when all are acknowledged, False when stopped before that."""
        return await self._insist(lambda: self._send_once(messages)) is not None

    async def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the caller asks for the end."""
        try:
            await asyncio.wait_for(self._stop.wait(), timeout=seconds)
        except TimeoutError:
            return

    async def _insist(
        self, attempt: Callable[[], Coroutine[Any, Any, T]], *, most_refusals: int = MOST_REFUSALS
    ) -> T | None:
        """Return what *attempt* returns, trying until it succeeds; None when stopped before that."""
        wait_s, refusals = FIRST_WAIT_S, 0
        while True:
            try:
                return await self._until_stopped(attempt())
            except LogError as error:
                self.outages += 1
                refusals = refusals + 1 if await self._broker_answers() else 0
                if refusals >= most_refusals:
                    raise
                log.warning("replay_waits_for_broker", problem=str(error), wait_s=wait_s)
            await self._close()
            await self.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            if self.stopped:
                return None

    async def _until_stopped(self, attempt: Coroutine[Any, Any, T]) -> T | None:
        """Await *attempt*, but only a little longer once the caller asked for the end."""
        task, stop = asyncio.ensure_future(attempt), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({task}, timeout=GRACE_S)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stop.cancel()

    async def _broker_answers(self) -> bool:
        try:
            await wait_for_broker(self._settings, 0.0)
        except LogError:
            return False
        return True

    async def _send_once(self, messages: Sequence[Message]) -> bool:
        if self._publisher is None:
            publisher = Publisher(self._settings)
            await publisher.start()
            self._publisher = publisher
        await self._publisher.send_all(messages)
        return True

    async def _close(self) -> None:
        # A failed idempotent producer may refuse everything from then on, so each outage gets a new one.
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            try:
                await publisher.stop()
            except LogError as error:
                log.warning("replay_publisher_not_stopped", problem=str(error))
