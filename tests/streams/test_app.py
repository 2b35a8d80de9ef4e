from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import LogError, StoreBusy
from engine.log import Admin
from engine.settings import Settings
from engine.streams import app


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that nobody listens on, for as long as the test runs."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def start_engine(data_dir: Path, broker_port: int, **environment: str) -> subprocess.Popen[bytes]:
    places = {"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{broker_port}", "MINDSTREAM_DATA_DIR": str(data_dir)}
    return subprocess.Popen(
        [sys.executable, "-m", "engine.cli", "engine"],
        env=os.environ | places | {"MINDSTREAM_ENGINE_METRICS_PORT": "0"} | environment,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_engine_that_still_waits_for_the_broker(
    tmp_path: Path, silent_port: int, number: signal.Signals
) -> None:
    with start_engine(tmp_path, silent_port) as engine:
        assert engine.stderr is not None
        while b"engine_waits_for_broker" not in engine.stderr.readline():
            assert engine.poll() is None
        began_s = time.monotonic()

        engine.send_signal(number)

        assert engine.wait(timeout=30) == 0
        assert time.monotonic() - began_s < 15, "an engine stops within seconds"


def test_a_metrics_port_in_use_is_named(tmp_path: Path, silent_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with start_engine(tmp_path, silent_port, MINDSTREAM_ENGINE_METRICS_PORT=port) as engine:
            assert engine.stderr is not None
            said = engine.stderr.read().decode()

            assert engine.wait(timeout=60) == 2
    assert f"MINDSTREAM_ENGINE_METRICS_PORT must be a free port of 127.0.0.1, or 0 for none, got {port}" in said


def test_a_second_engine_is_kept_out_of_a_data_directory(tmp_path: Path) -> None:
    with app._own(tmp_path), pytest.raises(StoreBusy, match="MINDSTREAM_DATA_DIR"), app._own(tmp_path):
        pass

    with app._own(tmp_path):
        pass


async def test_the_first_part_that_fails_ends_the_others_and_names_itself() -> None:
    canceled = asyncio.Event()

    async def runs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            canceled.set()

    async def fails() -> None:
        raise StoreBusy("here")

    with pytest.raises(StoreBusy):
        await app._first_failure(runs(), fails())

    assert canceled.is_set()


@pytest.mark.kafka
@pytest.mark.parametrize("missing", ["items", "models", "clicks.dead-letters"])
async def test_missing_topic_is_named_before_the_engine_starts(settings: Settings, missing: str) -> None:
    async with Admin(settings) as admin:
        await admin.delete([settings.topic(missing)])

    with pytest.raises(LogError, match=f"{missing} does not exist; `mindstream topics create`"):
        async with asyncio.timeout(20):
            await app._run(settings.model_copy(update={"engine_metrics_port": 0}))


@pytest.mark.kafka
async def test_list_topic_with_fewer_partitions_than_the_clicks_is_named(broker: Settings, tmp_path: Path) -> None:
    changes = {"topic_prefix": "narrow-", "data_dir": tmp_path, "engine_metrics_port": 0}
    settings = broker.model_copy(update=changes)
    async with Admin(settings) as admin:
        await admin.create("narrow-clicks", partitions=4, replicas=1, configs={})
        await admin.create("narrow-recall-lists", partitions=2, replicas=1, configs={})

    with pytest.raises(LogError, match="narrow-recall-lists has 2 partitions, narrow-clicks has 4"):
        async with asyncio.timeout(20):
            await app._run(settings)
