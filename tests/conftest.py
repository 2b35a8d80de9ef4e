"""Fixtures that many tests share: one real broker for the whole run."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine.settings import Settings
from engine.streams.local_broker import LocalBroker


def free_port(count: int = 1) -> int:
    """Return the first of *count* neighboring ports that nobody listens on."""
    while True:
        with ExitStack() as held:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                for following in range(port + 1, port + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", following))
            except (OSError, OverflowError):
                continue
            if port + count <= 65_000:
                return port


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
