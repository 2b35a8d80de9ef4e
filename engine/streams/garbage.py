"""Python's collector of cycles, told to look less often: ingest makes thousands of objects a batch, none in a cycle."""

from __future__ import annotations

import gc

THRESHOLD = 50_000
"""New objects that live at once before a look at them; with Python's 700 the looks took a tenth of ingest's time."""


def seldom_collect_garbage() -> None:
    """Set the threshold, and leave what the process has made so far out of every look."""
    gc.freeze()
    gc.set_threshold(THRESHOLD)
