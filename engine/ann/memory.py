"""Memory that an index no longer needs, given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Have the C library give free memory back; where it can't be asked, as outside Linux, nothing is done.

    A graph is a hundred thousand small pieces, and glibc keeps what lies between pieces in use.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
