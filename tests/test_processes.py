from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engine.processes import CRASH_WINDOW_S, CRASHES_KEPT_UP_WITH, Child, child_environment, stop_all


class Script(Child):
    """A child that runs a line of Python in place of a `mindstream` command."""

    def __init__(self, code: str, *, folder: Path, niceness: int = 0) -> None:
        super().__init__(
            "script", [], environment=child_environment({}), log_path=folder / "script.log", niceness=niceness
        )
        self._command = [sys.executable, "-u", "-c", code]


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


SLEEPER = "import signal, time; print('ready'); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(60)"


def test_children_are_stopped_together_and_only_a_stubborn_one_is_killed(tmp_path: Path):
    polite, stubborn = Script(SLEEPER, folder=tmp_path / "a"), Script(STUBBORN, folder=tmp_path / "b")
    stubborn.name = "stubborn"
    for child in (polite, stubborn):
        child.start()
        wait_until(lambda child=child: child.last_lines() == "ready")

    killed = stop_all([polite, stubborn], timeout_s=1.0)

    assert killed == ["stubborn"]
    assert (polite.exit_code, stubborn.exit_code) == (-signal.SIGTERM, -signal.SIGKILL)


def test_crashed_child_is_started_again_until_it_crashes_too_often(tmp_path: Path):
    child = Script("raise SystemExit(3)", folder=tmp_path)
    child.start()

    revived = []
    for second in range(CRASHES_KEPT_UP_WITH + 1):
        wait_until(lambda: child.exit_code == 3)
        revived.append(child.revive(now=float(second)))

    assert revived == [True] * CRASHES_KEPT_UP_WITH + [False]
    assert child.revive(now=CRASH_WINDOW_S * 2)
    stop_all([child])


def test_child_that_ended_well_stays_down(tmp_path: Path):
    child = Script("pass", folder=tmp_path)
    child.start()
    wait_until(lambda: child.exit_code == 0)
    pid = child.pid

    assert child.revive(now=0.0)
    assert child.pid == pid


def test_child_runs_at_the_niceness_it_was_given(tmp_path: Path):
    child = Script("import os; print(os.nice(0))", folder=tmp_path, niceness=5)
    child.start()
    wait_until(lambda: child.exit_code == 0)

    assert int(child.last_lines()) == os.nice(0) + 5


def test_last_lines_of_a_long_log_are_its_end(tmp_path: Path):
    child = Script("pass", folder=tmp_path)
    assert child.last_lines() == ""

    child.log_path.write_text("".join(f"line {number}\n" for number in range(100_000)))

    assert child.last_lines(2) == "line 99998\nline 99999"


def test_child_does_not_outlive_a_killed_parent(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from tests.test_processes import Script, SLEEPER\n"
        f"child = Script(SLEEPER, folder=Path({str(tmp_path)!r})); child.start(); print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child_pid = int(parent.stdout.readline())

    parent.kill()
    parent.wait()
    parent.stdout.close()

    wait_until(lambda: not is_running(child_pid))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
