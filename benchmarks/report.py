"""What every benchmark says: on which machine, what it is held to, what falls short, and its figures in a file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Check = dict[str, Any]
"""One bar: its name, the value measured, what it must be, and whether it holds."""


def machine(*more: str) -> str:
    """Return where this runs, and what else matters for it."""
    words = (f"{os.cpu_count()} cores {platform.machine()}", platform.system(), f"Python {platform.python_version()}")
    return ", ".join([*words, *more])


def at_most(name: str, value: float, bar: float) -> Check:
    """Return the check that *value* is at most *bar*."""
    return {"name": name, "value": value, "must": f"<= {bar:g}", "holds": bool(value <= bar)}


def at_least(name: str, value: float, bar: float) -> Check:
    """Return the check that *value* is at least *bar*."""
    return {"name": name, "value": value, "must": f">= {bar:g}", "holds": bool(value >= bar)}


def conclude(figures: Mapping[str, Any], file: Path | None) -> int:
    """Write *figures* to *file*, if there is one, say which of their checks fall short, and return the exit code."""
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n")
    short = [check["name"] for check in figures["checks"] if not check["holds"]]
    print("falls short: " + ", ".join(short) if short else "all checks hold")
    return 1 if short else 0
