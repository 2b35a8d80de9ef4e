"""What a machine must have before anything starts, and what is wrong with it.

`mindstream doctor` shows every check; `mindstream up` runs the ones that would stop it, before it touches anything.
A check that fails says what to do. Nothing here changes the machine.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError, LogError, SetupError
from engine.log import topic_epoch, wait_for_broker
from engine.settings import PREFIX, Settings
from engine.streams.broker_host import find_java
from engine.streams.broker_jars import KAFKA_VERSION, has_jars
from engine.streams.topics import describe_topics

OLDEST_PYTHON = (3, 11)
NEEDED_DISK_GB = 2.0
LIBRARIES = ("faust", "aiokafka", "kafka", "torch", "safetensors", "fastapi", "uvicorn", "pyarrow", "msgspec", "jgo")
# Imported in a process of their own: one that was built for another processor ends it without an exception.
NATIVE_LIBRARIES = ("numpy", "hnswlib", "rocksdict")
PORT_PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the machine and its answer; the remedy is for a check that is not ok."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def check_setup(settings: Settings, *, search_path: str | None = None) -> list[Check]:
    """Return every check, in the order in which a first start would meet them.

    Args:
        settings: of the system that shall run.
        search_path: where `java` is looked for, as in `PATH`; None means the environment's.
    """
    checks = [_check_python(), _check_libraries(), _check_disk(settings)]
    if settings.uses_local_broker:
        checks += [_check_java(search_path), _check_jars(settings)]
    checks += [_check_port(settings, name, port) for name, port in listening_ports(settings)]
    problem = _broker_problem(settings)
    checks.append(_check_broker(settings, problem))
    if problem is None:
        checks.append(_check_topics(settings))
    checks.append(_check_registry(settings))
    return checks


def check_start(settings: Settings, *, search_path: str | None = None) -> None:
    """Return if nothing known keeps `mindstream up` from starting; the broker looks at its own ports itself.

    Args:
        settings: of the system that shall run.
        search_path: where `java` is looked for, as in `PATH`; None means the environment's.

    Raises:
        SetupError: Java is missing or too old, a port is taken or named twice, or the disk is full.
    """
    if settings.uses_local_broker:
        find_java(search_path)
    ports = list(listening_ports(settings))
    for name, port in ports:
        twice = [other for other, number in ports if number == port and other != name]
        if twice:
            raise SetupError(f"{name} and {twice[0]} are both {port}", remedy="give one of them another port")
        # What an earlier run left may still be closing its port.
        if not name.startswith(_name("broker_port")) and not _becomes_free(port, PORT_PATIENCE_S):
            raise SetupError(
                f"port {port} ({name}) is taken", remedy=f"stop what listens there, or set {name} to another port"
            )
    disk = _check_disk(settings)
    if not disk.ok:
        raise SetupError(disk.detail, remedy=disk.remedy)


def listening_ports(settings: Settings) -> Iterator[tuple[str, int]]:
    """Yield (setting, port) of every port that the whole system listens on; ports that are turned off are left out."""
    fields = ["serve_port", "engine_metrics_port", "trainer_metrics_port"]
    if settings.uses_local_broker:
        yield _name("broker_port"), settings.broker_port
        yield _name("broker_port") + " + 1", settings.broker_port + 1
    for field in fields:
        port = getattr(settings, field)
        if port:
            yield _name(field), port


def _name(field: str) -> str:
    return PREFIX + field.upper()


def _check_python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    ok = sys.version_info >= OLDEST_PYTHON
    return Check("python", ok, version, "use Python 3.11 or later and make the environment anew (`make setup`)")


def _check_libraries() -> Check:
    remedy = "`make setup` installs them; hnswlib is built on the machine that runs it"
    # A loaded module is asked for first: Faust replaces itself by one without a spec.
    missing = [name for name in LIBRARIES if name not in sys.modules and importlib.util.find_spec(name) is None]
    if missing:
        return Check("libraries", False, f"not installed: {', '.join(missing)}", remedy)
    code = f"import {', '.join(NATIVE_LIBRARIES)}"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        said = tried.stderr.strip().splitlines()[-1:] or [f"`{code}` ended with signal {-tried.returncode}"]
        return Check("libraries", False, said[0], remedy)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("faust-streaming", "torch"))
    return Check("libraries", True, f"installed, native ones load; {versions}")


def _check_disk(settings: Settings) -> Check:
    place = settings.data_dir.absolute()
    while not place.exists():
        place = place.parent
    free_gb = shutil.disk_usage(place).free / 1e9
    detail = f"{free_gb:.1f} GB free for {settings.data_dir}"
    remedy = f"free at least {NEEDED_DISK_GB:.0f} GB there, or set MINDSTREAM_DATA_DIR to a folder on another disk"
    return Check("disk", free_gb >= NEEDED_DISK_GB, detail, remedy)


def _check_java(search_path: str | None) -> Check:
    try:
        return Check("java", True, find_java(search_path))
    except SetupError as error:
        return Check("java", False, error.what, error.remedy)


def _check_jars(settings: Settings) -> Check:
    detail = "fetched" if has_jars(settings) else "not fetched yet; the first start does it (43 MB)"
    return Check(f"Kafka {KAFKA_VERSION}", True, f"{detail}, in {settings.cache_dir}")


def _check_port(settings: Settings, name: str, port: int) -> Check:
    if _becomes_free(port, 0.0):
        return Check(f"port {port}", True, f"free ({name})")
    is_ours = _is_our_broker(settings) if name.startswith(_name("broker_port")) else _is_our_listener(settings, port)
    if is_ours:
        return Check(f"port {port}", True, f"in use by MindStream ({name})")
    return Check(
        f"port {port}", False, f"taken by another program ({name})", f"stop that, or set {name} to another port"
    )


def _becomes_free(port: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                if time.monotonic() >= deadline:
                    return False
            else:
                return True
        time.sleep(0.1)


def _is_our_listener(settings: Settings, port: int) -> bool:
    """Tell whether the metrics of this project are served there."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
    if settings.api_token is not None and port == settings.serve_port:
        request.add_header("Authorization", f"Bearer {settings.api_token.get_secret_value()}")
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return b"mindstream_" in answer.read(1_000_000)
    except (OSError, ValueError):
        return False


