"""What the machine must give a local node: a Java, free ports, and no other node on the same data.

A pid file says which process runs a node and which one started it, both with their start times, because a number alone
may have been given to another process since.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import psutil
import structlog

from engine.errors import SetupError
from engine.settings import Settings
from engine.streams.broker_config import HOST, ports_of, write_whole

MINIMUM_JAVA = 17
STOP_TIMEOUT_S = 15.0

log = structlog.get_logger()


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


def write_pid_file(path: Path, pid: int) -> None:
    """Note which process runs the node and which process started it."""
    owner = os.getpid()
    write_whole(
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
        if _started(noted["owner"]) == noted["owner_started"]:
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
