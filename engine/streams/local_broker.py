"""A real Apache Kafka on this machine: one to three KRaft nodes as child processes, for machines that have no cluster.

Node *n* listens on `broker_port + 2(n - 1)` for clients and on the port above for the other controllers, on loopback
only. Under `<data_dir>/broker` lie `cluster.json` (cluster id and node count, fixed when the data is made) and a folder
a node; `<data_dir>/logs/broker-n.log` is what the node prints. A second start goes on from that data.

Nodes run in sessions of their own, so a Ctrl-C in the terminal reaches their clients first and the nodes only when we
stop them. A guard process ends a node whose parent was killed: it reads a pipe that closes with the parent.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import structlog

from engine.errors import LogError, SetupError
from engine.log import wait_for_broker
from engine.settings import Settings
from engine.streams.broker_config import HOST, LOG4J, ports_of, properties_of, write_whole
from engine.streams.broker_host import STOP_TIMEOUT_S, check_ports, end_leftover, find_java, write_pid_file
from engine.streams.broker_jars import KAFKA_VERSION
from engine.streams.broker_jars import fetch_jars as fetch_jars

START_TIMEOUT_S = 90.0
# The serial collector and the first compiler alone took half the CPU of Java's defaults for a start (3.4 s against 6.7)
# and for 300,000 small records written (0.8 s against 2.1), on two busy cores.
JVM_OPTIONS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
# Reads until its parent goes (end of file), then ends the node; a line means that the node was stopped in good order.
GUARD = 'read -r _ && exit 0; kill -TERM "$1"; sleep 15; kill -KILL "$1"'

log = structlog.get_logger()


class LocalBroker:
    """The nodes of a local Kafka cluster, started and stopped together or one by one.

    `start` and `stop` block; an event loop calls them through an executor. Not thread-safe.
    """

    def __init__(
        self,
        settings: Settings,
        nodes: int = 1,
        *,
        search_path: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the cluster; nothing runs before `start`.

        Args:
            settings: ports, heap, and where data and jars are.
            nodes: 1, or 3 for fault tests.
            search_path: where `java` is looked for, as in `PATH`; None means the environment's.
            properties: of the server, beside ours or in their place; the listener of ours must stay.
        """
        self._settings = settings
        self._search_path = search_path
        self._properties = properties or {}
        self._home = settings.data_dir.absolute() / "broker"
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._guards: dict[int, subprocess.Popen[bytes]] = {}
        self.nodes = nodes

    @property
    def pids(self) -> list[int]:
        """Process ids of the running nodes, by node."""
        return [self._processes[node].pid for node in sorted(self._processes)]

    @property
    def bootstrap_servers(self) -> str:
        """Every node's address, as clients want it."""
        return ",".join(f"{HOST}:{ports_of(self._settings, node).client}" for node in self._all())

    def start(self) -> None:
        """Fetch the jars, make the storage where there is none, start every node and wait until clients are answered.

        Nodes that run already go on running.

        Raises:
            SetupError: Java is missing or too old, a port is taken, the data belongs to another process or to another
                number of nodes, or a node ends while it starts.
        """
        java = find_java(self._search_path)
        self._home.mkdir(parents=True, exist_ok=True)
        missing = [node for node in self._all() if node not in self._processes]
        for node in missing:
            end_leftover(self._pid_file(node))
            check_ports(self._settings, node)
        class_path = _class_path(fetch_jars(self._settings))
        cluster_id = self._cluster_id()
        with ThreadPoolExecutor(self.nodes) as pool:
            list(pool.map(lambda node: self._prepare(node, java, class_path, cluster_id), missing))
        for node in missing:
            self.start_node(node)
        try:
            self._await_clients()
        except BaseException:
            self.stop()
            raise
        log.info("broker_ready", bootstrap_servers=self.bootstrap_servers, pids=self.pids, kafka=KAFKA_VERSION)

    def start_node(self, node: int) -> None:
        """Start one node of a prepared cluster and return at once."""
        java, class_path = find_java(self._search_path), _class_path(fetch_jars(self._settings))
        command = [
            java,
            f"-Xmx{self._settings.broker_heap_mb}m",
            *JVM_OPTIONS,
            f"-Dlog4j2.configurationFile={self._home / 'log4j2.properties'}",
            "-cp",
            class_path,
            "kafka.Kafka",
            str(self._config(node)),
        ]
        with self._open_log(node) as output:
            self._processes[node] = process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._guards[node] = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        write_pid_file(self._pid_file(node), process.pid)

    def stop_node(self, node: int, *, kill: bool = False) -> None:
        """Stop one node and wait until it is gone; one that doesn't heed SIGTERM within 15 s is killed.

        Args:
            node: 1 to `nodes`.
            kill: end it without warning, as a crash would.
        """
        process = self._processes.pop(node, None)
        if process is None:
            return
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("broker_killed", node=node, pid=process.pid, waited_s=STOP_TIMEOUT_S)
            process.kill()
            process.wait()
        self._guards.pop(node).communicate(b"stopped\n")
        self._pid_file(node).unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop every node, all at once; stopping what doesn't run does nothing."""
        running = list(self._processes)
        if not running:
            return
        with ThreadPoolExecutor(len(running)) as pool:
            list(pool.map(self.stop_node, running))
        log.info("broker_stopped", nodes=len(running))

    def failed_nodes(self) -> list[int]:
        """Return the nodes that ended though nobody stopped them."""
        return [node for node, process in self._processes.items() if process.poll() is not None]

    def raise_if_ended(self) -> None:
        """Raise SetupError, with what its log says, if a node ended though nobody stopped it."""
        for node in self.failed_nodes():
            lines = self._log_file(node).read_text(encoding="utf-8", errors="replace").splitlines()
            said = next((line for line in lines if re.search(r"ERROR|FATAL|Error", line)), "nothing")
            raise SetupError(
                f"node {node} of the local broker ended by itself, saying: {said}",
                remedy=f"look into {self._log_file(node)}",
            )

    def _all(self) -> range:
        return range(1, self.nodes + 1)

    def _pid_file(self, node: int) -> Path:
        return self._home / f"node-{node}.pid"

    def _config(self, node: int) -> Path:
        return self._home / f"node-{node}.properties"

    def _log_file(self, node: int) -> Path:
        return self._settings.data_dir.absolute() / "logs" / f"broker-{node}.log"

    def _open_log(self, node: int) -> BinaryIO:
        path = self._log_file(node)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        return path.open("wb")

    def _cluster_id(self) -> str:
        path = self._home / "cluster.json"
        if path.is_file():
            cluster = json.loads(path.read_text(encoding="utf-8"))
            if cluster["nodes"] != self.nodes:
                raise SetupError(
                    f"the broker data in {self._home} was made for {cluster['nodes']} nodes, asked for {self.nodes}",
                    remedy=f"start it with --nodes {cluster['nodes']}, or give another MINDSTREAM_DATA_DIR",
                )
            return str(cluster["cluster_id"])
        cluster_id = "-"
        while cluster_id.startswith("-"):  # Kafka's own tool would take it for an option.
            cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        write_whole(path, json.dumps({"cluster_id": cluster_id, "nodes": self.nodes, "kafka": KAFKA_VERSION}))
        return cluster_id

    def _prepare(self, node: int, java: str, class_path: str, cluster_id: str) -> None:
        write_whole(self._home / "log4j2.properties", LOG4J)
        properties = properties_of(self._settings, node, nodes=self.nodes, log_dir=self._home / f"node-{node}")
        # A file of properties may name a key twice, and the last one counts.
        own = "".join(f"{key}={value}\n" for key, value in self._properties.items())
        write_whole(self._config(node), properties + own)
        if (self._home / f"node-{node}" / "meta.properties").is_file():
            return
        command = [java, "-Xmx128m", *JVM_OPTIONS, "-cp", class_path, "kafka.tools.StorageTool", "format"]
        # With the equals sign: one id in 64 begins with a hyphen and would be taken for an option.
        command += [f"--cluster-id={cluster_id}", "--config", str(self._config(node)), "--ignore-formatted"]
        formatted = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_TIMEOUT_S)
        if formatted.returncode != 0:
            said = (formatted.stderr or formatted.stdout).strip().splitlines()[-1:]
            raise SetupError(
                f"Kafka's storage in {self._home} can't be formatted: {' '.join(said)}",
                remedy="check that the folder is writable and the disk has room",
            )

    def _await_clients(self) -> None:
        """Ask the cluster as a client does, until every node answers; end early when a node ends."""
        settings = self._settings.model_copy(update={"kafka_bootstrap_servers": self.bootstrap_servers})
        deadline = time.monotonic() + START_TIMEOUT_S
        # A thread of its own: the caller's may have a running event loop.
        with ThreadPoolExecutor(1) as pool:
            while True:
                try:
                    pool.submit(asyncio.run, wait_for_broker(settings, 1.0, nodes=self.nodes)).result()
                    return
                except LogError as error:
                    self.raise_if_ended()
                    if time.monotonic() > deadline:
                        raise SetupError(
                            f"the local broker did not answer within {START_TIMEOUT_S:.0f} s",
                            remedy=f"look into {self._log_file(1)}",
                        ) from error


def run_broker(settings: Settings, nodes: int = 1) -> None:
    """Run the local broker until SIGINT or SIGTERM; call it in the main thread.

    Raises:
        SetupError: it can't start, or a node ended by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    broker = LocalBroker(settings, nodes)
    try:
        broker.start()
        while True:
            broker.raise_if_ended()
            time.sleep(0.5)
    except KeyboardInterrupt:
        log.info("broker_stopping")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        broker.stop()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _class_path(jars: Sequence[Path]) -> str:
    return os.pathsep.join(str(jar) for jar in jars)
