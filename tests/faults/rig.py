"""Rig: topics of its own on a running broker, a log of what was sent, and engines as processes to do harm to."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.erasures import erase_user
from engine.events import ClickEvent, encode_click
from engine.log import Message, Publisher, end_offsets
from engine.metrics import scrape
from engine.settings import Settings
from engine.store.header import stores_dir
from engine.store.rocksdb import open_for_reading
from engine.store.scans import read_offset
from engine.streams.topics import create_topics
from tests.conftest import free_port
from tests.faults.cluster import Cluster

USERS = 2_000
ITEMS = 400
BAD_SHARE, AGAIN_SHARE = 0.002, 0.05
WITHIN_S = 180.0
ERASURES_HEARD_WITHIN_S = 2.0
"""An engine has no figure for an erasure that it has not heard of yet."""


class EngineProcess:
    """One `mindstream engine`, or one that kills itself at a named point."""

    def __init__(
        self,
        settings: Settings,
        *,
        point: str | None = None,
        times: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.metrics_port = free_port()
        variables = os.environ | {
            "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "MINDSTREAM_TOPIC_PREFIX": settings.topic_prefix,
            "MINDSTREAM_DATA_DIR": str(settings.data_dir),
            "MINDSTREAM_REGISTRY_URL": settings.registry,
            "MINDSTREAM_ENGINE_METRICS_PORT": str(self.metrics_port),
            "MINDSTREAM_CHECKPOINT_URL": settings.checkpoint_url or "",
            "MINDSTREAM_CHECKPOINT_EVERY_S": str(settings.checkpoint_every_s),
            "MINDSTREAM_SESSION_TIMEOUT_S": str(settings.session_timeout_s),
            "MINDSTREAM_LEAVE_ON_STOP": str(settings.leave_on_stop),
            "MINDSTREAM_REPLICATION_FACTOR": str(settings.replication_factor),
        }
        armed = ["tests.faults.points", point, str(times)] if point else ["engine.cli", "engine"]
        self.log_path = settings.data_dir / "engine.log"
        with self.log_path.open("ab") as output:
            command = [sys.executable, "-m", *armed]
            self.process = subprocess.Popen(
                command, env=variables | (environment or {}), stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop it as an operator would; return its exit code."""
        self.process.terminate()
        return self.process.wait(WITHIN_S)

    def figures(self) -> dict[str, float]:
        """Return its metrics; empty while it can't be asked."""
        try:
            return scrape(f"http://127.0.0.1:{self.metrics_port}/metrics")
        except OSError:
            return {}

    def last_lines(self) -> str:
        """Return the end of its log."""
        return self.log_path.read_text(errors="replace")[-3_000:]


