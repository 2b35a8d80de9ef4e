"""Dead letters: what could not be taken from `clicks`, why, and the way back.

A letter is written, and acknowledged, before the micro-batch that it came with. A crash in between writes it again
under the same key, `epoch:topic:partition:offset`, so by key there is exactly one. docs/events.md has the format.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from engine.errors import LogError, MalformedEvent
from engine.log import Follower, Message, Publisher, Record, topic_epoch, wait_for_broker
from engine.settings import Settings
from engine.streams.batches import KafkaRecord

TOPIC = "clicks.dead-letters"
WHOLE_BYTES = 64 * 1024
"""Longer keys and values are kept as their beginning and a hash, so that a letter always fits the topic."""
KEPT_BYTES = 4 * 1024
SEND_AT_ONCE = 100
BACK_OFF_S = (0.2, 10.0)
BROKER_WITHIN_S = 10.0
SILENCE_S = 30.0
"""A broker that gives a reader nothing more for so long is not waited for any longer."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record of `clicks` that can't be taken."""

    record: KafkaRecord
    partition: int
    error: MalformedEvent


@dataclass(frozen=True, slots=True)
class RedriveReport:
    """What a redrive did: letters sent back, and letters left because they hold only a beginning."""

    sent: int
    incomplete: int


class DeadLetters:
    """Writes dead letters."""

    def __init__(self, settings: Settings, publisher: Publisher, epoch: str) -> None:
        self._topic, self._clicks = settings.topic(TOPIC), settings.topic("clicks")
        self._settings, self._publisher, self._epoch = settings, publisher, epoch

    async def send(self, rejected: Sequence[Rejected]) -> None:
        """Write *rejected* and return once they are acknowledged, however long that takes: nothing is ever dropped."""
        letters = [self._letter(one) for one in rejected]
        for start in range(0, len(letters), SEND_AT_ONCE):
            await self._send_surely(letters[start : start + SEND_AT_ONCE])

    async def take_off(self, until: Mapping[str, int], partition: int) -> int:
        """Take the letters off whose messages are of erased users, and return how many there were.

        Args:
            until: by user id, the last offset of *partition* that is erased.
            partition: of `clicks`.

        Raises:
            LogError: the letters can't be read.
        """

        def is_erased(letter: Mapping[str, Any]) -> bool:
            place = letter.get("topic"), letter.get("partition")
            return place == (self._clicks, partition) and letter["offset"] <= until.get(_user_of(letter), -1)

        of_epoch = f"{self._epoch}:".encode()
        letters = await _read_all(self._settings)
        doomed = [key for key, letter in letters.items() if key.startswith(of_epoch) and is_erased(letter)]
        for start in range(0, len(doomed), SEND_AT_ONCE):
            await self._send_surely([Message(self._topic, None, key) for key in doomed[start : start + SEND_AT_ONCE]])
        return len(doomed)

    async def _send_surely(self, letters: Sequence[Message]) -> None:
        pause_s, longest_s = BACK_OFF_S
        while True:
            try:
                await self._publisher.send_all(letters)
            except LogError as error:
                log.warning("dead_letters_not_sent", letters=len(letters), error=str(error), again_in_s=pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_s)
            else:
                return

    def _letter(self, rejected: Rejected) -> Message:
        record, partition = rejected.record, rejected.partition
        content = {
            "reason": rejected.error.reason,
            "detail": rejected.error.detail,
            "topic": self._clicks,
            "partition": partition,
            "offset": record.offset,
            "recorded_at_ms": record.timestamp,
            **_packed("key", record.key),
            **_packed("value", record.value),
        }
        key = f"{self._epoch}:{self._clicks}:{partition}:{record.offset}"
        return Message(self._topic, json.dumps(content).encode(), key.encode())


def _packed(name: str, content: bytes | None) -> dict[str, Any]:
    """Return *content* as fields of a letter: base64, whole or its beginning with hash and length."""
    if content is None:
        return {name: None}
    if len(content) <= WHOLE_BYTES:
        return {name: base64.b64encode(content).decode()}
    return {
        name: base64.b64encode(content[:KEPT_BYTES]).decode(),
        f"{name}_sha256": hashlib.sha256(content).hexdigest(),
        f"{name}_bytes": len(content),
    }


def _original(settings: Settings, letter: dict[str, Any]) -> Message:
    return Message(settings.topic("clicks"), _unpacked(letter, "value"), _unpacked(letter, "key"))


