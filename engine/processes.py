"""Child processes of `mindstream up`: started with a log file each, kept alive, stopped politely, never orphaned.

A child runs in a session of its own, so a terminal's Ctrl-C reaches only the parent, which stops the children in
order. On Linux the kernel ends a child whose parent died, `kill -9` included.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
CRASHES_KEPT_UP_WITH = 5
"""A child that crashed this often within `CRASH_WINDOW_S` stays down."""
CRASH_WINDOW_S = 120.0
LAST_BYTES = 16_384
"""How much of a log's end is looked at for its last lines; a log grows for as long as the system runs."""


class Child:
    """One `mindstream` sub-command as a process; its output goes to *log_path*, appended."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_path: Path,
        niceness: int = 0,
    ) -> None:
        self.name, self._niceness = name, niceness
        self._command = [sys.executable, "-m", "engine.cli", *arguments]
        self._environment = dict(environment)
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._crashed_at: list[float] = []

    def start(self) -> None:
        """Start the process; call it from the main thread, whose death ends the child."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self._before_exec,
            )

    def _before_exec(self) -> None:
        die_with_parent()
        os.nice(self._niceness)

    @property
    def pid(self) -> int | None:
        """Process id, once started."""
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll() if self._process else None

    def revive(self, *, now: float) -> bool:
        """Start the process again if it crashed; False when it crashes too often to be worth it."""
        if self.exit_code in (None, 0):
            return True
        self._crashed_at = [at for at in self._crashed_at if now - at < CRASH_WINDOW_S] + [now]
        if len(self._crashed_at) > CRASHES_KEPT_UP_WITH:
            return False
        self.start()
        return True

    def ask_to_stop(self) -> None:
        """Send SIGTERM, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait_until_stopped(self, *, timeout_s: float) -> bool:
        """Wait for the end, with SIGKILL after *timeout_s*; True if it ended by itself."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True

    def last_lines(self, count: int = 5) -> str:
        """Return the end of its log, to show when it failed."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_BYTES))
                end = log.read()
        except FileNotFoundError:
            return ""
        return "\n".join(end.decode(errors="replace").splitlines()[-count:])


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies; does nothing where there is no Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_all(children: Sequence[Child], *, timeout_s: float = 12.0) -> list[str]:
    """Stop *children* together; return the names of those that had to be killed."""
    for child in children:
        child.ask_to_stop()
    deadline = time.monotonic() + timeout_s
    return [
        child.name
        for child in children
        if not child.wait_until_stopped(timeout_s=max(0.1, deadline - time.monotonic()))
    ]


def child_environment(values: Mapping[str, object]) -> dict[str, str]:
    """Return this process's environment with *values* put over it; a None takes the variable away."""
    environment = dict(os.environ)
    for key, value in values.items():
        if value is None:
            environment.pop(key, None)
        else:
            environment[key] = str(value)
    return environment
