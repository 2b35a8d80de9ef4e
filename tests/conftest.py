"""Fixtures that many tests share: one real broker for the whole run, and topics of a test's own."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from engine.settings import Settings
from engine.streams.local_broker import LocalBroker
from engine.streams.topics import create_topics

ROOT = Path(__file__).parent.parent
# Below the range from which the kernel takes ports for outgoing connections: one that is free now stays free while a
# broker starts. Runs side by side begin at different places.
_PORTS = itertools.cycle(range(20_000, 32_000))
for _ in range(os.getpid() * 101 % 12_000):
    next(_PORTS)


# A busy machine is no fault of a property: only what it finds counts, not how long it takes.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")


class ByFile(LoadFileScheduling):
    """Keeps a file's tests in one worker, and all that start the whole system in one: two of them are too many."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        return "system" if "pytest.mark.system" in (ROOT / path).read_text() else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Distribute tests over workers by what they start."""
    return ByFile(config, log)


def free_port(count: int = 1) -> int:
    """Return the first of *count* neighboring ports that nobody listens on."""
    while True:
        ports = [next(_PORTS) for _ in range(count)]
        if ports[-1] - ports[0] == count - 1 and all(_is_free(port) for port in ports):
            return ports[0]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A real broker's settings; a test takes a topic prefix and a data folder of its own."""
    data_dir: Path = tmp_path_factory.mktemp("broker")
    settings = Settings(data_dir=data_dir, broker_port=free_port(2), broker_heap_mb=384)
    running = LocalBroker(settings)
    running.start()
    try:
        yield settings.model_copy(update={"kafka_bootstrap_servers": running.bootstrap_servers})
    finally:
        running.stop()


_topic_prefixes = (f"own{number}-" for number in itertools.count())


@pytest.fixture
async def settings(broker: Settings, tmp_path: Path) -> Settings:
    """Settings of a test's own: topics under its own prefix, made, and an empty data directory."""
    own = broker.model_copy(update={"topic_prefix": next(_topic_prefixes), "data_dir": tmp_path})
    await create_topics(own)
    return own
