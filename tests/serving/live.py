"""A real query service on a real broker: `mindstream serve` in a process of its own, fed by the test."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from engine.events import ItemEvent, encode_item
from engine.log import Message, Position, Publisher, end_offsets
from engine.model.registry import Registry
from engine.recall import RecallList, encode_list
from engine.serving.service import wall_ms
from engine.settings import Settings
from engine.streams.topics import create_topics
from tests.served import make_parts
from tests.serving.parts import list_headers

METRICS = {
    "recall_at_50": 0.1432,
    "standard_error": 0.0031,
    "popular_recall_at_50": 0.0518,
    "itemcf_recall_at_50": 0.1107,
}


@dataclass
class LiveService:
    """A running `mindstream serve`, its settings, and how to feed it."""

    settings: Settings
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.settings.serve_port}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=10)

    def publish(self, messages: Sequence[Message]) -> list[Position]:
        return asyncio.run(publish(self.settings, messages))

    def publish_list(self, recall_list: RecallList, *, partition: int | None = None) -> None:
        self.publish([list_message(self.settings, recall_list, partition=partition)])

    def publish_items(self, items: Sequence[ItemEvent]) -> None:
        topic = self.settings.topic("items")
        self.publish([Message(topic, encode_item(item), item.item_id.encode()) for item in items])

    def clicks_logged(self) -> int:
        return sum(asyncio.run(end_offsets(self.settings, "clicks")).values())

    def wait_until(self, is_true: Callable[[], bool], *, what: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_true():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"not in time: {what}\n{self.log_path.read_text()[-3000:]}")
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            return self.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False


def list_message(settings: Settings, recall_list: RecallList, *, partition: int | None = None) -> Message:
    key, headers = recall_list.user_id.encode(), list_headers(recall_list)
    return Message(settings.topic("recall-lists"), encode_list(recall_list), key, headers, partition)


async def publish(settings: Settings, messages: Sequence[Message]) -> list[Position]:
    publisher = Publisher(settings)
    await publisher.start()
    try:
        return await publisher.send_all(messages)
    finally:
        await publisher.stop()


def announce_version(settings: Settings) -> str:
    """Publish a small model version with figures and announce it."""
    registry = Registry(settings.registry)
    version = registry.publish(replace(make_parts(), manifest={"metrics": METRICS}), created_at_ms=wall_ms() - 240_000)
    announcement = {
        "model_version": version,
        "manifest_sha256": registry.manifest_sha256(version),
        "announced_at_ms": wall_ms(),
    }
    asyncio.run(publish(settings, [Message(settings.topic("models"), json.dumps(announcement).encode(), b"model")]))
    return version


def prepare(settings: Settings) -> None:
    """Make the topics and a version to serve."""
    asyncio.run(create_topics(settings))
    announce_version(settings)


def environment(settings: Settings, **further: str) -> dict[str, str]:
    return {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "MINDSTREAM_DATA_DIR": str(settings.data_dir),
        "MINDSTREAM_TOPIC_PREFIX": settings.topic_prefix,
        "MINDSTREAM_SERVE_PORT": str(settings.serve_port),
        **further,
    }


@contextmanager
def serving(settings: Settings, **further: str) -> Iterator[LiveService]:
    """Yield a service that answers, which may not be ready yet; it is stopped at the end."""
    log_path = settings.data_dir / "serve.log"
    with log_path.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine.cli", "serve"],
            env=environment(settings, **further),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    live = LiveService(settings, process, log_path)
    try:
        live.wait_until(lambda: _answers(live), what="the service listens")
        yield live
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(live: LiveService) -> bool:
    try:
        return live.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False


def json_of(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()
