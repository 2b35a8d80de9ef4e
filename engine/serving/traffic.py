"""Traffic: how fast the `clicks` log grows, read off its end offsets once a second.

No consumer group and no reading of the clicks themselves: the difference of two sums of end offsets is what arrived in
between.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

WINDOW_S = 60
RATE_OVER_S = 10


class Traffic:
    """The growth of one topic during the last minute."""

    def __init__(self) -> None:
        self._totals: deque[tuple[int, int]] = deque(maxlen=WINDOW_S + 1)

    def note(self, total: int, *, now_ms: int) -> None:
        """Take in that the topic's end offsets add up to *total* at wall time *now_ms*."""
        self._totals.append((now_ms, total))

    @property
    def last_noted_ms(self) -> int | None:
        """Wall time of the newest observation; None before the first."""
        return self._totals[-1][0] if self._totals else None

    def summary(self) -> dict[str, Any]:
        """Return the clicks logged in all, per second over the last seconds, and each second's growth, oldest first."""
        if not self._totals:
            return {"total": None, "per_s": None, "series": []}
        totals = list(self._totals)
        recent = totals[-(RATE_OVER_S + 1) :]
        return {
            "total": totals[-1][1],
            "per_s": _rate(recent[0], recent[-1]),
            "series": [_rate(before, after) for before, after in pairwise(totals)],
        }


def _rate(before: tuple[int, int], after: tuple[int, int]) -> float:
    elapsed_ms = after[0] - before[0]
    return round(max(0, after[1] - before[1]) * 1000 / elapsed_ms, 1) if elapsed_ms > 0 else 0.0
