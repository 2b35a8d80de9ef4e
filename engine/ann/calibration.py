"""Which backend searches a version, and how widely: measured when the version is loaded, with queries of its own model.

The graph looks at more and more candidates until it finds the target share of the exact nearest items. Beside it stand
exact search, and exact search in half precision where that finds the share too: the faster of them is taken unless the
graph is much faster. A small catalog, a GPU, or a CPU that multiplies bfloat16, makes that exact search. The times are
this machine's of this moment, so two engines may choose differently; their scores are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex
from engine.ann.index import Rows, Vectors

NEAREST = 100
"""Recall is that of so many nearest items."""
WIDER = 1.5
MOST_HALVES = 2**25
"""Of a larger catalog half precision isn't tried, N times D numbers: a graph is faster, and the copy costs memory."""
EXACT_IS_WORTH = 2.0
"""Exact search may take so many times as long as the graph: what a graph misses adds to what pools miss."""
ROUNDS = 3
"""Of each the fastest is taken: whatever else the machine does only adds time."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to search, and what was measured."""

    index: HnswIndex | ExactIndex
    ef: int
    """Candidates the graph looks at, chosen or not."""
    recall: float
    """Share of the exact nearest items that the graph finds so."""
    half_recall: float | None
    """Share of them that half precision finds; None where that was not tried."""
    graph_ms: float
    """Milliseconds a query on the graph."""
    exact_ms: float
    half_ms: float | None

    @property
    def backend(self) -> str:
        """What is to search, by its name."""
        return backend_of(self.index)


def backend_of(index: HnswIndex | ExactIndex) -> str:
    """Return `hnsw`, `exact` or `exact_half`."""
    if isinstance(index, HnswIndex):
        return "hnsw"
    return "exact_half" if index.is_half else "exact"


def choose(
    graph: HnswIndex,
    exact: ExactIndex,
    queries: Vectors,
    *,
    k: int,
    target: float,
    most: int,
    clock_s: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Return the one of three indexes of the same items that finds enough and takes little time, exact ones preferred.

    Args:
        graph: becomes as wide as it must, and stays so.
        exact: the judge, and the alternative, in full or in half precision.
        queries: (Q, D) float32 interests, at least one.
        k: candidates that a search is asked for while it is timed.
        target: share of the exact nearest that must be found.
        most: candidates the graph may look at; where it misses the target even so, exact search is not taken for that:
            it would be too slow on a large catalog, and an alert tells.
        clock_s: seconds that go on steadily.
    """
    nearest = min(NEAREST, exact.size)
    true = exact.candidates(queries, nearest)
    recall = _recall(graph.candidates(queries, max(k, nearest)), queries, graph, true)
    while recall < target and graph.ef < most:
        graph.widen(min(most, int(graph.ef * WIDER) + 1))
        recall = _recall(graph.candidates(queries, max(k, nearest)), queries, graph, true)
    graph_s, exact_s = (_fastest(index, queries, k, clock_s) / len(queries) for index in (graph, exact))
    half_recall = half_s = None
    fastest, fastest_s = exact, exact_s
    if exact.vectors.size <= MOST_HALVES:
        half = exact.in_half()
        half_recall = _recall(half.candidates(queries, max(k, nearest)), queries, graph, true)
        half_s = _fastest(half, queries, k, clock_s) / len(queries)
        if half_recall >= target and half_s < exact_s:
            fastest, fastest_s = half, half_s
    index = fastest if fastest_s <= graph_s * EXACT_IS_WORTH else graph
    half_ms = None if half_s is None else half_s * 1e3
    return Choice(index, graph.ef, recall, half_recall, graph_s * 1e3, exact_s * 1e3, half_ms)


def _recall(found: Rows, queries: Vectors, graph: HnswIndex, true: Rows) -> float:
    """Return the share of the (Q, n) *true* rows that are among those *found*; of equal items any will do."""
    if not true.size:
        return 1.0
    scores = np.einsum("qkd,qd->qk", graph.vectors[true], queries).min(axis=1)
    reached = np.einsum("qkd,qd->qk", graph.vectors[found], queries) >= scores[:, None] - 1e-5 * np.abs(scores[:, None])
    return float((reached & (found >= 0)).sum(axis=1).clip(max=true.shape[1]).mean() / true.shape[1])


def _fastest(index: HnswIndex | ExactIndex, queries: Vectors, k: int, clock_s: Callable[[], float]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        began_s = clock_s()
        index.candidates(queries, k)
        seconds.append(clock_s() - began_s)
    return min(seconds)
