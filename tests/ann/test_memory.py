"""Giving memory back is a request, and none of its failures matter."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from engine.ann.memory import give_back_memory, keep_large_pieces_apart


def missing(_name: None) -> SimpleNamespace:
    raise OSError("no C library")


@pytest.mark.parametrize("library", [missing, lambda _name: SimpleNamespace()])
def test_where_the_c_library_can_not_be_asked_nothing_happens(
    library: Callable[[None], SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", library)

    give_back_memory()
    keep_large_pieces_apart()


def test_the_c_library_is_asked_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(malloc_trim=kept.append))

    give_back_memory()

    assert kept == [0]


def test_large_pieces_are_given_back_whatever_was_freed_before() -> None:
    """In a process of its own: the rule is the whole process's."""
    program = (
        "import os\n"
        "import numpy as np\n"
        "from engine.ann.memory import keep_large_pieces_apart\n"
        "keep_large_pieces_apart()\n"
        "def held():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')\n"
        "np.ones(2**24, dtype=np.uint8)\n"  # freed: glibc would keep pieces of up to this size from now on
        "before = held()\n"
        "pieces = [np.ones(2**23, dtype=np.uint8) for _ in range(32)]\n"
        "pieces = pieces[-1:]\n"  # the last one lies above all of them
        "print((held() - before) / 2**20)\n"
    )

    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert float(printed) < 32
