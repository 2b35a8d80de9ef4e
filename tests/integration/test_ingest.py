"""The engine as a process on a real broker: killed at any moment, its windows are those of the log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError

from engine.events import ClickEvent, encode_click
from engine.log import Message, end_offsets
from engine.log.partitioning import partition_of
from engine.settings import Settings
from engine.store.dump import dump_windows
from engine.store.header import stores_dir
from engine.store.rocksdb import open_for_reading
from engine.store.scans import read_offset
from engine.streams.dead_letters import list_dead_letters, redrive
from engine.streams.local_broker import LocalBroker
from engine.streams.topics import create_topics
from engine.window import BehaviorWindow
from tests.conftest import free_port
from tests.faults.rig import send_messages

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

USERS = 300
ROUND_CLICKS = 40_000
KILLS = 3


@dataclass
class Sent:
    """What the log holds, as the test knows it."""

    clicks: dict[str, list[ClickEvent]] = field(default_factory=lambda: defaultdict(list))
    bad: set[tuple[int, int]] = field(default_factory=set)


class EngineProcess:
    """One `mindstream engine` on the settings of the test."""

    def __init__(self, settings: Settings, log_path: Path) -> None:
        environment = os.environ | {
            "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "MINDSTREAM_TOPIC_PREFIX": settings.topic_prefix,
            "MINDSTREAM_DATA_DIR": str(settings.data_dir),
            "MINDSTREAM_ENGINE_METRICS_PORT": "0",
        }
        self.log_path = log_path
        with log_path.open("ab") as output:
            command = [sys.executable, "-m", "engine.cli", "engine"]
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self, number: int = signal.SIGTERM, *, within_s: float = 30.0) -> int:
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(timeout=within_s)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None


@pytest.fixture
def settings(broker: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    name = request.node.name
    prefix = f"{name[5:30]}-{zlib.crc32(name.encode()):08x}-"  # the cases of one test begin alike
    made = broker.model_copy(update={"topic_prefix": prefix, "data_dir": tmp_path})
    asyncio.run(create_topics(made))
    return made


@pytest.fixture
def engines() -> Iterator[list[EngineProcess]]:
    started: list[EngineProcess] = []
    yield started
    for engine in started:
        if engine.is_running:
            engine.kill()


def start(engines: list[EngineProcess], settings: Settings) -> EngineProcess:
    engines.append(EngineProcess(settings, settings.data_dir / "engine.log"))
    return engines[-1]


def send_round(settings: Settings, sent: Sent, rng: random.Random) -> None:
    """Send clicks out of order, some again, some changed under the same identity, and bad messages between them."""
    topic, now_ms = settings.topic("clicks"), time.time_ns() // 1_000_000
    messages, is_bad, clicks = [], [], []
    for _ in range(ROUND_CLICKS):
        if rng.random() < 0.002:
            messages.append(Message(topic, rng.choice([b"}{", b"", b"\xff", b"[]"]), b"u1"))
            is_bad.append(True)
            continue
        click = ClickEvent(
            user_id=f"u{rng.randrange(USERS)}",
            item_id=f"i{rng.randrange(5_000)}",
            clicked_at_ms=now_ms - rng.randrange(3_600_000),
            event_id=rng.choice([None, f"e{rng.randrange(10**9)}"]),
            weight=float(rng.randrange(1, 9)),
        )
        if clicks and rng.random() < 0.05:
            click = rng.choice(clicks)
        clicks.append(click)
        messages.append(Message(topic, encode_click(click), click.user_id.encode()))
        is_bad.append(False)
    for click in clicks:
        sent.clicks[click.user_id].append(click)
    sent.bad |= {place for place, bad in zip(send_messages(settings, messages), is_bad, strict=True) if bad}


def applied(settings: Settings) -> int:
    """Return how many records all stores have applied."""
    total = 0
    for path in stores_dir(settings).glob("*/CURRENT"):
        store = open_for_reading(path.parent)
        total += read_offset(store) + 1
        store.close()
    return total


def logged(settings: Settings) -> int:
    return sum(asyncio.run(end_offsets(settings, "clicks")).values())


def wait_until_applied(settings: Settings, engine: EngineProcess, count: int) -> None:
    deadline = time.monotonic() + 120
    while applied(settings) < count:
        assert engine.is_running, engine.log_path.read_text()[-3_000:]
        assert time.monotonic() < deadline, engine.log_path.read_text()[-3_000:]
        time.sleep(0.005)


def windows_of(settings: Settings) -> dict[str, list[dict[str, object]]]:
    return {window["user_id"]: window["clicks"] for window in dump_windows(settings)}


def expected_windows(sent: Sent, max_clicks: int) -> dict[str, list[dict[str, object]]]:
    names = ("item_id", "clicked_at_ms", "event_id", "event_type", "weight")
    return {
        user: [
            {name: getattr(click, name) for name in names}
            for click in BehaviorWindow.of(clicks, max_clicks=max_clicks).clicks
        ]
        for user, clicks in sent.clicks.items()
    }


def test_an_engine_killed_again_and_again_leaves_the_windows_of_the_log(
    settings: Settings, engines: list[EngineProcess]
) -> None:
    rng, sent = random.Random(20_261_122), Sent()

    for _ in range(KILLS):
        send_round(settings, sent, rng)
        before, end = applied(settings), logged(settings)
        engine = start(engines, settings)
        wait_until_applied(settings, engine, before + int((end - before) * rng.uniform(0.1, 0.6)))
        engine.kill()
        assert before < applied(settings) < end, "the kill must hit an engine at work"

    engine = start(engines, settings)
    wait_until_applied(settings, engine, logged(settings))
    assert engine.stop() == 0

    assert windows_of(settings) == expected_windows(sent, settings.window_max_clicks)
    letters = list(list_dead_letters(settings, limit=10**6))
    assert len(letters) == len(sent.bad)
    assert {(letter["partition"], letter["offset"]) for letter in letters} == sent.bad


def test_two_engines_share_the_partitions_and_one_takes_over_from_the_other(
    settings: Settings, engines: list[EngineProcess], tmp_path: Path
) -> None:
    rng, sent = random.Random(7), Sent()
    first = start(engines, settings)
    wait_for_line(first, "partitions_assigned")
    other_settings = settings.model_copy(update={"data_dir": tmp_path / "other"})
    other_settings.data_dir.mkdir()
    other = start(engines, other_settings)
    wait_for_line(other, "partitions_assigned")

    send_round(settings, sent, rng)
    deadline = time.monotonic() + 120
    while not is_complete(expected_windows(sent, 50), windows_of(settings), windows_of(other_settings)):
        assert first.is_running
        assert other.is_running
        assert time.monotonic() < deadline, other.log_path.read_text()[-3_000:]
        time.sleep(0.2)
    other.kill()
    send_round(settings, sent, rng)
    wait_until_applied(settings, first, logged(settings))

    assert first.stop() == 0
    assert windows_of(settings) == expected_windows(sent, settings.window_max_clicks)


def wait_for_line(engine: EngineProcess, word: str) -> None:
    deadline = time.monotonic() + 120
    while word not in engine.log_path.read_text():
        assert engine.is_running, engine.log_path.read_text()[-3_000:]
        assert time.monotonic() < deadline, engine.log_path.read_text()[-3_000:]
        time.sleep(0.1)


def is_complete(expected: dict[str, object], *parts: dict[str, object]) -> bool:
    """Tell whether every user's window is whole in one of the engines' stores."""
    return all(any(part.get(user) == window for part in parts) for user, window in expected.items())


def test_a_redriven_dead_letter_becomes_a_click_and_leaves_the_list(
    settings: Settings, engines: list[EngineProcess]
) -> None:
    topic, now_ms = settings.topic("clicks"), time.time_ns() // 1_000_000
    good = ClickEvent(user_id="u1", item_id="i1", clicked_at_ms=now_ms)
    send_messages(
        settings,
        [Message(topic, encode_click(good), b"u1"), Message(topic, b"}{", b"u2"), Message(topic, b"x" * 70_000, b"u3")],
    )
    early = ClickEvent(user_id="u4", item_id="i4", clicked_at_ms=now_ms + 70_000)
    send_messages(settings, [Message(topic, encode_click(early), b"u4")])
    engine = start(engines, settings)
    wait_until_applied(settings, engine, 4)
    assert {letter["reason"] for letter in list_dead_letters(settings)} == {"json", "size", "future"}

    time.sleep(max(0.0, now_ms + 70_000 - 60_000 - time.time_ns() // 1_000_000) / 1_000)
    report = redrive(settings, reason="future")
    nothing = redrive(settings, reason="size")
    wait_until_applied(settings, engine, 5)

    assert (report.sent, report.incomplete) == (1, 0)
    assert (nothing.sent, nothing.incomplete) == (0, 1)
    assert [click["item_id"] for click in windows_of(settings)["u4"]] == ["i4"]
    assert {letter["reason"] for letter in list_dead_letters(settings)} == {"json", "size"}
    assert engine.stop(signal.SIGINT) == 0


def test_an_engine_whose_store_is_of_another_topic_stops_with_a_named_error(
    settings: Settings, engines: list[EngineProcess]
) -> None:
    first = start(engines, settings)
    wait_for_line(first, "partitions_assigned")
    assert first.stop() == 0
    other = settings.model_copy(update={"window_max_clicks": 20})
    environment = os.environ | {"MINDSTREAM_WINDOW_MAX_CLICKS": "20"}
    os.environ.update(environment)
    try:
        second = start(engines, other)
    finally:
        del os.environ["MINDSTREAM_WINDOW_MAX_CLICKS"]

    assert second._process.wait(timeout=120) == 1
    assert "has max_clicks 50, this process expects 20" in second.log_path.read_text()


def test_an_engine_lives_through_a_restart_of_the_broker(tmp_path: Path, engines: list[EngineProcess]) -> None:
    alone = Settings(data_dir=tmp_path / "alone", broker_port=free_port(2), broker_heap_mb=384)
    node = LocalBroker(alone)
    node.start()
    try:
        settings = alone.model_copy(update={"kafka_bootstrap_servers": node.bootstrap_servers})
        asyncio.run(create_topics(settings))
        rng, sent = random.Random(3), Sent()
        engine = start(engines, settings)
        send_round(settings, sent, rng)
        wait_until_applied(settings, engine, logged(settings) // 2)
        node.stop()
        time.sleep(12)  # longer than the session timeout: the group has to be joined anew
        node.start()
        send_round(settings, sent, rng)

        wait_until_applied(settings, engine, logged(settings))
        assert windows_of(settings) == expected_windows(sent, settings.window_max_clicks)
        assert engine.stop() == 0
    finally:
        node.stop()


@pytest.mark.parametrize("committed", ["far ahead", "at the start"])
def test_where_to_read_from_is_said_by_the_stores_and_not_by_committed_offsets(
    settings: Settings, engines: list[EngineProcess], committed: str
) -> None:
    rng, sent = random.Random(11), Sent()
    send_round(settings, sent, rng)
    if committed == "far ahead":  # of stores that hold nothing
        commit_offsets(settings, asyncio.run(end_offsets(settings, "clicks")))
    else:  # behind stores that hold everything
        first = start(engines, settings)
        wait_until_applied(settings, first, logged(settings))
        assert first.stop() == 0
        commit_offsets(settings, dict.fromkeys(range(settings.clicks_partitions), 0))
    before = applied(settings)
    send_round(settings, sent, rng)

    engine = start(engines, settings)
    wait_until_applied(settings, engine, logged(settings))
    assert engine.stop() == 0

    assert before == (0 if committed == "far ahead" else ROUND_CLICKS)
    assert windows_of(settings) == expected_windows(sent, settings.window_max_clicks)
    letters = [(letter["partition"], letter["offset"]) for letter in list_dead_letters(settings, limit=10**6)]
    assert sorted(letters) == sorted(sent.bad)  # a record that is read again would leave a second letter


def commit_offsets(settings: Settings, offsets: dict[int, int]) -> None:
    """Commit *offsets* of `clicks` for the engines' group, once it has no members."""

    async def commit() -> None:
        options = settings.kafka_client_options()
        consumer = AIOKafkaConsumer(**options, group_id=settings.consumer_group, enable_auto_commit=False)
        topic = settings.topic("clicks")
        consumer.assign([TopicPartition(topic, partition) for partition in offsets])
        await consumer.start()
        try:
            async with asyncio.timeout(60):
                while True:
                    with contextlib.suppress(CommitFailedError):  # members that are gone have a session yet
                        return await consumer.commit({TopicPartition(topic, each): at for each, at in offsets.items()})
                    await asyncio.sleep(1)
        finally:
            await consumer.stop()

    asyncio.run(commit())


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_transactions_are_read_as_committed_and_their_markers_hold_nothing_up(
    settings: Settings, engines: list[EngineProcess], compression: str | None
) -> None:
    now_ms = time.time_ns() // 1_000_000
    clicks = [
        ClickEvent(user_id=f"u{number % 40}", item_id=f"i{number}", clicked_at_ms=now_ms - number)
        for number in range(400)
    ]
    committed, aborted = clicks[::2], clicks[1::2]
    asyncio.run(send_in_transactions(settings, committed, aborted, compression))

    engine = start(engines, settings)
    for partition in range(settings.clicks_partitions):  # each ends with the marker of an aborted transaction
        wait_for_line(engine, f"event='partition_caught_up' partition={partition} ")
    assert engine.stop() == 0

    sent = Sent()
    for click in committed:
        sent.clicks[click.user_id].append(click)
    assert windows_of(settings) == expected_windows(sent, settings.window_max_clicks)
    assert list(list_dead_letters(settings)) == []


async def send_in_transactions(
    settings: Settings, committed: list[ClickEvent], aborted: list[ClickEvent], compression: str | None
) -> None:
    """Send transactions of ten clicks, by turns one that is committed and one that is aborted."""
    producer = AIOKafkaProducer(
        **settings.kafka_client_options(), transactional_id=settings.topic_prefix, compression_type=compression
    )
    await producer.start()
    topic = settings.topic("clicks")
    for start_at in range(0, len(committed), 10):
        for clicks, is_kept in ((committed, True), (aborted, False)):
            await producer.begin_transaction()
            for click in clicks[start_at : start_at + 10]:
                key = click.user_id.encode()
                partition = partition_of(key, settings.clicks_partitions)
                await producer.send_and_wait(topic, encode_click(click), key=key, partition=partition)
            await (producer.commit_transaction() if is_kept else producer.abort_transaction())
    await producer.stop()
