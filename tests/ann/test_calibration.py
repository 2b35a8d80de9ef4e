from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from engine.ann import calibration
from engine.ann.calibration import Choice, choose
from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex
from tests.ann.vectors import make_vectors

ITEMS = 3_000


def ticks(*seconds: float) -> Callable[[], float]:
    """Return a clock by which the calls that are timed take these times, one after the other, three times each."""
    now = 0.0
    times: Iterator[float] = iter([second for second in seconds for _ in range(3)])
    is_end = False

    def clock_s() -> float:
        nonlocal now, is_end
        if is_end:
            now += next(times)
        is_end = not is_end
        return now

    return clock_s


def chosen(clock_s: Callable[[], float], *, target: float = 0.95, most: int = 2_000, k: int = 20) -> Choice:
    vectors = make_vectors(ITEMS, 32, seed=2)
    graph = HnswIndex.build(vectors, ef=10)
    return choose(
        graph, ExactIndex(vectors), make_vectors(24, 32, seed=6), k=k, target=target, most=most, clock_s=clock_s
    )


def choose_among(vectors: np.ndarray, *, k: int) -> Choice:
    graph, exact, queries = HnswIndex.build(vectors), ExactIndex(vectors), make_vectors(3, 32)
    return choose(graph, exact, queries, k=k, target=0.98, most=10, clock_s=ticks(1, 3, 4))


def test_the_faster_one_is_chosen_and_exact_search_where_it_is_nearly_as_fast() -> None:
    assert chosen(ticks(0.1, 0.21, 0.3)).backend == "hnsw"
    assert chosen(ticks(0.1, 0.19, 0.3)).backend == "exact"
    assert chosen(ticks(0.2, 0.1, 0.3)).backend == "exact"
    assert chosen(ticks(0.2, 0.3, 0.1)).backend == "exact_half"


def test_half_precision_is_not_chosen_where_it_misses_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def candidates(index: ExactIndex, interests: np.ndarray, k: int) -> np.ndarray:
        found = whole(index, interests, k)
        return np.where(np.arange(k) % 2, -1, found) if index.is_half else found

    whole = ExactIndex.candidates
    monkeypatch.setattr(ExactIndex, "candidates", candidates)

    choice = chosen(ticks(0.2, 0.5, 0.1))

    assert choice.backend == "hnsw"
    assert choice.half_recall is not None
    assert choice.half_recall < 0.6


def test_half_precision_is_not_tried_where_its_copy_would_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST_HALVES", ITEMS * 32 - 1)

    choice = chosen(ticks(0.2, 0.5))

    assert (choice.half_recall, choice.half_ms) == (None, None)


def test_the_graph_looks_at_as_many_candidates_as_the_target_takes() -> None:
    wide, wider = chosen(ticks(1, 3, 4), target=0.9), chosen(ticks(1, 3, 4), target=0.99)

    assert wide.recall >= 0.9
    assert wider.recall >= 0.99
    assert 100 <= wide.ef < wider.ef
    assert isinstance(wider.index, HnswIndex)
    assert wider.index.ef == wider.ef


def test_widening_ends_at_the_maximum() -> None:
    choice = chosen(ticks(1, 3, 4), target=1.0, most=120)

    assert choice.ef == 120
    assert choice.recall < 1.0


def test_times_are_those_of_a_query() -> None:
    choice = chosen(ticks(0.24, 0.48, 0.72))

    times = (choice.graph_ms, choice.exact_ms, choice.half_ms)
    assert times == (pytest.approx(10.0), pytest.approx(20.0), pytest.approx(30.0))


def test_recall_is_counted_against_the_exact_nearest() -> None:
    vectors, queries = make_vectors(ITEMS, 32, seed=2), make_vectors(24, 32, seed=6)
    graph = HnswIndex.build(vectors, ef=10)
    choice = choose(graph, ExactIndex(vectors), queries, k=100, target=0.5, most=10, clock_s=ticks(1, 3, 4))

    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :100]
    found = graph.candidates(queries, 100)
    shares = [len(set(one) & set(other)) / 100 for one, other in zip(best.tolist(), found.tolist(), strict=True)]
    assert choice.recall == pytest.approx(float(np.mean(shares)))


def test_a_catalog_smaller_than_what_is_asked_for_is_found_whole() -> None:
    vectors = make_vectors(7, 32, seed=2)

    choice = choose_among(vectors, k=250)

    assert choice.recall == 1.0


def test_items_of_equal_vectors_may_stand_for_each_other() -> None:
    vectors = np.repeat(make_vectors(4, 32, seed=2), 300, axis=0)

    choice = choose_among(vectors, k=100)

    assert choice.recall == 1.0
