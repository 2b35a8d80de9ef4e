"""Loops over a user's candidates, compiled: as passes over arrays they would take several times as long.

numba compiles a function when it is first called with arguments of a kind, in some tenths of a second; nothing of it is
kept on disk. What is compiled runs without the interpreter's lock, checks no bounds, and does not raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Return *function* to be compiled, its arithmetic in the order in which it stands."""
    return cast(Function, numba.njit(nogil=True)(function))


def compiled_sum(function: Function) -> Function:
    """Return *function* to be compiled, its sums in whichever order is fastest on this CPU, always the same there."""
    return cast(Function, numba.njit(nogil=True, fastmath={"reassoc", "contract"})(function))
