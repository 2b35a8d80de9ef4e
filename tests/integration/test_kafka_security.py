"""Every client of the project on a cluster that demands TLS with passwords or with certificates."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.errors import LogError
from engine.log import check_access
from engine.model.registry import Registry
from engine.settings import Settings
from engine.store.dump import dump_windows
from tests.builders import NOON_MS
from tests.conftest import free_port
from tests.integration.secured import HOST, PASSWORD, USERNAME, Authority, SecuredBroker
from tests.served import ITEM_IDS, make_parts

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="the certificates are made with openssl"),
]

WRONG = "another-battery-staple"
CLICKS, USERS = 1_500, 50
WITHIN_S = 120
"""Patience with one step; on an idle machine each takes a few seconds."""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    broker = SecuredBroker(tmp_path_factory.mktemp("secured"))
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


class Site:
    """Commands with one set of settings and one data folder; everything that they write is kept."""

    def __init__(self, folder: Path, client: dict[str, Any]) -> None:
        self.folder, self.port = folder, free_port()
        own: dict[str, Any] = {
            "data_dir": folder / "data",
            "serve_port": self.port,
            "engine_metrics_port": 0,
            "log_level": "debug",
            "train_min_clicks": 10,
        }
        self.settings = Settings(**{**own, **client})
        outside = {"kafka_bootstrap_servers": "KAFKA_BOOTSTRAP_SERVERS"}
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("MINDSTREAM_")}
        for name, value in {**own, **client}.items():
            if value is not None:
                self._environment[outside.get(name, f"MINDSTREAM_{name.upper()}")] = str(value)
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *arguments: str) -> str:
        """Start a command and return its name for the other methods."""
        name = "-".join(arguments)
        with self._log(name).open("wb") as output:
            command = [sys.executable, "-m", "engine.cli", *arguments]
            self.started[name] = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        return name

    def run(self, *arguments: str) -> str:
        """Run a command that must succeed, and return what it wrote."""
        name = self.start(*arguments)
        assert self.wait(name) == 0, self.said(name)
        return self.said(name)

    def wait(self, name: str) -> int:
        return self.started[name].wait(WITHIN_S)

    def said(self, name: str) -> str:
        return self._log(name).read_text()

    def stop(self, name: str) -> int:
        self.started[name].send_signal(signal.SIGTERM)
        return self.wait(name)

    def until(self, is_true: Callable[[], bool]) -> None:
        """Wait until *is_true*, as long as every server runs."""
        deadline = time.monotonic() + WITHIN_S
        while not is_true():
            said = "\n".join(self.said(name)[-2_000:] for name in self.started)
            assert time.monotonic() < deadline, said
            assert all(process.poll() in (None, 0) for process in self.started.values()), said
            time.sleep(0.1)

    def ask(self, path: str) -> dict[str, Any]:
        """Return what the query service answers; empty while it does not."""
        try:
            answer = httpx.get(f"http://{HOST}:{self.port}{path}", timeout=10)
        except httpx.TransportError:
            return {}
        found: dict[str, Any] = answer.json() if answer.is_success else {}
        return found

    def _log(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '_')}.log"


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Site]]:
    made: list[Site] = []

    def make(client: dict[str, Any]) -> Site:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Site(folder, client))
        return made[-1]

    yield make
    for process in (process for site in made for process in site.started.values()):
        if process.poll() is None:
            process.kill()
            process.wait()


def windows_hold(settings: Settings, user: str, item: str) -> bool:
    windows = {window["user_id"]: window["clicks"] for window in dump_windows(settings)}
    return any(click["item_id"] == item for click in windows.get(user, []))


def test_the_whole_system_works_with_user_and_password_over_tls(
    secured: SecuredBroker, make_site: Callable[[dict[str, Any]], Site]
) -> None:
    site = make_site(secured.with_password())

    assert "created" in site.run("topics", "create")
    assert "1,500 clicks and" in site.run("simulate", "--clicks", str(CLICKS), "--users", str(USERS), "--items", "200")
    engine, serve = site.start("engine"), site.start("serve")
    assert "Published version 0000" in site.run("train", "--version-zero")
    Registry(site.settings.registry).publish(make_parts(), created_at_ms=NOON_MS)
    assert "version 0001 is current" in site.run("models", "promote", "0001")
    site.until(lambda: site.ask("/health/ready") == {"status": "ready"})

    click = {"user_id": "walker", "item_id": ITEM_IDS[7], "clicked_at_ms": time.time_ns() // 1_000_000}
    assert httpx.post(f"http://{HOST}:{site.port}/v1/clicks", json=click, timeout=20).is_success
    site.until(lambda: windows_hold(site.settings, "walker", ITEM_IDS[7]))
    site.until(lambda: site.ask("/v1/users/walker/recall").get("source") == "personal")
    report = site.run("audit")

    assert "equal to the log" in report
    assert f"{CLICKS + 1} offsets of 4 partitions" in report
    assert site.run("dead-letters", "list") == ""
    assert site.run("models", "list").splitlines()[-1].startswith("* 0001")
    assert [site.stop(engine), site.stop(serve)] == [0, 0]
    assert [name for name in site.started if PASSWORD in site.said(name)] == []


@pytest.mark.parametrize("way", ["certificate", "plain", "clear"])
def test_aiokafka_and_kafka_python_get_in_every_way(
    secured: SecuredBroker, make_site: Callable[[dict[str, Any]], Site], way: str
) -> None:
    clients = {
        "certificate": secured.with_certificate(),
        "plain": secured.with_password(kafka_sasl_mechanism="PLAIN"),
        "clear": secured.with_clear_password(),
    }
    site = make_site({**clients[way], "topic_prefix": f"{way}-"})

    assert "created" in site.run("topics", "create")
    Registry(site.settings.registry).publish_popular(make_parts(), created_at_ms=NOON_MS)
    assert "version 0000 is current" in site.run("models", "promote", "0000")
    assert "* 0000" in site.run("models", "list")
    assert [name for name in site.started if PASSWORD in site.said(name)] == []


def test_a_wrong_password_ends_every_command_with_one_sentence(
    secured: SecuredBroker, make_site: Callable[[dict[str, Any]], Site]
) -> None:
    site = make_site(secured.with_password(kafka_password=WRONG))
    commands = [("engine",), ("serve",), ("train", "--every", "15m"), ("audit",), ("topics", "create")]

    names = [site.start(*command) for command in commands]

    assert [site.wait(name) for name in names] == [1] * len(names)
    for name in names:
        assert site.said(name).startswith(f"mindstream: Kafka at {site.settings.bootstrap_servers} refuses user")
        assert len(site.said(name).splitlines()) == 1
        assert WRONG not in site.said(name)


async def test_each_refusal_names_the_setting_to_correct(secured: SecuredBroker, tmp_path: Path) -> None:
    stranger = Authority.make(tmp_path, "stranger")
    unknown = stranger.issue("unknown", address=HOST)
    by_name = secured.with_password()["kafka_bootstrap_servers"].replace(HOST, "localhost")
    refused = [
        (secured.with_password(kafka_password=WRONG), f"refuses user '{USERNAME}': .*MINDSTREAM_KAFKA_PASSWORD"),
        (
            secured.with_password(kafka_sasl_mechanism="SCRAM-SHA-256"),
            "SCRAM-SHA-256 .*MINDSTREAM_KAFKA_SASL_MECHANISM",
        ),
        (secured.with_password(kafka_ca_file=None), "can't be trusted: .*MINDSTREAM_KAFKA_CA_FILE"),
        (secured.with_password(kafka_ca_file=stranger.own.cert), "can't be trusted: .*MINDSTREAM_KAFKA_CA_FILE"),
        (secured.with_password(kafka_bootstrap_servers=by_name), "not valid for 'localhost'.*KAFKA_BOOTSTRAP_SERVERS"),
        (secured.with_certificate(kafka_cert_file=None), "this client's certificate: .*MINDSTREAM_KAFKA_CERT_FILE"),
        (
            secured.with_certificate(kafka_cert_file=unknown.cert, kafka_key_file=unknown.key),
            "this client's certificate: .*MINDSTREAM_KAFKA_CERT_FILE",
        ),
    ]

    for client, sentence in refused:
        with pytest.raises(LogError, match=sentence):
            await check_access(Settings(**client))


async def test_a_client_without_tls_is_told_that_the_cluster_hangs_up(secured: SecuredBroker) -> None:
    settings = Settings(**secured.with_password(kafka_security_protocol="PLAINTEXT"))

    assert "closed" in str(await check_access(settings))
