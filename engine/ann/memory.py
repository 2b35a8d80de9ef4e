"""Memory that an index no longer needs, given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 4 * 2**20
_KEPT_BYTES = 64 * 2**20
"""Free behind the small pieces, for the next ones: what glibc keeps at the most when left alone."""


def keep_large_pieces_apart() -> None:
    """Have the C library take each large piece of memory from the system, and give it back there when it is free.

    Left alone, glibc keeps pieces of up to 32 MB among the small ones as soon as the first of them was freed, and what
    lies between is never given back: after a rebuild and a swap some 5 % of what an index takes.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)  # it would be 128 kB from here on


def give_back_memory() -> None:
    """Have the C library give free memory back; where it can't be asked, as outside Linux, nothing is done.

    A graph is a hundred thousand small pieces, and glibc keeps what lies between pieces in use.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
