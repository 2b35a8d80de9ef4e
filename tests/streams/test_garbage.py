from __future__ import annotations

import subprocess
import sys


def test_a_batch_of_records_does_not_set_off_the_collector() -> None:
    """In a process of its own: the threshold is the whole process's."""
    program = (
        "import gc\n"
        "from engine.streams.garbage import seldom_collect_garbage\n"
        "seldom_collect_garbage()\n"
        "looks = gc.get_stats()[0]['collections']\n"
        "batch = [[number] for number in range(10_000)]\n"
        "print(gc.get_stats()[0]['collections'] - looks, gc.get_freeze_count() > 0)\n"
    )

    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert printed.split() == ["0", "True"]
