"""The auditor on a real log: good, bad, repeated and late clicks, and what an honest engine would have kept of them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from engine.audit import audit
from engine.errors import LogError, MalformedEvent
from engine.events import ClickEvent, decode_click
from engine.settings import Settings
from engine.streams.topics import create_topics
from engine.window import BehaviorWindow
from tests.conftest import free_port

pytestmark = pytest.mark.kafka

MAX_CLICKS = 5
BAD_VALUES = [b"", b"{", b"[]", b"null", b"\xff", b'{"user_id": 5}', b'{"user_id":"u0","user_id":"u0"}', b"[" * 5_000]


def make_messages(seed: int, count: int) -> list[tuple[bytes | None, bytes | None]]:
    """Return (key, value) pairs: clicks out of order, one in ten sent twice, one in twenty broken, a few tombstones."""
    rng, now_ms = random.Random(seed), int(time.time() * 1000)
    messages: list[tuple[bytes | None, bytes | None]] = []
    for _ in range(count):
        user_id = f"u{rng.randrange(40)}"
        fields: dict[str, Any] = {
            "user_id": user_id,
            "item_id": f"i{rng.randrange(20)}",
            "clicked_at_ms": now_ms - rng.randrange(60) * 1_000,
        }
        if rng.random() < 0.5:
            fields |= {"weight": rng.choice([0.5, 2, 7.25]), "profile": {"country": rng.choice(["FR", "DE"])}}
        if rng.random() < 0.2:
            fields["event_id"] = f"e{rng.randrange(50)}"
        message = user_id.encode(), json.dumps(fields).encode()
        messages += [message, message] if rng.random() < 0.1 else [message]
        if rng.random() < 0.05:
            messages.append((user_id.encode(), rng.choice(BAD_VALUES)))
        if rng.random() < 0.02:
            messages += [(user_id.encode(), None), (b"somebody-else", message[1]), (None, message[1])]
    return messages


class HonestEngine:
    """Folds what the producer sent, with the engine's own decoder and window, and writes the dead letters."""

    def __init__(self, settings: Settings, producer: KafkaProducer) -> None:
        self._settings, self._producer = settings, producer
        self._clicks: dict[str, list[ClickEvent]] = defaultdict(list)
        self._home: dict[str, int] = {}
        self._applied: dict[int, int] = {}

    def send_and_take(self, messages: list[tuple[bytes | None, bytes | None]]) -> None:
        topic = self._settings.topic("clicks")
        sent = [(self._producer.send(topic, value=value, key=key), key, value) for key, value in messages]
        self._producer.flush()
        for future, key, value in sorted(sent, key=lambda one: one[0].get(30).offset):
            place = future.get(30)
            self._applied[place.partition] = max(self._applied.get(place.partition, -1), place.offset)
            if value is not None:
                self._take(place.partition, place.offset, place.timestamp, key, value)
        self._producer.flush()

    def _take(self, partition: int, offset: int, timestamp_ms: int, key: bytes | None, value: bytes) -> None:
        try:
            click = decode_click(
                value, key=key, recorded_at_ms=timestamp_ms, future_tolerance_ms=60_000, max_message_bytes=65_536
            )
        except MalformedEvent as error:
            letter = f"c0ffee:{self._settings.topic('clicks')}:{partition}:{offset}".encode()
            self._producer.send(self._settings.topic("clicks.dead-letters"), value=error.reason.encode(), key=letter)
        else:
            self._clicks[click.user_id].append(click)
            self._home[click.user_id] = partition

    def dump(self) -> list[dict[str, Any]]:
        names = ("item_id", "clicked_at_ms", "event_id", "event_type", "weight")
        return [
            {
                "user_id": user_id,
                "clicks": [
                    {name: getattr(click, name) for name in names}
                    for click in BehaviorWindow.of(clicks, max_clicks=MAX_CLICKS).clicks
                ],
                "partition": self._home[user_id],
                "applied_offset": self._applied[self._home[user_id]],
            }
            for user_id, clicks in self._clicks.items()
        ]


@pytest.fixture
def settings(broker: Settings, tmp_path: Path) -> Settings:
    made = broker.model_copy(
        update={"topic_prefix": f"{tmp_path.name}-", "data_dir": tmp_path, "window_max_clicks": MAX_CLICKS}
    )
    asyncio.run(create_topics(made))
    return made


@pytest.fixture
def engine(settings: Settings) -> HonestEngine:
    producer = KafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, acks="all", max_in_flight_requests_per_connection=1
    )
    engine = HonestEngine(settings, producer)
    engine.send_and_take(make_messages(seed=3, count=1_500))
    producer.close()
    return engine


def test_honest_windows_and_letters_equal_the_log(settings: Settings, engine: HonestEngine):
    report = audit(settings, windows=engine.dump())

    assert report.differences == []
    assert min(report.total(name) for name in ("accepted", "duplicate", "trimmed", "rejected", "tombstone")) > 0
    assert report.letters == report.total("rejected")
    assert sum(sum(counts.values()) for counts in report.offsets.values()) == sum(report.logged.values()) > 1_500


def test_each_planted_bug_is_found_on_the_real_log(settings: Settings, engine: HonestEngine):
    found = []
    for plant in ("drop", "swap", "early"):
        lines = engine.dump()
        full = next(line for line in lines if len(line["clicks"]) == MAX_CLICKS)
        if plant == "drop":
            del full["clicks"][2]
        elif plant == "swap":
            full["clicks"][0], full["clicks"][1] = full["clicks"][1], full["clicks"][0]
        else:
            for line in lines:
                line["applied_offset"] //= 4
        found.append({difference.kind for difference in audit(settings, windows=lines).differences})

    assert found[0] == {"click_missing"}
    assert found[1] == {"order"}
    assert found[2] & {"click_unexpected", "click_different", "click_missing"}


def run_audit(settings: Settings, lines: list[dict[str, Any]], path: Path) -> subprocess.CompletedProcess[str]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "MINDSTREAM_TOPIC_PREFIX": settings.topic_prefix,
        "MINDSTREAM_WINDOW_MAX_CLICKS": str(settings.window_max_clicks),
    }
    return subprocess.run(
        [sys.executable, "-m", "engine.cli", "audit", "--windows", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_command_exits_with_1_and_names_the_difference_but_not_the_user(
    settings: Settings, engine: HonestEngine, tmp_path: Path
):
    lines = engine.dump()
    honest = run_audit(settings, lines, tmp_path / "honest.jsonl")
    gone = lines.pop()

    lossy = run_audit(settings, lines, tmp_path / "lossy.jsonl")

    assert (honest.returncode, lossy.returncode) == (0, 1), honest.stderr + lossy.stderr
    assert "equal to the log" in honest.stdout
    assert "window_missing" in lossy.stdout
    assert f"'{gone['user_id']}'" not in lossy.stdout


def test_empty_log_and_no_windows_are_equal(settings: Settings):
    report = audit(settings, windows=[])

    assert (report.ok, report.users, sum(report.logged.values())) == (True, 0, 0)


def test_topic_that_is_missing_is_named(broker: Settings, tmp_path: Path):
    with pytest.raises(LogError, match="nowhere-clicks does not exist"):
        audit(broker.model_copy(update={"topic_prefix": "nowhere-", "data_dir": tmp_path}), windows=[])


def test_broker_that_is_not_there_is_named_and_ends_the_command_with_1(tmp_path: Path):
    nobody = Settings(kafka_bootstrap_servers=f"127.0.0.1:{free_port()}", data_dir=tmp_path)

    refused = run_audit(nobody, [], tmp_path / "windows.jsonl")

    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("mindstream: topic clicks can't be read")