class Rig:
    """Topics under a prefix of its own, and everything that was sent to them."""

    def __init__(
        self, broker: Settings, folder: Path, *, prefix: str, seed: int, cluster: Cluster | None = None
    ) -> None:
        folder.mkdir(parents=True)
        self.settings = broker.model_copy(
            update={
                "topic_prefix": prefix,
                "data_dir": folder,
                "registry_url": str(folder / "registry"),
                "checkpoint_url": str(folder / "checkpoints"),
                "checkpoint_every_s": 1,
            }
        )
        self.cluster = cluster
        """The brokers themselves, where they may be harmed too."""
        self.random = random.Random(seed)
        self.engines: list[EngineProcess] = []
        self.sent = 0
        self._send_log = folder / "sent.jsonl"
        self._old: list[bytes] = []
        self._erased_at_s = 0.0
        self.pauses_s: list[float] = []
        """How long partitions stood still in rounds with several engines, the longest time of each at each change."""
        asyncio.run(create_topics(self.settings))

    # --- clicks and versions

    def send(self, count: int) -> None:
        """Send *count* messages, late, repeated and broken ones among them; note where Kafka put each."""
        topic, now_ms = self.settings.topic("clicks"), time.time_ns() // 1_000_000
        messages = [self._message(topic, now_ms) for _ in range(count)]
        places = send_messages(self.settings, messages)
        with self._send_log.open("a") as log:
            for message, (partition, offset) in zip(messages, places, strict=True):
                log.write(json.dumps([partition, offset, (message.value or b"").decode(errors="replace")]) + "\n")
        self.sent += count

    def _message(self, topic: str, now_ms: int) -> Message:
        draw = self.random.random()
        user = self._draw_user()
        if draw < BAD_SHARE:
            return Message(topic, self.random.choice([b"}{", b"", b"\xff", b"[]"]), user.encode())
        if draw < BAD_SHARE + AGAIN_SHARE and self._old:
            value = self.random.choice(self._old)
            return Message(topic, value, json.loads(value)["user_id"].encode())
        click = ClickEvent(
            user_id=user,
            item_id=f"i{int(ITEMS * self.random.random() ** 2)}",
            clicked_at_ms=now_ms - self.random.randrange(3_600_000),
            event_id=f"e{self.random.randrange(10**12)}",
            event_type="hide" if self.random.random() < 0.01 else "click",
        )
        value = encode_click(click)
        if len(self._old) < 5_000:
            self._old.append(value)
        return Message(topic, value, user.encode())

    def _draw_user(self) -> str:
        return f"u{int(USERS * self.random.random() ** 2)}"  # few users click often

    def erase(self, count: int) -> None:
        """Erase *count* users that are drawn, those who click often among them."""

        async def run() -> None:
            publisher = Publisher(self.settings)
            await publisher.start()
            try:
                for _ in range(count):
                    await erase_user(self._draw_user(), self.settings, publisher.send)
            finally:
                await publisher.stop()

        asyncio.run(run())
        self._erased_at_s = time.monotonic()

    def train(self) -> None:
        """Publish a model, so that engines make lists."""
        self._command("train", "--force", MINDSTREAM_TRAIN_MAX_SECONDS="3")

    def audit(self, settings: Settings | None = None) -> list[dict[str, str]]:
        """Return every difference that `mindstream audit` finds, and of the log to what was sent."""
        answer = self._command("audit", "--json", settings=settings, codes=(0, 1))
        report = json.loads(answer)
        differences: list[dict[str, str]] = report["differences"]
        logged = sum(report["totals"].values())
        if logged != self.sent:
            detail = f"{self.sent} sent and acknowledged, {logged} in the log"
            differences.append({"kind": "log_lost", "subject": "the log", "detail": detail})
        if report["totals"]["waiting"]:
            detail = f"{report['totals']['waiting']} offsets not applied by an engine that said it was done"
            differences.append({"kind": "click_missing", "subject": "the engine", "detail": detail})
        return differences

    def _command(
        self, *arguments: str, settings: Settings | None = None, codes: tuple[int, ...] = (0,), **extra: str
    ) -> str:
        settings = settings or self.settings
        environment = (
            os.environ
            | extra
            | {
                "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
                "MINDSTREAM_TOPIC_PREFIX": settings.topic_prefix,
                "MINDSTREAM_DATA_DIR": str(settings.data_dir),
                "MINDSTREAM_REGISTRY_URL": settings.registry,
                "MINDSTREAM_TRAINER_METRICS_PORT": "0",
            }
        )
        command = [sys.executable, "-m", "engine.cli", *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if ended.returncode not in codes:
            raise RuntimeError(f"mindstream {arguments[0]} ended with {ended.returncode}: {ended.stderr[-2_000:]}")
        return ended.stdout

    # --- engines

    def start(
        self,
        settings: Settings | None = None,
        *,
        point: str | None = None,
        times: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> EngineProcess:
        """Start an engine."""
        settings = settings or self.settings
        self.engines.append(EngineProcess(settings, point=point, times=times, environment=environment))
        return self.engines[-1]

    def close(self) -> None:
        """Kill every engine that still runs."""
        for engine in self.engines:
            if engine.is_running:
                engine.signal(signal.SIGCONT)
                engine.kill()

    def logged(self) -> int:
        """Return how many records the log holds."""
        return sum(asyncio.run(end_offsets(self.settings, "clicks")).values())

    def applied(self, settings: Settings | None = None) -> int:
        """Return how many records the stores on disk have applied."""
        total = 0
        for current in self.stores(settings, "*/CURRENT"):
            store = open_for_reading(current.parent)
            total += read_offset(store) + 1
            store.close()
        return total

    def stores(self, settings: Settings | None, pattern: str) -> list[Path]:
        """Return the files of all stores that *pattern* names."""
        return sorted(stores_dir(settings or self.settings).glob(pattern))

    def checkpoints(self) -> int:
        """Return how many records the newest checkpoints have applied together."""
        newest: dict[Path, int] = {}
        for path in Path(self.settings.checkpoint_url or "").rglob("manifests/*.json"):
            newest[path.parent] = max(newest.get(path.parent, 0), int(path.name[:20]) + 1)
        return sum(newest.values())

    def drain(self, engine: EngineProcess) -> float:
        """Wait until *engine* has applied and refreshed everything; return the seconds it took."""
        began, end = time.monotonic(), self.logged()

        def is_done() -> bool:
            figures = engine.figures()
            is_heard = time.monotonic() - self._erased_at_s > ERASURES_HEARD_WITHIN_S
            return is_heard and self._counts_as_done(figures) and self.applied() >= end

        wait(is_done, engine, what="everything applied and refreshed")
        return time.monotonic() - began

    @staticmethod
    def _counts_as_done(figures: dict[str, float]) -> bool:
        return (
            figures.get("mindstream_owned_partitions", 0) > 0
            and figures.get("mindstream_consumer_lag") == 0
            and figures.get("mindstream_dirty_users") == 0
        )


def wait(is_true: Callable[[], bool], engine: EngineProcess, *, what: str, every_s: float = 0.02) -> None:
    """Wait until *is_true*, as long as *engine* runs."""
    deadline = time.monotonic() + WITHIN_S
    while not is_true():
        if not engine.is_running:
            raise RuntimeError(f"the engine ended with {engine.process.returncode}: {engine.last_lines()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {WITHIN_S:g} s: {what}; {engine.last_lines()}")
        time.sleep(every_s)


def send_messages(settings: Settings, messages: list[Message]) -> list[tuple[int, int]]:
    """Send *messages* and return the partition and offset that Kafka acknowledged for each."""

    async def run() -> list[tuple[int, int]]:
        publisher = Publisher(settings)
        await publisher.start()
        try:
            places = []
            for first in range(0, len(messages), 5_000):
                places += await publisher.send_all(messages[first : first + 5_000])
        finally:
            await publisher.stop()
        return [(place.partition, place.offset) for place in places]

    return asyncio.run(run())
