from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine.errors import SetupError
from engine.log import Admin, Message, Position, Publisher, topic_epoch, wait_for_broker
from engine.settings import Settings
from engine.streams.broker_config import ports_of
from engine.streams.broker_host import find_java
from engine.streams.broker_jars import JARS, fetch_jars
from engine.streams.local_broker import LocalBroker
from engine.streams.topics import create_topics, describe_topics
from tests.conftest import free_port


def make_settings(tmp_path: Path, *, nodes: int = 1, **changes: object) -> Settings:
    defaults = {"data_dir": tmp_path / "data", "broker_port": free_port(2 * nodes), "broker_heap_mb": 256}
    return Settings(**{**defaults, **changes})  # type: ignore[arg-type]


def fake_java(folder: Path, *, version: str) -> str:
    """Make a `java` that says *version*, and return the folder as a search path."""
    program = folder / "java"
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(folder)


async def send(settings: Settings, value: bytes) -> Position:
    publisher = Publisher(settings)
    await publisher.start()
    try:
        return await publisher.send(Message(settings.topic("clicks"), value, b"u1", partition=0))
    finally:
        await publisher.stop()


async def wait_until_gone(process: psutil.Process, timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.1)


def test_missing_java_is_named_with_what_to_do(tmp_path: Path):
    broker = LocalBroker(make_settings(tmp_path), search_path=str(tmp_path))

    with pytest.raises(SetupError, match=r"needs Java 17 or later .* no `java` on the PATH; install"):
        broker.start()
    assert broker.pids == []


@pytest.mark.parametrize("version", ["1.8.0_392", "11.0.22"])
def test_java_that_is_too_old_is_named_with_its_version(tmp_path: Path, version: str):
    search_path = fake_java(tmp_path, version=version)

    with pytest.raises(SetupError, match=rf"has version {version.removeprefix('1.').split('.')[0]}; install"):
        find_java(search_path)


@pytest.mark.parametrize("version", ["17.0.15", "21", "25.0.1"])
def test_java_that_is_new_enough_is_taken(tmp_path: Path, version: str):
    search_path = fake_java(tmp_path, version=version)

    assert find_java(search_path) == str(tmp_path / "java")


@pytest.mark.parametrize("which", ["client", "controller"])
def test_taken_port_is_named_with_what_to_do(tmp_path: Path, which: str):
    settings = make_settings(tmp_path)
    taken = getattr(ports_of(settings, 1), which)
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken))
        other.listen()

        with pytest.raises(SetupError, match=rf"port {taken}, .* is taken; .*MINDSTREAM_BROKER_PORT"):
            LocalBroker(settings).start()


def test_nodes_take_two_ports_each():
    settings = Settings(broker_port=9092)

    assert [(ports_of(settings, node).client, ports_of(settings, node).controller) for node in (1, 2, 3)] == [
        (9092, 9093),
        (9094, 9095),
        (9096, 9097),
    ]
    assert LocalBroker(settings, nodes=3).bootstrap_servers == "127.0.0.1:9092,127.0.0.1:9094,127.0.0.1:9096"


@pytest.mark.kafka
def test_jars_are_all_there_and_a_cut_download_is_made_good(broker: Settings, tmp_path: Path):
    jars = fetch_jars(broker)
    assert len(jars) == len(JARS)

    # A folder without its marker is what no download of ours leaves behind.
    cut = broker.model_copy(update={"cache_dir": tmp_path})
    (tmp_path / "kafka-4.1.1").mkdir()
    (tmp_path / "kafka-4.1.1" / "kafka_2.13-4.1.1.jar").write_bytes(b"half")

    assert [jar.name for jar in fetch_jars(cut)] == [jar.name for jar in jars]
    assert [jar.stat().st_size for jar in fetch_jars(cut)] == [jar.stat().st_size for jar in jars]
    assert [path.name for path in tmp_path.iterdir()] == ["kafka-4.1.1"]


@pytest.mark.kafka
async def test_second_start_goes_on_from_the_data_of_the_first(tmp_path: Path):
    settings = make_settings(tmp_path)
    broker = LocalBroker(settings)
    await asyncio.to_thread(broker.start)
    try:
        await create_topics(settings)
        before = await topic_epoch(settings, "clicks")
        assert await send(settings, b"first") == Position(0, 0)
        await asyncio.to_thread(broker.stop)
        assert broker.pids == []
        # Another port is no other cluster.
        settings = settings.model_copy(update={"broker_port": free_port(2)})
        broker = LocalBroker(settings)
        await asyncio.to_thread(broker.start)

        assert await topic_epoch(settings, "clicks") == before
        assert await send(settings, b"second") == Position(0, 1)
    finally:
        await asyncio.to_thread(broker.stop)
    broker.stop()


@pytest.mark.kafka
async def test_acknowledged_records_survive_a_killed_node(tmp_path: Path):
    settings = make_settings(tmp_path)
    broker = LocalBroker(settings)
    await asyncio.to_thread(broker.start)
    try:
        await create_topics(settings)
        assert await send(settings, b"kept") == Position(0, 0)

        await asyncio.to_thread(broker.stop_node, 1, kill=True)
        await asyncio.to_thread(broker.start)

        assert await send(settings, b"next") == Position(0, 1)
    finally:
        await asyncio.to_thread(broker.stop)


