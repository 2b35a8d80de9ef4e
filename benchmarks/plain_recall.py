"""The reference of `bench_refresh.py`: lists the plain way, as a team would write them around hnswlib.

Eager PyTorch routing of the whole batch (`eager_mind.py`), all interests of all users in one `knn_query`, and a merge
in Python: of each item the best score, without the seen ones, best first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import hnswlib
import numpy as np
import torch
from eager_mind import EagerMind


class PlainRecall:
    """Makes lists of the best *size* items."""

    def __init__(
        self, graph: Path, *, items: int, dimensions: int, interests: int, max_clicks: int, size: int, threads: int
    ) -> None:
        """Search the saved *graph*.

        Args:
            graph: a file of hnswlib's, of inner products.
            items: N.
            dimensions: D.
            interests: K.
            max_clicks: L, the clicks of a window.
            size: items of a list.
            threads: that search.
        """
        layers = (dimensions, dimensions)
        self._routing = EagerMind(items=items, dimensions=dimensions, interests=interests, layers=layers, repeats=False)
        self._graph = hnswlib.Index(space="ip", dim=dimensions)
        self._graph.load_index(str(graph))
        self._size, self._depth, self._threads, self._max_clicks = size, size + max_clicks, threads, max_clicks

    def look_at(self, ef: int) -> None:
        """Look at *ef* candidates in every search from now on, or as many as a list needs."""
        self._graph.set_ef(max(ef, self._depth))

    def route(self, windows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the interests that an untrained model of the same size makes: for the time that it takes."""
        rows = torch.zeros(len(windows), self._max_clicks, dtype=torch.int64)
        for at, window in enumerate(windows):
            rows[at, -len(window) :] = torch.tensor(window) + 1
        with torch.inference_mode():
            vectors: torch.Tensor = self._routing(rows)
            return vectors

    def search(
        self, interests: np.ndarray, mask: np.ndarray, seen: Sequence[Collection[int]]
    ) -> list[list[tuple[int, float]]]:
        """Return rows and scores of each user's list, for (B, K, D) interests and (B, K) bool those in use."""
        labels, distances = self._graph.knn_query(interests[mask], k=self._depth, num_threads=self._threads)
        scores, owners = 1.0 - distances, np.nonzero(mask)[0].tolist()
        best: list[dict[int, float]] = [{} for _ in interests]
        for owner, rows, values in zip(owners, labels.tolist(), scores.tolist(), strict=True):
            own = best[owner]
            for row, value in zip(rows, values, strict=True):
                if row not in seen[owner] and value > own.get(row, -np.inf):
                    own[row] = value
        return [sorted(own.items(), key=lambda item: -item[1])[: self._size] for own in best]
