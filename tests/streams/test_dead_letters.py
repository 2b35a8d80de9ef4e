from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from engine.errors import LogError, MalformedEvent
from engine.log import Follower, Message, Publisher, Record
from engine.settings import Settings
from engine.streams.dead_letters import (
    KEPT_BYTES,
    WHOLE_BYTES,
    DeadLetters,
    Rejected,
    _read_to_end,
    list_dead_letters,
    redrive,
)
from engine.streams.topics import create_topics
from tests.streams.intake import MemoryLog, RecordOf

ERROR = MalformedEvent("json", "the value is not JSON at character 0")


async def written(settings: Settings, record: RecordOf) -> tuple[Message, dict[str, object]]:
    log = MemoryLog(settings)
    await DeadLetters(settings, log, "e1").send([Rejected(record, 3, ERROR)])
    return log.sent[0], log.letters[0]


async def test_a_letter_says_what_came_from_where_and_why() -> None:
    message, letter = await written(Settings(topic_prefix="p-"), RecordOf(17, b"}{", b"u1", 5))

    assert (message.topic, message.key) == ("p-clicks.dead-letters", b"e1:p-clicks:3:17")
    assert letter == {
        "reason": "json",
        "detail": "the value is not JSON at character 0",
        "topic": "p-clicks",
        "partition": 3,
        "offset": 17,
        "recorded_at_ms": 5,
        "key": base64.b64encode(b"u1").decode(),
        "value": base64.b64encode(b"}{").decode(),
    }


async def test_a_letter_of_a_record_without_a_key_has_none() -> None:
    _, letter = await written(Settings(), RecordOf(0, b"", None))

    assert letter["key"] is None
    assert letter["value"] == ""


@pytest.mark.parametrize("field", ["key", "value"])
async def test_a_long_record_is_kept_as_its_beginning_and_a_hash(field: str) -> None:
    content = bytes(range(256)) * 400
    record = RecordOf(0, content if field == "value" else b"v", content if field == "key" else b"k")

    message, letter = await written(Settings(), record)

    assert base64.b64decode(str(letter[field])) == content[:KEPT_BYTES]
    assert letter[f"{field}_sha256"] == hashlib.sha256(content).hexdigest()
    assert letter[f"{field}_bytes"] == len(content)
    assert len(message.value or b"") < WHOLE_BYTES


async def test_the_longest_whole_record_fits_the_topic() -> None:
    message, _ = await written(Settings(), RecordOf(0, b"v" * WHOLE_BYTES, b"k" * WHOLE_BYTES))

    assert len(message.value or b"") < 1_000_000


class SilentFollower(Follower):
    """Reads so many records, one every 20 ms, and then nothing more."""

    def __init__(self, records: int, end: int) -> None:
        super().__init__(Settings(), "clicks.dead-letters", self._ignore)
        self._records, self._end = records, end

    async def _ignore(self, _records: Sequence[Record]) -> None:
        raise AssertionError

    async def _run(self) -> None:
        for offset in range(self._records):
            await asyncio.sleep(0.02)
            self._next[0] = offset + 1
        if self._records == self._end:
            self.caught_up.set()
        await asyncio.Event().wait()


async def test_a_broker_that_falls_silent_is_not_waited_for_for_ever() -> None:
    follower = SilentFollower(records=3, end=10)
    await follower.start()

    with pytest.raises(LogError, match=r"clicks\.dead-letters gave nothing to read for 0\.1 s; check that the broker"):
        async with asyncio.timeout(5):
            await _read_to_end(follower, "clicks.dead-letters", silence_s=0.1)
    await follower.stop()


async def test_a_long_topic_is_read_to_its_end_however_long_that_takes() -> None:
    follower = SilentFollower(records=20, end=20)
    await follower.start()

    await _read_to_end(follower, "clicks.dead-letters", silence_s=0.1)

    assert follower.positions() == {0: 20}
    await follower.stop()


@pytest.fixture
def settings(broker: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    made = broker.model_copy(update={"topic_prefix": f"{request.node.name[5:30]}-", "data_dir": tmp_path})
    asyncio.run(create_topics(made))
    return made


def write(settings: Settings, *rejected: Rejected) -> None:
    async def run() -> None:
        publisher = Publisher(settings)
        try:
            await DeadLetters(settings, publisher, "e1").send(rejected)
        finally:
            await publisher.stop()

    asyncio.run(run())


@pytest.mark.kafka
def test_the_newest_letters_are_listed_each_once(settings: Settings) -> None:
    letters = [Rejected(RecordOf(offset, b"}{", timestamp=offset), 0, ERROR) for offset in range(250)]
    write(settings, *letters)
    write(settings, *letters[:20])  # a crash between letters and batch

    assert [letter["offset"] for letter in list_dead_letters(settings, limit=1_000)] == list(range(250))
    assert [letter["offset"] for letter in list_dead_letters(settings, limit=2)] == [248, 249]


@pytest.mark.kafka
@pytest.mark.parametrize("command", [list_dead_letters, redrive])
def test_a_missing_topic_is_named(broker: Settings, command: Callable[[Settings], object]) -> None:
    settings = broker.model_copy(update={"topic_prefix": "nowhere-"})

    with pytest.raises(LogError, match=r"nowhere-clicks\.dead-letters does not exist; `mindstream topics create`"):
        list(command(settings))  # type: ignore[call-overload]


@pytest.mark.kafka
def test_a_redrive_sends_the_original_back_and_takes_the_letter_off(settings: Settings) -> None:
    other = MalformedEvent("future", "too early")
    write(
        settings,
        Rejected(RecordOf(0, b"first", b"u1"), 0, other),
        Rejected(RecordOf(1, b"second", b"u2"), 0, ERROR),
        Rejected(RecordOf(2, b"x" * 100_000, b"u3"), 0, other),
    )

    report = redrive(settings, reason="future")

    assert (report.sent, report.incomplete) == (1, 1)
    assert sorted(letter["offset"] for letter in list_dead_letters(settings)) == [1, 2]
    assert clicks_of(settings) == [(b"u1", b"first")]


def clicks_of(settings: Settings) -> list[tuple[bytes | None, bytes | None]]:
    async def run() -> list[tuple[bytes | None, bytes | None]]:
        found: list[tuple[bytes | None, bytes | None]] = []

        async def apply(records: Sequence[Record]) -> None:
            found.extend((record.key, record.value) for record in records)

        follower = Follower(settings, "clicks", apply)
        await follower.start()
        await follower.caught_up.wait()
        await follower.stop()
        return found

    return asyncio.run(run())
