"""Each of our services in docker-compose.yml, as a plain process on a real broker: it gets healthy, and it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.settings import Settings
from tests.conftest import free_port
from tests.deploy.compose import ROOT, environment_of, our_services, read_compose

pytestmark = [pytest.mark.kafka]

COMPOSE = read_compose()
OURS = our_services(COMPOSE)
LONG_RUNNING = [name for name in OURS if name != "topics"]
PORT_SETTINGS = {
    "9101": "MINDSTREAM_ENGINE_METRICS_PORT",
    "9102": "MINDSTREAM_TRAINER_METRICS_PORT",
    "8080": "MINDSTREAM_SERVE_PORT",
}
HEALTHY_WITHIN_S = 120
STOPS_WITHIN_S = 30


def start_service(name: str, environment: dict[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start what the image's entry point would."""
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "engine.cli", *OURS[name]["command"]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=log_path.parent,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compose")


@pytest.fixture(scope="module")
def environments(broker: Settings, folder: Path) -> dict[str, dict[str, str]]:
    """The environment of each service, with the container's addresses and paths turned into this machine's."""
    ports = {setting: str(free_port()) for setting in PORT_SETTINGS.values()}
    prefix = f"compose-{os.getpid()}-"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MINDSTREAM_", "KAFKA_"))}
    made = {}
    for name, service in OURS.items():
        places = {
            "kafka:9092": broker.bootstrap_servers,
            "/data": str(folder / name),
            "/models": str(folder / "models"),
        }
        declared = environment_of(service, {"MINDSTREAM_API_TOKEN": "a-token-for-this-test"})
        here = {key: places.get(value, value) for key, value in declared.items()}
        made[name] = inherited | here | ports | {"MINDSTREAM_TOPIC_PREFIX": prefix, "PYTHONPATH": str(ROOT)}
    return made


@pytest.fixture(scope="module")
def topics(environments: dict[str, dict[str, str]], folder: Path) -> int:
    process = start_service("topics", environments["topics"], folder / "topics.log")
    return process.wait(HEALTHY_WITHIN_S)


def health_check_of(name: str, environment: dict[str, str]) -> list[str]:
    """Return the service's health check as it stands, on the port that this machine gave it."""
    _, _, script, url = OURS[name]["healthcheck"]["test"]
    found = re.search(r":(\d+)/", url)
    assert found is not None
    here = url.replace(found[1], environment[PORT_SETTINGS[found[1]]])
    return [sys.executable, str(ROOT / "deploy" / Path(script).name), here]


def test_topics_are_created_and_the_service_ends(topics: int, folder: Path):
    assert topics == 0, (folder / "topics.log").read_text()


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_service_gets_healthy_and_stops_when_asked(
    name: str, topics: int, environments: dict[str, dict[str, str]], folder: Path
):
    log_path = folder / f"{name}.log"
    process = start_service(name, environments[name], log_path)
    try:
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        check = health_check_of(name, environments[name])
        while subprocess.run(check, capture_output=True).returncode != 0:
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline, log_path.read_text()
            time.sleep(0.5)

        process.send_signal(signal.SIGTERM)

        assert process.wait(STOPS_WITHIN_S) == 0, log_path.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_query_service_without_a_token_is_refused_on_a_container_address(
    environments: dict[str, dict[str, str]], folder: Path
):
    without = {key: value for key, value in environments["serve"].items() if key != "MINDSTREAM_API_TOKEN"}

    process = start_service("serve", without, folder / "no-token.log")

    assert process.wait(60) == 2
    assert "MINDSTREAM_API_TOKEN" in (folder / "no-token.log").read_text()
