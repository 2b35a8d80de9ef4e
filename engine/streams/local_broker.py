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
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from engine.errors import LogError, SetupError
from engine.log import wait_for_broker
from engine.settings import Settings
from engine.streams.broker_jars import KAFKA_VERSION, fetch_jars

HOST = "127.0.0.1"
MINIMUM_JAVA = 17
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 15.0
# The serial collector and the first compiler alone: a node starts sooner and leaves the second core to its clients.
JVM_OPTIONS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
# Reads until its parent goes (end of file), then ends the node; a line means that the node was stopped in good order.
GUARD = 'read -r _ && exit 0; kill -TERM "$1"; sleep 15; kill -KILL "$1"'

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ports:
    """The two ports of one node."""

    client: int
    controller: int


class LocalBroker:
    """The nodes of a local Kafka cluster, started and stopped together or one by one.

    `start` and `stop` block; an event loop calls them through an executor. Not thread-safe.
    """

    def __init__(self, settings: Settings, nodes: int = 1, *, search_path: str | None = None) -> None:
        """Describe the cluster; nothing runs before `start`.

        Args:
            settings: ports, heap, and where data and jars are.
            nodes: 1, or 3 for fault tests.
            search_path: where `java` is looked for, as in `PATH`; None means the environment's.
        """
        self._settings = settings
        self._search_path = search_path
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

        Raises:
            SetupError: Java is missing or too old, a port is taken, the data belongs to another process or to another
                number of nodes, or a node ends while it starts.
        """
        java = find_java(self._search_path)
        self._home.mkdir(parents=True, exist_ok=True)
        for node in self._all():
            end_leftover(self._pid_file(node))
            check_ports(self._settings, node)
        class_path = _class_path(fetch_jars(self._settings))
        cluster_id = self._cluster_id()
        with ThreadPoolExecutor(self.nodes) as pool:
            list(pool.map(lambda node: self._prepare(node, java, class_path, cluster_id), self._all()))
        for node in self._all():
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
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._processes[node] = process
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

    def _all(self) -> range:
        return range(1, self.nodes + 1)

    def _pid_file(self, node: int) -> Path:
        return self._home / f"node-{node}.pid"

    def _config(self, node: int) -> Path:
        return self._home / f"node-{node}.properties"

    def _log_file(self, node: int) -> Path:
        return self._settings.data_dir.absolute() / "logs" / f"broker-{node}.log"

    def _open_log(self, node: int):  # type: ignore[no-untyped-def]
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
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        _write_whole(path, json.dumps({"cluster_id": cluster_id, "nodes": self.nodes, "kafka": KAFKA_VERSION}))
        return cluster_id

    def _prepare(self, node: int, java: str, class_path: str, cluster_id: str) -> None:
        _write_whole(self._home / "log4j2.properties", LOG4J)
        _write_whole(self._config(node), self._properties(node))
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

    def _properties(self, node: int) -> str:
        ports = ports_of(self._settings, node)
        voters = ",".join(f"{each}@{HOST}:{ports_of(self._settings, each).controller}" for each in self._all())
        return PROPERTIES.format(
            node=node,
            voters=voters,
            client=f"PLAINTEXT://{HOST}:{ports.client}",
            controller=f"CONTROLLER://{HOST}:{ports.controller}",
            log_dir=self._home / f"node-{node}",
            replicas=self.nodes,
            in_sync=max(1, self.nodes - 1),
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
                    self._raise_if_ended()
                    if time.monotonic() > deadline:
                        raise SetupError(
                            f"the local broker did not answer within {START_TIMEOUT_S:.0f} s",
                            remedy=f"look into {self._log_file(1)}",
                        ) from error

    def _raise_if_ended(self) -> None:
        for node in self.failed_nodes():
            lines = self._log_file(node).read_text(encoding="utf-8", errors="replace").splitlines()
            said = next((line for line in lines if re.search(r"ERROR|FATAL|Error", line)), "nothing")
            raise SetupError(
                f"node {node} of the local broker ended while it started, saying: {said}",
                remedy=f"look into {self._log_file(node)}",
            )


def run_broker(settings: Settings, nodes: int = 1) -> None:
    """Run the local broker until SIGINT or SIGTERM; call it in the main thread.

    Raises:
        SetupError: it can't start, or a node ended by itself.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    broker = LocalBroker(settings, nodes)
    try:
        broker.start()
        while not stopping.wait(0.5):
            if failed := broker.failed_nodes():
                raise SetupError(
                    f"node {failed[0]} of the local broker ended by itself",
                    remedy=f"look into {settings.data_dir / 'logs' / f'broker-{failed[0]}.log'}",
                )
    finally:
        broker.stop()


