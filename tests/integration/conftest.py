"""The whole system, started once a test session by the same command a newcomer runs, on the simulated shop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.metrics import scrape
from engine.settings import Settings
from engine.summary import ask

CLICKS = 30_000
TRAIN_MAX_SECONDS = 120
"""Three passes take 8 s on two free cores. A training cut short beside other tests makes lists that say little: after
half the passes a new item stood 20 to 200 places down the list of who likes its like, after all of them 3 to 60."""


@dataclass
class System:
    """A running `mindstream up`: its settings, its process, and its environment for further commands."""

    settings: Settings
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log_path: Path

    def command(self, *arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a `mindstream` command against this system."""
        return subprocess.run(
            [sys.executable, "-m", "engine.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def engine_metrics(self) -> dict[str, float]:
        return scrape(f"http://127.0.0.1:{self.settings.engine_metrics_port}/metrics")

    def status(self) -> dict[str, Any]:
        return ask(self.settings, "/v1/status")

    def output(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_until(self, is_true: Callable[[], bool], *, what: str, timeout_s: float = 180) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if is_true():
                    return
            except (OSError, ValueError, KeyError):
                pass
            if self.process.poll() is not None:
                pytest.fail(f"the system ended with {self.process.returncode}:\n{self.output()[-3000:]}")
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not happen within {timeout_s} s:\n{self.output()[-3000:]}")
            time.sleep(0.2)

    def is_settled(self) -> bool:
        """A trained version serves, there are lists, and every one was made by it."""
        figures, status = self.engine_metrics(), self.status()
        model = status["model"]
        return (
            model is not None
            and model["version"] != "0000"
            and status["lists"]["held"] > 0
            and figures["mindstream_lists_on_current_version_ratio"] >= 0.99
            and figures["mindstream_consumer_lag"] <= 50
        )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def free_port_pair() -> int:
    """Return a port whose successor is free too: a broker node takes two."""
    while True:
        (port,) = free_ports(1)
        with closing(socket.socket()) as successor:
            try:
                successor.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        return port


def system_environment(data_dir: Path, **values: object) -> dict[str, str]:
    """Return an environment in which nothing of this machine's own set-up is used, on ports of its own."""
    ports = dict(zip(("SERVE_PORT", "ENGINE_METRICS_PORT", "TRAINER_METRICS_PORT"), free_ports(3), strict=True))
    own = {"DATA_DIR": data_dir, "BROKER_PORT": free_port_pair(), "TRAIN_MAX_SECONDS": TRAIN_MAX_SECONDS}
    own |= {**ports, **values}
    kept = {
        key: value
        for key, value in os.environ.items()
        if key != "KAFKA_BOOTSTRAP_SERVERS" and not (key.startswith("MINDSTREAM_") and "_TEST_" not in key)
    }
    return kept | {f"MINDSTREAM_{name}": str(value) for name, value in own.items()}


def settings_of(environment: dict[str, str]) -> Settings:
    prefix = "MINDSTREAM_"
    fields = {key.removeprefix(prefix).lower(): value for key, value in environment.items() if key.startswith(prefix)}
    return Settings(**{name: value for name, value in fields.items() if name in Settings.model_fields})


def start_up(environment: dict[str, str], log_path: Path, *arguments: str) -> System:
    """Start `mindstream up` with *arguments*; its output goes to *log_path*."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine.cli", "up", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return System(settings_of(environment), process, environment, log_path)


def stop(system: System, *, timeout_s: float = 40) -> int:
    """Send Ctrl-C's signal and return the exit code; what does not end is killed and fails the test."""
    if system.process.poll() is None:
        system.process.send_signal(signal.SIGINT)
    try:
        return system.process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(system.process.pid, signal.SIGKILL)
        pytest.fail(f"the system did not stop within {timeout_s} s of Ctrl-C:\n{system.output()[-3000:]}")


def children_of(pid: int) -> list[int]:
    """Return the process ids below *pid*, grandchildren included."""
    below: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(after_name[1]) == pid:
            child = int(path.parent.name)
            below += [child, *children_of(child)]
    return below


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    environment = system_environment(folder / "data")
    running = start_up(environment, folder / "up.log", "--clicks", str(CLICKS), "--train-every", "1h")
    try:
        running.wait_until(running.is_settled, what="a trained version behind every list", timeout_s=280)
        yield running
    finally:
        if running.process.poll() is None:
            stop(running)


def read_report(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded
