"""Exact search: every item is scored, on the CPU or on CUDA.

The faster backend for a small catalog or on a GPU, and the judge of the other one. The matrix product only selects; the
scores that leave are those of `index.rank`, the same as the graph's. So it may select in half precision, where the CPU
or GPU multiplies bfloat16 several times as fast: what it misses lies at the end of what it finds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from copy import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.ann.index import (
    Rows,
    Vectors,
    check_interests,
    check_item_vectors,
    no_rows,
    own_rows,
    rank,
)
from engine.ann.selection import Scores, top_places
from engine.item_rows import NO_ROW

_SCORES_AT_ONCE = 32_000_000
"""Scores held at a time: at most 128 MB."""
_QUERIES_AT_ONCE = 64
"""On a CPU few, so that what is made of them stays in the caches until it is selected from."""
_MOST_KEPT_BYTES = 2**25
"""What a thread keeps of memory for scores: those of 64 queries for 131,000 items, twice as many in half precision."""
_DEEPER = 1.25
"""In half precision so many times as many are found as are asked for, and the best of them by exact score taken."""


class ExactIndex:
    """Scores every item for every interest; see `ItemIndex` for the contract."""

    def __init__(
        self, vectors: npt.ArrayLike, *, rows: Rows | None = None, device: str = "cpu", is_half: bool = False
    ) -> None:
        """Search *vectors*, (N, D) float32; of *rows*, ascending, alone, where they are given.

        With *is_half* a copy of them in bfloat16 selects, half as large as they are.
        """
        self.vectors = check_item_vectors(vectors)
        self.rows = own_rows(rows, len(self.vectors))
        """(N,) those of the items, ascending."""
        chosen = self.vectors if rows is None else self.vectors[rows]
        self._items = _shared(chosen) if device == "cpu" else torch.tensor(chosen, device=device)
        self._half = self._items.bfloat16() if is_half else None
        self._kept = threading.local()

    def over(self, vectors: Vectors) -> ExactIndex:
        """Return the same items over (R, D) *vectors* that are their own wherever they stand."""
        moved = copy(self)
        moved.vectors = vectors
        return moved

    def in_half(self) -> ExactIndex:
        """Return the same items, searched in half precision."""
        halved = copy(self)
        vars(halved)["_half"] = self._items.bfloat16()
        return halved

    @property
    def is_half(self) -> bool:
        """Whether half precision selects."""
        return self._half is not None

    @property
    def dimensions(self) -> int:
        """D, the length of an item vector and of an interest."""
        return int(self.vectors.shape[1])

    @property
    def size(self) -> int:
        """N, the number of items."""
        return len(self._items)

    def search(self, interests: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return the *k* best items of each interest; see `ItemIndex.search`."""
        if not self.is_half:
            return rank(self.vectors, *self._find(interests, k))
        rows, scores = rank(self.vectors, *self._find(interests, math.ceil(k * _DEEPER)))
        return rows[:, :k], scores[:, :k]

    def candidates(self, interests: Vectors, k: int) -> Rows:
        """Return the rows of the *k* best items of each interest; see `ItemIndex.candidates`."""
        return self._find(interests, k)[1]

    def widen(self, ef: int) -> None:
        """Look at every item in full precision from now on."""
        self._half = None

    def scores(self, interests: Vectors) -> Iterator[tuple[slice, Scores]]:
        """Yield parts of the (Q, D) finite *interests* with their (part, N) scores, the bits of them in half precision.

        The scores may be written to, and are gone when the next part is asked for.
        """
        for part, scores in self._scores(interests):
            yield part, _readable(scores)

    def _find(self, interests: Vectors, k: int) -> tuple[Vectors, Rows]:
        queries, finite = check_interests(interests, self.dimensions)
        rows, width = no_rows(len(queries), k), min(k, self.size)
        for part, scores in self._scores(queries):
            rows[part, :width] = self.rows[_best(scores, width)]
        rows[~finite] = NO_ROW
        return queries, rows

    def _scores(self, queries: Vectors) -> Iterator[tuple[slice, Tensor]]:
        if not len(queries) or not self.size:
            return
        items = self._items if self._half is None else self._half
        calls = math.ceil(len(queries) / self._step())
        step = math.ceil(len(queries) / calls)  # alike: a call costs what reading the items does, however few it has
        room = self._room(step, items)
        for start in range(0, len(queries), step):
            part = slice(start, min(start + step, len(queries)))
            with torch.inference_mode():
                asked = torch.as_tensor(queries[part], device=items.device).to(items.dtype)
                scores = torch.mm(asked, items.T, out=room[: len(asked)])
            yield part, scores

    def _step(self) -> int:
        """Return how many queries are scored together."""
        most = max(1, _SCORES_AT_ONCE // self.size)
        if self._items.is_cuda:
            return most
        return min(most, _QUERIES_AT_ONCE, max(_QUERIES_AT_ONCE // 2, self._kept_queries()))

    def _kept_queries(self) -> int:
        """Return for how many queries a thread keeps the memory of the scores."""
        return _MOST_KEPT_BYTES // (self.size * (2 if self.is_half else 4))

    def _room(self, step: int, items: Tensor) -> Tensor:
        """Return (step or more, N) of the items' kind, which each thread keeps on a CPU where that is little.

        It is written to again and again: memory that is new each time takes as long as what is done with it.
        """
        kept: Tensor | None = getattr(self._kept, "room", None)
        if kept is not None and kept.dtype == items.dtype and len(kept) >= step:
            return kept
        room = torch.empty((step, len(items)), dtype=items.dtype, device=items.device)
        if not items.is_cuda and step <= self._kept_queries():
            self._kept.room = room
        return room


def _best(scores: Tensor, k: int) -> Rows:
    """Return the (Q, k) places of the greatest of (Q, N) *scores*, in no order; of equal ones the first.

    On a GPU, of equal ones in half precision, which are many, any.
    """
    if not scores.is_cuda:
        return top_places(_readable(scores), k)
    best, places = torch.topk(scores, k, dim=1, sorted=False)  # a GPU is fast enough without blocks
    if scores.dtype != torch.bfloat16:
        crowded = (scores >= best.amin(dim=1, keepdim=True)).sum(dim=1) > k
        for query in torch.nonzero(crowded).flatten().tolist():
            places[query] = torch.sort(scores[query], descending=True, stable=True).indices[:k]
    return np.asarray(places.cpu().numpy(), dtype=np.int64)


def _readable(scores: Tensor) -> Scores:
    """Return *scores* as `engine.ann.selection` reads them."""
    held = scores.cpu()
    return held.view(torch.int16).numpy() if held.dtype == torch.bfloat16 else held.numpy()


def _shared(vectors: Vectors) -> Tensor:
    """Return *vectors*, which nobody writes to, as a tensor; a copy where the memory is never to be written to."""
    view = vectors.view()
    try:
        view.flags.writeable = True  # torch has no notion of an array that can't be
    except ValueError:
        view = vectors.copy()
    return torch.from_numpy(view)
