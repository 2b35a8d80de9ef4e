"""Erasures: whose clicks, up to which offset, are ignored for ever.

An erasure is a record of the topic `erasures` with the end that the user's partition of `clicks` had when it was asked
for; what the user clicks later counts again. Engines and query services follow the topic whole, read it to its end
before they apply or answer anything, and so neither a replay nor an old store, checkpoint or list brings a user back.
"""

from __future__ import annotations

import asyncio
import bisect
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from engine import metrics
from engine.log import Follower, Message, Publisher, Record, end_offsets, topic_epoch
from engine.log.partitioning import partition_of
from engine.settings import Settings

TOPIC = "erasures"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Erasure:
    """One user's clicks that count no more."""

    user_id: str
    epoch: str
    """The life of `clicks` that the offset is of."""
    partition: int
    offset: int
    """The last offset of that partition whose clicks are ignored; -1 where there was none."""

    def to_message(self, settings: Settings) -> Message:
        """Return the record that says so."""
        content = {
            "user_id": self.user_id,
            "epoch": self.epoch,
            "partition": self.partition,
            "offset": self.offset,
        }
        return Message(settings.topic(TOPIC), json.dumps(content).encode(), self.user_id.encode())


async def erase_user(user_id: str, settings: Settings, send: Callable[[Message], Awaitable[object]]) -> Erasure:
    """Write the erasure of all that *user_id* has clicked so far, and return it once it is acknowledged.

    Args:
        user_id: whom to forget; a user nobody knows is forgotten all the same.
        settings: how to reach the log.
        send: writes the record, and returns after the acknowledgement.

    Raises:
        LogError: the log can't be reached.
    """
    epoch = await topic_epoch(settings, "clicks")
    partition = partition_of(user_id.encode(), epoch.partitions)
    end = (await end_offsets(settings, "clicks"))[partition]
    erasure = Erasure(user_id, epoch.text, partition, end - 1)
    await send(erasure.to_message(settings))
    return erasure


def erase_user_now(user_id: str, settings: Settings) -> Erasure:
    """As `erase_user`, from code that runs no event loop."""

    async def run() -> Erasure:
        publisher = Publisher(settings)
        await publisher.start()
        try:
            return await erase_user(user_id, settings, publisher.send)
        finally:
            await publisher.stop()

    return asyncio.run(run())


class Erasures:
    """Follows `erasures` and answers whose clicks and lists are to be ignored.

    `until` and `hides` may be called from any thread.
    """

    def __init__(self, settings: Settings, epoch: str, on_change: Callable[[], Awaitable[None]] | None = None) -> None:
        """Describe what to follow; nothing is read before `start`.

        Args:
            settings: how to reach the log.
            epoch: the life of `clicks` that an erasure without an epoch speaks of.
            on_change: awaited after records were taken in, before the next are.
        """
        self._epoch, self._on_change = epoch, on_change
        self._follower = Follower(settings, TOPIC, self.apply)
        self._until: dict[str, dict[int, dict[bytes, int]]] = defaultdict(lambda: defaultdict(dict))
        self._places: dict[int, list[tuple[int, str]]] = defaultdict(list)
        """By partition of this epoch, in their order: the place of each erasure on the topic, and whose it is."""

    async def start(self) -> None:
        """Start to follow the topic from its beginning."""
        await self._follower.start()

    async def stop(self) -> None:
        """Stop to follow; what is known stays readable."""
        await self._follower.stop()

    async def wait(self) -> None:
        """Wait for the follower to end and raise what ended it."""
        await self._follower.wait()

    async def wait_until_read(self) -> None:
        """Return once everything is in that the topic held at the start; raise what ends the follower before."""
        ended, read = asyncio.create_task(self.wait()), asyncio.create_task(self.caught_up.wait())
        try:
            await asyncio.wait({ended, read}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await ended
        finally:
            ended.cancel()
            read.cancel()

    @property
    def caught_up(self) -> asyncio.Event:
        """Set once everything is in that the topic held at the start."""
        return self._follower.caught_up

    @property
    def topic_id(self) -> str:
        """The life of the topic `erasures`; empty before the first contact with the broker."""
        return "" if self._follower.epoch is None else self._follower.epoch.topic_id

    def until(self, partition: int) -> Mapping[bytes, int]:
        """Return by user id, UTF-8, the last offset of *partition* that is ignored; of this epoch."""
        return self._until[self._epoch][partition]

    def since(self, partition: int, place: int) -> tuple[dict[str, int], int]:
        """Return the erasures of *partition* that lie behind *place* on the topic, as `until`, and the last's place."""
        places = self._places[partition]
        later = places[bisect.bisect_right(places, place, key=lambda one: one[0]) :]
        of_users = self.until(partition)
        return {user_id: of_users[user_id.encode()] for _, user_id in later}, later[-1][0] if later else place

    def hides(self, user_id: bytes, epoch: bytes, window_offset: int) -> bool:
        """Return whether a list of the user made at *window_offset* of *epoch* shows clicks that were erased."""
        partitions = self._until.get(epoch.decode("ascii", "replace"))
        return partitions is not None and any(window_offset <= each.get(user_id, -1) for each in partitions.values())

    async def apply(self, records: Sequence[Record]) -> None:
        """Take in records of `erasures`; one that can't be read erases nothing and is counted."""
        for record in records:
            erasure = read_erasure(record.value, epoch=self._epoch)
            if erasure is None:
                metrics.ERASURES_REFUSED.inc()
                log.error("erasure_refused", partition=record.partition, offset=record.offset)
                continue
            of_users, user = self._until[erasure.epoch][erasure.partition], erasure.user_id.encode()
            of_users[user] = max(erasure.offset, of_users.get(user, -1))
            if erasure.epoch == self._epoch:
                self._places[erasure.partition].append((record.offset, erasure.user_id))
        if self._on_change is not None:
            await self._on_change()


def read_erasure(value: bytes | None, *, epoch: str) -> Erasure | None:
    """Return what a record's value says, of *epoch* where it names none; None where it is no erasure."""
    try:
        content = json.loads(value or b"")
        found = Erasure(content["user_id"], content.get("epoch", epoch), content["partition"], content["offset"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    numbers = (found.partition, found.offset)
    if not isinstance(found.user_id, str) or not isinstance(found.epoch, str):
        return None
    return found if all(type(number) is int and -1 <= number < 2**63 for number in numbers) else None