def _is_our_broker(settings: Settings) -> bool:
    """Tell whether the broker that answers runs on this data directory."""
    made = settings.data_dir.absolute() / "broker" / "cluster.json"
    try:
        ours = json.loads(Path(made).read_text(encoding="utf-8"))["cluster_id"]
        return asyncio.run(topic_epoch(settings, "clicks")).cluster_id == str(ours)
    except (OSError, ValueError, LogError):
        return False


def _broker_problem(settings: Settings) -> LogError | None:
    try:
        asyncio.run(wait_for_broker(settings, 2.0))
    except LogError as error:
        return error
    return None


def _check_broker(settings: Settings, problem: LogError | None) -> Check:
    if problem is None:
        return Check("kafka", True, f"answers at {settings.bootstrap_servers}")
    if settings.uses_local_broker:
        return Check("kafka", True, "the local broker does not run; `mindstream up` starts it")
    return Check("kafka", False, str(problem), "start the cluster, or correct KAFKA_BOOTSTRAP_SERVERS and its security")


def _check_topics(settings: Settings) -> Check:
    remedy = "set MINDSTREAM_TOPIC_PREFIX to start with topics of our own, or correct the setting or the topic"
    try:
        rows = asyncio.run(describe_topics(settings))
    except LogError as error:
        return Check("topics", False, str(error), "look at the cluster's own log")
    wrong = [f"{row.name}: {', '.join(row.differences)}" for row in rows if row.differences]
    if wrong:
        return Check("topics", False, "; ".join(wrong), remedy)
    missing = [row.name for row in rows if row.partitions is None]
    if missing:
        return Check("topics", True, f"not there yet: {', '.join(missing)}; the first start makes them")
    return Check("topics", True, f"all {len(rows)} are there")


def _check_registry(settings: Settings) -> Check:
    try:
        # Not at the top: it brings torch, which `mindstream up` need not load to check its ports.
        from engine.model.registry import Registry

        versions = Registry(settings.registry).list_versions()
    except (EngineError, OSError, ImportError) as error:
        return Check("models", False, str(error), "correct MINDSTREAM_REGISTRY_URL, or the rights on that folder")
    newest = f"newest version {versions[-1]} of {len(versions)}" if versions else "no version yet"
    return Check("models", True, f"{newest} in {settings.registry}")
