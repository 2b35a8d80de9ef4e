from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from engine.doctor import Check, check_setup, check_start, listening_ports
from engine.errors import SetupError
from engine.serving.server import listen, serve
from engine.settings import Settings
from engine.streams.topics import create_topics
from tests.conftest import free_port


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings on ports that nobody uses."""
    broker, serve, engine, trainer = free_port(2), free_port(), free_port(), free_port()
    return Settings(
        data_dir=tmp_path / "data",
        broker_port=broker,
        serve_port=serve,
        engine_metrics_port=engine,
        trainer_metrics_port=trainer,
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_machine_that_can_run_the_system_passes_every_check(settings: Settings):
    checks = check_setup(settings)

    assert [check for check in checks if not check.ok] == []
    assert [check.name for check in checks if not check.name.startswith("port")] == [
        "python",
        "libraries",
        "disk",
        "java",
        "Kafka 4.1.1",
        "kafka",
        "models",
    ]
    assert by_name(checks)["kafka"].detail == "the local broker does not run; `mindstream up` starts it"


def test_missing_java_fails_with_a_remedy_and_the_other_checks_still_run(settings: Settings, tmp_path: Path):
    checks = by_name(check_setup(settings, search_path=str(tmp_path)))

    assert not checks["java"].ok
    assert "install a Java runtime" in checks["java"].remedy
    assert checks["models"].ok


def test_port_of_another_program_fails_with_the_setting_that_moves_it(settings: Settings, taken_port: int):
    checks = by_name(check_setup(settings.model_copy(update={"serve_port": taken_port})))

    found = checks[f"port {taken_port}"]
    assert not found.ok
    assert "MINDSTREAM_SERVE_PORT" in found.remedy


def test_cluster_that_does_not_answer_fails_and_java_is_not_asked_for(settings: Settings, tmp_path: Path):
    away = settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{free_port()}"})

    checks = by_name(check_setup(away, search_path=str(tmp_path)))

    assert not checks["kafka"].ok
    assert "nothing listens there" in checks["kafka"].detail
    assert "java" not in checks
    assert "topics" not in checks


@pytest.mark.kafka
async def test_topics_of_a_cluster_are_compared_with_the_contract(broker: Settings, settings: Settings):
    ours = settings.model_copy(
        update={"kafka_bootstrap_servers": broker.bootstrap_servers, "topic_prefix": "doctor-", "clicks_partitions": 2}
    )
    before = by_name(await asyncio.to_thread(check_setup, ours))
    await create_topics(ours)
    after = by_name(await asyncio.to_thread(check_setup, ours))
    other = by_name(await asyncio.to_thread(check_setup, ours.model_copy(update={"clicks_partitions": 3})))

    assert before["topics"].ok
    assert "the first start makes them" in before["topics"].detail
    assert after["topics"] == Check("topics", True, "all 6 are there")
    assert not other["topics"].ok
    assert "it has 2 partitions, expected 3" in other["topics"].detail


def test_start_is_refused_without_java_unless_a_cluster_is_given(settings: Settings, tmp_path: Path):
    with pytest.raises(SetupError, match="needs Java 17"):
        check_start(settings, search_path=str(tmp_path))

    check_start(settings.model_copy(update={"kafka_bootstrap_servers": "kafka:9092"}), search_path=str(tmp_path))


def test_start_is_refused_while_a_port_is_taken(settings: Settings, taken_port: int):
    with pytest.raises(SetupError, match=rf"port {taken_port} \(MINDSTREAM_ENGINE_METRICS_PORT\) is taken; stop"):
        check_start(settings.model_copy(update={"engine_metrics_port": taken_port}))


def test_start_is_refused_when_two_listeners_share_a_port(settings: Settings):
    shared = settings.model_copy(update={"trainer_metrics_port": settings.engine_metrics_port})

    with pytest.raises(SetupError, match="MINDSTREAM_ENGINE_METRICS_PORT and MINDSTREAM_TRAINER_METRICS_PORT are both"):
        check_start(shared)


def test_listener_that_is_turned_off_needs_no_port(settings: Settings):
    quiet = settings.model_copy(update={"engine_metrics_port": 0, "trainer_metrics_port": 0})

    assert [name for name, _ in listening_ports(quiet)] == [
        "MINDSTREAM_BROKER_PORT",
        "MINDSTREAM_BROKER_PORT + 1",
        "MINDSTREAM_SERVE_PORT",
    ]


async def test_query_service_with_a_token_is_known_as_ours(settings: Settings, tmp_path: Path):
    settings = settings.model_copy(update={"serve_port": free_port(), "api_token": SecretStr("correct-horse-battery")})
    with listen(settings) as listener:
        serving = asyncio.create_task(serve(settings, listener))
        try:
            checks = by_name(await asyncio.to_thread(check_setup, settings))
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    assert checks[f"port {settings.serve_port}"].detail == "in use by MindStream (MINDSTREAM_SERVE_PORT)"