@pytest.mark.kafka
async def test_broker_is_kept_from_the_network_and_makes_no_topic_by_itself(broker: Settings):
    port = int(broker.bootstrap_servers.split(":")[1])
    listening = [
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in (port, port + 1)
    ]
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}

    async with Admin(broker) as admin:
        assert "made-by-nobody" not in await admin.partitions()
    with pytest.raises(Exception, match="made-by-nobody does not exist"):
        await topic_epoch(broker, "made-by-nobody")


@pytest.mark.kafka
async def test_node_dies_with_a_parent_that_was_killed_and_its_data_starts_again(tmp_path: Path):
    settings = make_settings(tmp_path)
    parent = run_in_process(settings)
    node = psutil.Process(await node_pid(settings, parent))

    parent.kill()
    parent.wait()
    await wait_until_gone(node)

    broker = LocalBroker(settings)
    await asyncio.to_thread(broker.start)
    await asyncio.to_thread(broker.stop)


@pytest.mark.kafka
async def test_run_broker_stops_cleanly_on_a_signal_and_refuses_data_in_use(tmp_path: Path):
    settings = make_settings(tmp_path)
    parent = run_in_process(settings)
    node = psutil.Process(await node_pid(settings, parent))
    await wait_for_broker(settings, 60)

    with pytest.raises(SetupError, match=rf"is already run by process {parent.pid}; stop that one"):
        LocalBroker(settings).start()
    assert node.is_running()
    began = time.monotonic()
    parent.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(parent.wait, 30) == 0

    assert not node.is_running()
    assert time.monotonic() - began < 30
    assert not (settings.data_dir / "broker" / "node-1.pid").exists()


@pytest.mark.kafka
async def test_node_that_an_earlier_process_left_behind_is_ended_first(tmp_path: Path):
    settings = make_settings(tmp_path)
    first = LocalBroker(settings)
    await asyncio.to_thread(first.start)
    leftover = psutil.Process(first.pids[0])
    # As if the process that started it were gone, and its guard too.
    pid_file = settings.data_dir / "broker" / "node-1.pid"
    noted = json.loads(pid_file.read_text())
    pid_file.write_text(json.dumps({**noted, "owner": 2**22 + 1, "owner_started": 1.0}))

    second = LocalBroker(settings)
    await asyncio.to_thread(second.start)
    try:
        assert second.pids != [leftover.pid]
        assert not leftover.is_running() or leftover.status() == psutil.STATUS_ZOMBIE
    finally:
        await asyncio.to_thread(second.stop)
        await asyncio.to_thread(first.stop)


@pytest.mark.kafka
def test_other_number_of_nodes_than_the_data_was_made_for_is_refused(tmp_path: Path):
    settings = make_settings(tmp_path, nodes=3)
    (settings.data_dir / "broker").mkdir(parents=True)
    made = {"cluster_id": "MkU3OEVBNTcwNTJENDM2Qk", "nodes": 1, "kafka": "4.1.1"}
    (settings.data_dir / "broker" / "cluster.json").write_text(json.dumps(made))

    with pytest.raises(SetupError, match="made for 1 nodes, asked for 3; start it with --nodes 1"):
        LocalBroker(settings, nodes=3).start()


@pytest.mark.kafka
@pytest.mark.slow
async def test_three_nodes_keep_taking_writes_while_one_is_killed(tmp_path: Path):
    settings = make_settings(tmp_path, nodes=3, replication_factor=3)
    broker = LocalBroker(settings, nodes=3)
    settings = settings.model_copy(update={"kafka_bootstrap_servers": broker.bootstrap_servers})
    await asyncio.to_thread(broker.start)
    try:
        await create_topics(settings)
        assert all(row.is_right for row in await describe_topics(settings))
        assert await send(settings, b"with three") == Position(0, 0)

        await asyncio.to_thread(broker.stop_node, 2, kill=True)
        assert await send(settings, b"with two") == Position(0, 1)

        broker.start_node(2)
        await wait_for_broker(settings, 90, nodes=3)
        assert len(broker.pids) == 3
    finally:
        await asyncio.to_thread(broker.stop)


def run_in_process(settings: Settings) -> subprocess.Popen[bytes]:
    """Run `run_broker` in a process of its own."""
    code = "from engine.settings import load_settings; from engine.streams.local_broker import run_broker; "
    environment = {
        **os.environ,
        "MINDSTREAM_DATA_DIR": str(settings.data_dir),
        "MINDSTREAM_BROKER_PORT": str(settings.broker_port),
        "MINDSTREAM_BROKER_HEAP_MB": "256",
    }
    environment.pop("KAFKA_BOOTSTRAP_SERVERS", None)
    return subprocess.Popen([sys.executable, "-c", code + "run_broker(load_settings())"], env=environment)


async def node_pid(settings: Settings, parent: subprocess.Popen[bytes]) -> int:
    pid_file = settings.data_dir / "broker" / "node-1.pid"
    async with asyncio.timeout(90):
        while not pid_file.exists():
            assert parent.poll() is None
            await asyncio.sleep(0.1)
    return int(json.loads(pid_file.read_text())["pid"])
