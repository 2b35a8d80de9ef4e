"""Every panel and every alert of deploy/ shows something: a real Prometheus on the running system, asked each query."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import free_port
from tests.deploy.compose import ROOT
from tests.deploy.test_alerts import RULES, THRESHOLD
from tests.integration.conftest import System

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus here; Debian has it in `prometheus`"),
]

RATE_INTERVAL = "30s"
SCRAPED_FOR_S = 20.0
BOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboards/mindstream.json").read_text())
PANELS = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in BOARD["panels"]
    for target in panel.get("targets", [])
]
ALERTS = [pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES]


class Prometheus:
    """A running Prometheus, asked over its HTTP interface."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, query: str) -> list[dict[str, Any]]:
        form = urllib.parse.urlencode({"query": query}).encode()
        with urllib.request.urlopen(f"{self.address}/api/v1/query", data=form, timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result

    def numbers(self, query: str) -> list[float]:
        """Return the values that *query* gives, those that are no number left out."""
        values = [float(series["value"][1]) for series in self.ask(query)]
        return [value for value in values if not math.isnan(value)]


def write_config(system: System, folder: Path) -> Path:
    """Write deploy/prometheus.yml as it stands, with the system's ports and a short interval."""
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    settings = system.settings
    ports = {
        "engine": settings.engine_metrics_port,
        "trainer": settings.trainer_metrics_port,
        "serve": settings.serve_port,
    }
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "5s"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
    shutil.copy(ROOT / "deploy/alerts.yml", folder)
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def ask_for_lists(system: System) -> None:
    """Ask for a known user's list, a stranger's, and a path that there is not."""
    known = next(json.loads(line)["user_id"] for line in system.command("windows", "dump").stdout.splitlines())
    address = f"http://127.0.0.1:{system.settings.serve_port}"
    for path in (f"/v1/users/{known}/recall", "/v1/users/a-stranger/recall", "/v1/nothing"):
        try:
            urllib.request.urlopen(address + path, timeout=5).close()
        except urllib.error.HTTPError as refused:
            refused.close()


@pytest.fixture(scope="module")
def prometheus(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    running = Prometheus(free_port())
    command = [
        str(PROMETHEUS),
        f"--config.file={write_config(system, folder)}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={running.address.removeprefix('http://')}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        system.wait_until(running.is_ready, what="a ready Prometheus", timeout_s=60)
        deadline = time.monotonic() + SCRAPED_FOR_S
        while time.monotonic() < deadline:
            ask_for_lists(system)
            time.sleep(0.5)
        yield running
    finally:
        process.terminate()
        process.wait(20)


def test_all_three_processes_are_scraped(prometheus: Prometheus):
    up = {series["metric"]["job"]: series["value"][1] for series in prometheus.ask("up")}

    assert up == {"engine": "1", "trainer": "1", "serve": "1"}


@pytest.mark.parametrize("query", PANELS)
def test_panel_shows_something(prometheus: Prometheus, query: str):
    assert prometheus.numbers(query.replace("$__rate_interval", RATE_INTERVAL))


@pytest.mark.parametrize("query", ALERTS)
def test_alert_watches_something(prometheus: Prometheus, query: str):
    # `or vector(0)` would answer in place of a metric that is not there; a sound system has answered nothing with 5xx.
    watched = THRESHOLD.sub("", query.strip()).replace("or vector(0)", "").replace(',status=~"5.."', "")

    assert prometheus.numbers(watched)


def test_running_system_raises_no_alert_about_its_processes(prometheus: Prometheus):
    # Pending ones too: what just began to be wrong waits for minutes before it fires.
    raised = {series["metric"]["alertname"] for series in prometheus.ask("ALERTS")}

    assert raised & {"TargetDown", "QueriesFail", "SwapRefused", "TrainingFails", "NoTrainedModel"} == set()
