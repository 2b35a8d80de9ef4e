"""Giving memory back is a request, and none of its failures matter."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from engine.ann.memory import give_back_memory


def missing(_name: None) -> SimpleNamespace:
    raise OSError("no C library")


@pytest.mark.parametrize("library", [missing, lambda _name: SimpleNamespace()])
def test_where_the_c_library_can_not_be_asked_nothing_happens(
    library: Callable[[None], SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", library)

    give_back_memory()


def test_the_c_library_is_asked_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(malloc_trim=kept.append))

    give_back_memory()

    assert kept == [0]
