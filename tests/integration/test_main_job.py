"""The main job from start to end: `mindstream up`, as a newcomer runs it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import System, children_of, read_report, start_up, stop, system_environment

pytestmark = [pytest.mark.system, pytest.mark.slow]
REAL_EVENTS = next(Path(os.environ.get("MINDSTREAM_TEST_DATA") or "/nowhere").glob("online-retail"), None)


def run_to_the_end(environment: dict[str, str], folder: Path, *arguments: str, timeout_s: float) -> dict[str, Any]:
    report_path = folder / "report.json"
    running = start_up(environment, folder / "up.log", "--exit-when-replayed", "--report", str(report_path), *arguments)
    try:
        running.wait_until(lambda: running.process.poll() is not None, what="the end of the run", timeout_s=timeout_s)
    except BaseException:
        if running.process.poll() is None:
            stop(running)
        if running.process.returncode != 0:
            raise
    assert running.process.returncode == 0, running.output()[-3000:]
    return read_report(report_path)


@pytest.mark.timeout(600)
def test_real_events_flow_to_lists_that_beat_popular_by_half(tmp_path: Path):
    if not REAL_EVENTS:
        pytest.skip("MINDSTREAM_TEST_DATA names no folder with online-retail in it")
    environment = system_environment(tmp_path / "data", TRAIN_MAX_SECONDS=75)

    report = run_to_the_end(environment, tmp_path, "--data", str(REAL_EVENTS), timeout_s=560)

    assert_every_figure_is_there_and_fits(report)
    assert report["simulated"] is False
    assert report["recall_at_50"] >= 1.5 * report["popular_recall_at_50"]


@pytest.mark.timeout(420)
def test_simulated_events_flow_to_lists_and_every_figure_is_reported(tmp_path: Path):
    if REAL_EVENTS:
        pytest.skip("the same is asked of real events, which are here")
    environment = system_environment(tmp_path / "data", TRAIN_MAX_SECONDS=10)

    report = run_to_the_end(environment, tmp_path, "--clicks", "6000", timeout_s=400)

    assert_every_figure_is_there_and_fits(report)
    assert report["simulated"] is True


def assert_every_figure_is_there_and_fits(report: dict[str, Any]) -> None:
    assert {name for name, figure in report.items() if figure is None} == set()
    assert report["clicks_applied"] == report["clicks_sent"] > 5_000
    assert report["lists_personal"] >= 0.95 * report["users"]
    assert report["first_personal_list_s"] <= 180
    assert report["versions"][-1] == "0001"


@pytest.mark.timeout(420)
def test_second_start_goes_on_from_the_state_on_disk(tmp_path: Path):
    environment = system_environment(tmp_path / "data", TRAIN_MAX_SECONDS=10)
    first = start_up(environment, tmp_path / "first.log", "--clicks", "6000", "--train-every", "1h")
    first.wait_until(first.is_settled, what="a trained version behind every list")
    version, lists = first.status()["model"]["version"], first.status()["lists"]["held"]
    below = children_of(first.process.pid)

    assert stop(first) == 0
    assert [pid for pid in below if Path(f"/proc/{pid}").exists()] == []

    second = start_up(environment, tmp_path / "second.log", "--clicks", "6000", "--train-every", "1h")
    try:
        second.wait_until(second.is_settled, what="the lists of before")
        assert "replayed before" in second.output()
        assert second.status()["lists"]["held"] >= lists
        assert second.status()["model"]["version"] >= version
    finally:
        assert stop(second) == 0


def test_every_part_dies_with_a_killed_parent(tmp_path: Path):
    environment = system_environment(tmp_path / "data")
    running = start_up(environment, tmp_path / "up.log", "--clicks", "6000")
    running.wait_until(lambda: len(children_of(running.process.pid)) >= 4, what="the start of the parts")
    below = children_of(running.process.pid)

    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait()

    wait_for_end(below)


def wait_for_end(pids: list[int], *, timeout_s: float = 40) -> None:
    import time

    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.2)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_running_system_reports_what_it_does(system: System):
    status = system.status()

    assert status["lists"]["held"] > 0
    assert status["model"]["version"] != "0000"
    assert "simulated" in system.output()