def _unpacked(letter: Mapping[str, Any], name: str) -> bytes | None:
    content: str | None = letter[name]
    return None if content is None else base64.b64decode(content)


def _read_letter(value: bytes | None) -> dict[str, Any] | None:
    """Return the letter; None where it was taken off, or where something else was written to the topic."""
    try:
        letter = json.loads(value or b"")
        if type(letter["offset"]) is int and {"reason", "topic", "partition", "recorded_at_ms", "key"} <= letter.keys():
            return dict(letter)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


def _user_of(letter: Mapping[str, Any]) -> str:
    """Return whose message it was: its key says so, and where it has none perhaps the value."""
    key = _unpacked(letter, "key")
    if key is not None:
        return key.decode(errors="replace")
    try:
        return str(json.loads(_unpacked(letter, "value") or b"")["user_id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def list_dead_letters(settings: Settings, limit: int = 100) -> Iterator[dict[str, Any]]:
    """Yield the newest *limit* dead letters, the oldest of them first.

    Raises:
        LogError: the broker can't be reached, or has no such topic.
    """
    letters = asyncio.run(_read_all(settings))
    yield from sorted(letters.values(), key=lambda letter: int(letter["recorded_at_ms"]))[-limit:]


def redrive(
    settings: Settings, *, reason: str | None = None, accept: Callable[[dict[str, Any]], bool] | None = None
) -> RedriveReport:
    """Send dead letters back to `clicks` as they first came, and take each off once that is acknowledged.

    A letter that is refused again comes back under a new key.

    Args:
        settings: how to reach the log.
        reason: only letters with this reason.
        accept: only letters for which this is true.

    Raises:
        LogError: the log can't be reached; letters not yet sent stay where they are.
    """
    return asyncio.run(_redrive(settings, reason, accept or (lambda _letter: True)))


async def _redrive(settings: Settings, reason: str | None, accept: Callable[[dict[str, Any]], bool]) -> RedriveReport:
    letters = await _read_all(settings)
    chosen = {key: one for key, one in letters.items() if reason in (None, one["reason"]) and accept(one)}
    whole = {key: one for key, one in chosen.items() if "value_sha256" not in one and "key_sha256" not in one}
    publisher = Publisher(settings)
    await publisher.start()
    try:
        keys = list(whole)
        for start in range(0, len(keys), SEND_AT_ONCE):
            some = keys[start : start + SEND_AT_ONCE]
            await publisher.send_all([_original(settings, whole[key]) for key in some])
            await publisher.send_all([Message(settings.topic(TOPIC), None, key) for key in some])
    finally:
        await publisher.stop()
    return RedriveReport(sent=len(whole), incomplete=len(chosen) - len(whole))


async def _read_all(settings: Settings) -> dict[bytes, dict[str, Any]]:
    """Return every letter that is not taken off, by key."""
    letters: dict[bytes, dict[str, Any]] = {}

    async def apply(records: Sequence[Record]) -> None:
        for record in records:
            if record.key is None:
                continue
            letters.pop(record.key, None)
            letter = _read_letter(record.value)
            if letter is not None:
                letters[record.key] = letter

    await wait_for_broker(settings, BROKER_WITHIN_S)
    await topic_epoch(settings, TOPIC)  # a follower would wait for a missing topic
    follower = Follower(settings, TOPIC, apply)
    await follower.start()
    try:
        await _read_to_end(follower, settings.topic(TOPIC), silence_s=SILENCE_S)
    finally:
        await follower.stop()
    return letters


async def _read_to_end(follower: Follower, topic: str, *, silence_s: float) -> None:
    """Return once *follower* has caught up.

    Raises:
        LogError: it ended, or it stood still for *silence_s*.
    """
    waiting = {asyncio.create_task(follower.wait()), asyncio.create_task(follower.caught_up.wait())}
    try:
        done: set[asyncio.Task[Any]] = set()
        while not done:
            before = follower.positions()
            done, _ = await asyncio.wait(waiting, timeout=silence_s, return_when=asyncio.FIRST_COMPLETED)
            if not done and follower.positions() == before:
                raise LogError(
                    topic,
                    problem=f"gave nothing to read for {silence_s:g} s",
                    remedy="check that the broker runs (`mindstream doctor`) and try again",
                )
        for task in done:
            await task
    finally:
        for task in waiting:
            task.cancel()
