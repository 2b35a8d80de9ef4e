"""Freshness: how long clicks took to become readable during the last minute, for the page.

Prometheus keeps the histogram (`mindstream_click_to_visible_seconds`); this is the same observation in a short sliding
window, kept in memory, so that the page can draw it without a Prometheus. Time is given, never read.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WINDOW_S = 60
SAMPLES_PER_SECOND = 1_000
"""A second with more observations keeps a fair sample of them."""


@dataclass(slots=True)
class _Second:
    count: int = 0
    samples: list[int] = field(default_factory=list)

    def weighted(self) -> list[tuple[int, float]]:
        """Return each sample with how many observations it stands for."""
        return [(sample, self.count / len(self.samples)) for sample in self.samples]


class Freshness:
    """A sliding minute of latencies, by the second in which they were observed."""

    def __init__(self, *, seed: int = 7) -> None:
        self._seconds: dict[int, _Second] = {}
        self._random = random.Random(seed)

    def observe(self, latency_ms: int, *, now_ms: int) -> None:
        """Take one latency in, observed at wall time *now_ms*."""
        second = self._seconds.get(now_ms // 1000)
        if second is None:
            self._forget(now_ms)
            second = self._seconds[now_ms // 1000] = _Second()
        second.count += 1
        if len(second.samples) < SAMPLES_PER_SECOND:
            second.samples.append(latency_ms)
        elif (place := self._random.randrange(second.count)) < SAMPLES_PER_SECOND:
            second.samples[place] = latency_ms

    def summary(self, *, now_ms: int) -> dict[str, Any]:
        """Return count, p50 and p99 of the last minute, and of each of its seconds, oldest first.

        The second that is still running is left out of the series, and counted in the total. Percentiles are None
        where nothing was observed.
        """
        self._forget(now_ms)
        seconds = sorted(self._seconds.items())
        everything = sorted(pair for _, second in seconds for pair in second.weighted())
        this_second = now_ms // 1000
        series = []
        for at in range(this_second - WINDOW_S, this_second):
            second = self._seconds.get(at, _EMPTY)
            ordered = sorted(second.weighted())
            series.append(
                {
                    "at_s": at,
                    "count": second.count,
                    "p50_ms": percentile(ordered, 0.50),
                    "p99_ms": percentile(ordered, 0.99),
                }
            )
        return {
            "window_s": WINDOW_S,
            "count": sum(second.count for _, second in seconds),
            "p50_ms": percentile(everything, 0.50),
            "p99_ms": percentile(everything, 0.99),
            "series": series,
        }

    def _forget(self, now_ms: int) -> None:
        oldest = now_ms // 1000 - WINDOW_S
        for at in [at for at in self._seconds if at < oldest]:
            del self._seconds[at]


_EMPTY = _Second()


def percentile(ordered: Sequence[tuple[int, float]], share: float) -> int | None:
    """Return the smallest of the ascending *ordered* that *share* of the weight doesn't exceed; None of nothing.

    Args:
        ordered: values, each with its weight.
        share: 0 to 1.
    """
    wanted = share * sum(weight for _, weight in ordered)
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        if reached >= wanted - 1e-9 * wanted:
            return value
    return ordered[-1][0] if ordered else None
