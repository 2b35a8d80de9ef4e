from __future__ import annotations

import random

from engine.serving.freshness import SAMPLES_PER_SECOND, Freshness, percentile
from tests.builders import NOON_MS


def test_nothing_observed_has_no_percentiles_and_sixty_empty_seconds():
    summary = Freshness().summary(now_ms=NOON_MS)

    assert (summary["count"], summary["p50_ms"], summary["p99_ms"]) == (0, None, None)
    assert [second["count"] for second in summary["series"]] == [0] * 60


def test_a_latency_stands_in_the_second_in_which_it_was_observed():
    #  -60 s ............ -2 s   -1 s   now
    #                     80 ms  100 ms (running second, not drawn yet)
    freshness = Freshness()
    freshness.observe(80, now_ms=NOON_MS - 2_000)
    freshness.observe(100, now_ms=NOON_MS - 500)

    series = freshness.summary(now_ms=NOON_MS)["series"]

    assert [second["p50_ms"] for second in series[-3:]] == [None, 80, 100]


def test_a_latency_is_forgotten_after_a_minute():
    freshness = Freshness()
    freshness.observe(80, now_ms=NOON_MS)

    assert freshness.summary(now_ms=NOON_MS + 60_000)["count"] == 1
    assert freshness.summary(now_ms=NOON_MS + 61_000)["count"] == 0


def test_a_busy_second_keeps_a_fair_sample_and_the_true_count():
    freshness = Freshness()
    for latency_ms in random.Random(7).sample(range(20_000), 20_000):
        freshness.observe(latency_ms, now_ms=NOON_MS)

    summary = freshness.summary(now_ms=NOON_MS + 1_000)

    assert summary["count"] == 20_000
    assert 9_000 < summary["p50_ms"] < 11_000
    assert sum(len(second.samples) for second in freshness._seconds.values()) == SAMPLES_PER_SECOND


def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed():
    hundred = [(value, 1.0) for value in range(1, 101)]

    assert [percentile(hundred, share) for share in (0.5, 0.99)] == [50, 99]
    assert [percentile([(5, 1.0)], share) for share in (0.5, 0.99)] == [5, 5]
    assert percentile([], 0.5) is None


def test_a_busy_second_counts_in_the_minute_as_much_as_it_observed():
    freshness = Freshness()
    for _ in range(20_000):
        freshness.observe(2_000, now_ms=NOON_MS)
    for second in range(1, 55):
        for _ in range(20):
            freshness.observe(50, now_ms=NOON_MS + second * 1_000)

    summary = freshness.summary(now_ms=NOON_MS + 55_000)

    assert (summary["p50_ms"], summary["p99_ms"]) == (2_000, 2_000)
