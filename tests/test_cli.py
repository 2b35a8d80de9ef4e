from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import duration_s
from engine.errors import ConfigError, MalformedEvent
from engine.log import Publisher
from engine.settings import Settings
from engine.streams.dead_letters import WHOLE_BYTES, DeadLetters, Rejected
from tests.conftest import free_port
from tests.streams.intake import RecordOf

COMMANDS = [
    "up",
    "broker",
    "engine",
    "serve",
    "train",
    "replay",
    "simulate",
    "evaluate",
    "audit",
    "doctor",
    "topics",
    "models",
    "windows",
    "checkpoints",
    "erase",
    "dead-letters",
    "data",
]


def mindstream(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MINDSTREAM_", "KAFKA_"))}
    return subprocess.run(
        [sys.executable, "-m", "engine.cli", *arguments],
        cwd=folder,
        env=environment | variables | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_names_every_command(tmp_path: Path):
    shown = mindstream("--help", folder=tmp_path).stdout

    assert [command for command in COMMANDS if command not in shown] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(tmp_path: Path, command: str):
    answer = mindstream(command, "--help", folder=tmp_path)

    assert answer.returncode == 0
    assert "Usage" in answer.stdout


def test_wrong_setting_exits_with_2_naming_key_value_and_range(tmp_path: Path):
    answer = mindstream("serve", folder=tmp_path, MINDSTREAM_LIST_SIZE="0")

    assert answer.returncode == 2
    assert "MINDSTREAM_LIST_SIZE must be a whole number, at least 1, at most 1000, got '0'" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_missing_data_is_one_sentence_and_exit_code_1(tmp_path: Path):
    answer = mindstream("up", "--data", "no-such-folder", folder=tmp_path)

    assert answer.returncode == 1
    assert "no-such-folder" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_broker_that_is_away_is_one_sentence_without_the_library_s_own(tmp_path: Path):
    answer = mindstream("models", "list", folder=tmp_path, KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}")

    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert "check that the broker runs" in answer.stderr


@pytest.mark.kafka
def test_redrive_says_how_many_letters_went_back(settings: Settings):
    publish_letters(settings)
    variables = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "MINDSTREAM_TOPIC_PREFIX": settings.topic_prefix,
    }

    answer = mindstream("dead-letters", "redrive", "--reason", "json", folder=settings.data_dir, **variables)

    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {"sent": 2, "incomplete": 1}


def publish_letters(settings: Settings) -> None:
    """Write three dead letters, the last of a message too long to be kept whole."""

    async def publish() -> None:
        publisher = Publisher(settings)
        error = MalformedEvent("json", "the value is not JSON at character 0")
        values = [b"}{", b"[", b"x" * (WHOLE_BYTES + 1)]
        rejected = [Rejected(RecordOf(offset, value), 0, error) for offset, value in enumerate(values)]
        try:
            await DeadLetters(settings, publisher, "e1").send(rejected)
        finally:
            await publisher.stop()

    asyncio.run(publish())


def test_durations_carry_a_unit():
    assert [duration_s(text) for text in ("90s", "15m", "2h", "30d", "1.5m")] == [90, 900, 7200, 2_592_000, 90]


@pytest.mark.parametrize("text", ["15", "m", "", "-5m", "0s", "1e3s", "15 m"])
def test_duration_without_a_number_and_a_unit_is_refused(text: str):
    with pytest.raises(ConfigError, match="such as 90s"):
        duration_s(text)
