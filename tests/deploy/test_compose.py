"""docker-compose.yml, the Dockerfile and what they point at, read as files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.settings import OUTSIDE_NAMES, PREFIX, Settings
from engine.streams.broker_jars import KAFKA_VERSION
from tests.deploy.compose import ROOT, environment_of, our_services, read_compose

COMPOSE = read_compose()
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = our_services(COMPOSE)
SECRETS = {"MINDSTREAM_API_TOKEN": "0123456789abcdef", "GRAFANA_PASSWORD": "secret"}
KNOWN_SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields} | set(OUTSIDE_NAMES.values())
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def has_compose() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_compose(), reason="no `docker compose` here; the file is checked by its own reader below")
def test_docker_compose_accepts_the_file():
    ran = subprocess.run(
        ["docker", "compose", "-f", str(ROOT / "docker-compose.yml"), "config", "--quiet"],
        env={**SECRETS, "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stderr


def test_services_are_named_by_role():
    assert set(SERVICES) == {"kafka", "topics", "engine", "trainer", "serve", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_image_is_pinned(name: str):
    assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_that_keeps_running_has_a_health_check(name: str):
    check = SERVICES[name]["healthcheck"]

    if name == "topics":
        assert check == {"disable": True}
        assert SERVICES["engine"]["depends_on"]["topics"]["condition"] == "service_completed_successfully"
    else:
        assert check["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_loopback(name: str):
    assert [port for port in SERVICES[name].get("ports", []) if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_holds_an_inline_script(name: str):
    service = SERVICES[name]
    words = [*service.get("command", []), *service.get("entrypoint", []), *service["healthcheck"].get("test", [])]

    assert {"sh", "bash", "-c", "CMD-SHELL"} & set(words) == set()


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_without_privileges_on_a_read_only_root(name: str):
    service = OURS[name]

    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", OURS)
def test_our_services_set_only_known_settings(name: str):
    assert set(OURS[name]["environment"]) - KNOWN_SETTINGS == set()


@pytest.mark.parametrize("name", OURS)
def test_volumes_are_declared_and_where_the_settings_point(name: str):
    mounts = dict(mount.split(":")[:2][::-1] for mount in OURS[name].get("volumes", []))

    assert set(mounts.values()) <= set(COMPOSE["volumes"])
    if mounts:
        assert {OURS[name]["environment"][key] for key in ("MINDSTREAM_DATA_DIR", "MINDSTREAM_REGISTRY_URL")} == set(
            mounts
        )


@pytest.mark.parametrize("secret", SECRETS)
def test_starting_without_a_secret_is_refused(secret: str):
    others = {name: value for name, value in SECRETS.items() if name != secret}

    with pytest.raises(KeyError, match=secret):
        [environment_of(service, others) for service in SERVICES.values()]


def test_prometheus_asks_the_query_service_with_the_same_token():
    config = yaml.safe_load((ROOT / "deploy/prometheus.compose.yml").read_text())
    serve = next(job for job in config["scrape_configs"] if job["job_name"] == "serve")
    name = Path(serve["authorization"]["credentials_file"]).name

    assert name in SERVICES["prometheus"]["secrets"]
    assert COMPOSE["secrets"][name] == {"environment": "MINDSTREAM_API_TOKEN"}


def test_container_that_gets_a_secret_has_a_root_it_can_be_written_to():
    # Compose refuses a secret from the environment together with a read-only root.
    assert [name for name, service in SERVICES.items() if "secrets" in service and service.get("read_only")] == []


def test_mounted_files_exist():
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]

    assert [path for path in mounts if path.startswith(".") and not (ROOT / path).exists()] == []


def test_container_broker_is_the_local_brokers_version():
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_image_builds_hnswlib_for_any_machine_and_runs_as_nobody_special():
    assert re.search(r"HNSWLIB_NO_NATIVE=1", DOCKERFILE)
    assert re.search(r"^USER (?!root)\w+", DOCKERFILE, re.MULTILINE)
    assert 'ENTRYPOINT ["mindstream"]' in DOCKERFILE


def test_what_the_image_copies_is_in_the_tree_and_not_ignored():
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [path for line in sources for path in line.split()]

    assert [path for path in copied if not (ROOT / path).exists() or f"!{path}" not in allowed] == []


def test_image_has_the_project_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert version is not None
    assert {service["image"] for service in OURS.values()} == {f"mindstream:{version[1]}"}