def ports_of(settings: Settings, node: int) -> Ports:
    """Return the ports of node *node*, counted from 1."""
    first = settings.broker_port + 2 * (node - 1)
    return Ports(client=first, controller=first + 1)


def check_ports(settings: Settings, node: int) -> None:
    """Raise SetupError if a port of *node* is taken."""
    ports = ports_of(settings, node)
    for port in (ports.client, ports.controller):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise SetupError(
                    f"port {port}, which the local broker needs, is taken",
                    remedy="stop what listens there, or set MINDSTREAM_BROKER_PORT to another port "
                    "(KAFKA_BOOTSTRAP_SERVERS uses a cluster that runs already)",
                ) from error


def find_java(search_path: str | None = None) -> str:
    """Return the path of a Java of version 17 or later.

    Args:
        search_path: folders to look in, as in `PATH`; None means the environment's.

    Raises:
        SetupError: there is none, or it is older.
    """
    remedy = "install a Java runtime (Debian: apt install openjdk-17-jre-headless), or set KAFKA_BOOTSTRAP_SERVERS"
    java = shutil.which("java", path=search_path)
    if java is None:
        raise SetupError("the local broker needs Java 17 or later and there is no `java` on the PATH", remedy=remedy)
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if found is None or int(found.group(1)) < MINIMUM_JAVA:
        version = found.group(1) if found else "unknown"
        raise SetupError(f"the local broker needs Java 17 or later, {java} has version {version}", remedy=remedy)
    return java


def write_pid_file(path: Path, pid: int) -> None:
    """Note which process runs the node and which process started it."""
    owner = os.getpid()
    _write_whole(
        path, json.dumps({"pid": pid, "started": _started(pid), "owner": owner, "owner_started": _started(owner)})
    )


def end_leftover(pid_file: Path) -> None:
    """End the node that a killed process left behind.

    Raises:
        SetupError: the process that started the node is alive, so the node is in use.
    """
    if not pid_file.is_file():
        return
    noted = json.loads(pid_file.read_text(encoding="utf-8"))
    if _started(noted["pid"]) == noted["started"]:
        if _started(noted["owner"]) == noted["owner_started"] and noted["owner"] != os.getpid():
            raise SetupError(
                f"a broker on {pid_file.parent} is already run by process {noted['owner']}",
                remedy="stop that one, or give this one its own MINDSTREAM_DATA_DIR and MINDSTREAM_BROKER_PORT",
            )
        log.warning("broker_leftover_ended", pid=noted["pid"], data=str(pid_file.parent))
        leftover = psutil.Process(noted["pid"])
        leftover.terminate()
        _, alive = psutil.wait_procs([leftover], timeout=STOP_TIMEOUT_S)
        for process in alive:
            process.kill()
            process.wait()
    pid_file.unlink(missing_ok=True)


def _started(pid: int) -> float | None:
    """Return when process *pid* started, or None where there is none: a number alone may be used again."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _class_path(jars: Sequence[Path]) -> str:
    return os.pathsep.join(str(jar) for jar in jars)


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


PROPERTIES = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners={client},{controller}
advertised.listeners={client}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
delete.topic.enable=true
log.retention.ms=-1
log.retention.bytes=-1
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
log.cleaner.io.buffer.size=262144
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
offsets.topic.num.partitions=4
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
default.replication.factor={replicas}
min.insync.replicas={in_sync}
"""

LOG4J = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
logger.kafkaconfig.name = kafka.server.KafkaConfig
logger.kafkaconfig.level = warn
"""
