from __future__ import annotations

from engine.serving.traffic import Traffic
from tests.builders import NOON_MS


def test_nothing_noted_has_no_rate():
    assert Traffic().summary() == {"total": None, "per_s": None, "series": []}


def test_the_rate_is_the_growth_over_the_time_it_took():
    traffic = Traffic()
    for second, total in enumerate((100, 120, 120, 150)):
        traffic.note(total, now_ms=NOON_MS + second * 1_000)

    assert traffic.summary() == {"total": 150, "per_s": 16.7, "series": [20.0, 0.0, 30.0]}


def test_a_clock_that_stands_still_or_a_log_that_shrank_is_no_rate():
    traffic = Traffic()
    traffic.note(100, now_ms=NOON_MS)
    traffic.note(120, now_ms=NOON_MS)
    traffic.note(20, now_ms=NOON_MS + 1_000)

    assert traffic.summary()["series"] == [0.0, 0.0]
