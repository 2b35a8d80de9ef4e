"""What `make` says on a machine that lacks something, before it installs anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.deploy.compose import ROOT


@pytest.fixture
def java(tmp_path: Path) -> Path:
    return fake_java(tmp_path / "bin", "17.0.15")


def fake_java(folder: Path, version: str) -> Path:
    folder.mkdir()
    (folder / "java").write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
    (folder / "java").chmod(0o755)
    return folder


def preflight(search_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MINDSTREAM_", "KAFKA_"))}
    free = {
        f"MINDSTREAM_{name}_PORT": str(free_port()) for name in ("SERVE", "ENGINE_METRICS", "TRAINER_METRICS", "BROKER")
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy/preflight.py"), *arguments],
        env={**kept, **free, "PATH": str(search_path), **environment},
        capture_output=True,
        text=True,
    )


def test_machine_that_has_everything_is_let_through_in_silence(java: Path):
    done = preflight(java, "--ports")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_missing_java_is_told_with_the_package_to_install(tmp_path: Path):
    done = preflight(tmp_path)

    assert done.returncode == 1
    assert "no Java was found" in done.stderr
    assert "apt-get install openjdk-17-jre-headless" in done.stderr


def test_old_java_is_named(tmp_path: Path):
    done = preflight(fake_java(tmp_path / "bin", "11.0.2"))

    assert done.returncode == 1
    assert "Java 11 was found" in done.stderr


def test_cluster_of_the_users_own_needs_no_java(tmp_path: Path):
    assert preflight(tmp_path, KAFKA_BOOTSTRAP_SERVERS="kafka:9092").returncode == 0


@pytest.mark.parametrize("name", ["MINDSTREAM_SERVE_PORT", "MINDSTREAM_BROKER_PORT"])
def test_taken_port_is_told_with_the_setting_that_moves_it(java: Path, name: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        done = preflight(java, "--ports", **{name: str(port)})

    assert done.returncode == 1
    assert done.stderr == f"Port {port} is taken; stop what listens there, or set {name} to another port.\n"


def test_broker_of_this_data_directory_may_still_be_there(java: Path, tmp_path: Path):
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "node-1.pid").write_text("1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        done = preflight(java, "--ports", MINDSTREAM_BROKER_PORT=port, MINDSTREAM_DATA_DIR=str(tmp_path))

    assert done.returncode == 0
