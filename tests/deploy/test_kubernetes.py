"""deploy/kubernetes, read as files and held against the settings, the command and the compose file."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import typer
import yaml

from engine.cli import app
from engine.settings import OUTSIDE_NAMES, PREFIX, Settings
from tests.deploy.compose import ROOT, our_services, read_compose

FOLDER = ROOT / "deploy/kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
RESOURCES: list[dict[str, Any]] = [
    one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((FOLDER / name).read_text())
]
WORKLOADS = {one["metadata"]["name"]: one for one in RESOURCES if one["kind"] in ("StatefulSet", "Deployment")}
KNOWN = {PREFIX + name.upper() for name in Settings.model_fields} | set(OUTSIDE_NAMES.values())
COMPOSE = our_services(read_compose())


def container(name: str) -> dict[str, Any]:
    return WORKLOADS[name]["spec"]["template"]["spec"]["containers"][0]


def test_only_known_settings_are_set() -> None:
    config = next(one for one in RESOURCES if one["kind"] == "ConfigMap")
    named = set(config["data"]) | {one["name"] for name in WORKLOADS for one in container(name).get("env", [])}

    assert named - KNOWN == set()


@pytest.mark.parametrize("name", WORKLOADS)
def test_command_is_one_of_ours_and_as_in_compose(name: str) -> None:
    args = container(name)["args"]

    assert args[0] in typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert args == COMPOSE[name.removeprefix("mindstream-")]["command"]
    assert container(name)["image"] == COMPOSE[name.removeprefix("mindstream-")]["image"]


@pytest.mark.parametrize("name", WORKLOADS)
def test_probes_ask_where_the_process_listens(name: str) -> None:
    address = COMPOSE[name.removeprefix("mindstream-")]["healthcheck"]["test"][-1]
    port, path = container(name)["ports"][0]["containerPort"], container(name)["livenessProbe"]["httpGet"]["path"]

    assert address == f"http://127.0.0.1:{port}{path}"


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_mount_has_its_volume(name: str) -> None:
    spec = WORKLOADS[name]["spec"]
    volumes = {one["name"] for one in spec["template"]["spec"]["volumes"]}
    volumes |= {one["metadata"]["name"] for one in spec.get("volumeClaimTemplates", [])}

    assert {one["name"] for one in container(name)["volumeMounts"]} == volumes


def test_query_service_is_asked_for_readiness_with_its_token() -> None:
    check, answered = ROOT / "deploy/healthcheck.py", []

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answered.append(self.headers["Authorization"])
            self.send_response(200 if self.headers["Authorization"] == "Bearer s3cret" else 401)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, str(check), f"http://127.0.0.1:{server.server_port}/health/ready"]
        codes = [subprocess.run(command, env={"MINDSTREAM_API_TOKEN": token}).returncode for token in ("s3cret", "")]
        server.shutdown()

    assert container("mindstream-serve")["readinessProbe"]["exec"]["command"][1:] == [
        "/opt/mindstream/healthcheck.py",
        "http://127.0.0.1:8080/health/ready",
    ]
    assert codes == [0, 1]
    assert answered == ["Bearer s3cret", None]
