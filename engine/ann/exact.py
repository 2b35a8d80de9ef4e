"""Exact search: every item is scored, on the CPU or on CUDA.

The faster backend for a small catalog or on a GPU, and the judge of the other one. The matrix product only selects; the
scores that leave are those of `index.rank`, the same as the graph's.
"""

from __future__ import annotations

from copy import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.ann.index import (
    BLOCK,
    NO_ROW,
    Rows,
    Vectors,
    check_interests,
    check_item_vectors,
    no_rows,
    own_rows,
    rank,
)

_SCORES_AT_ONCE = 32_000_000
"""Scores held at a time: at most 128 MB."""
_QUERIES_AT_ONCE, _WORTH_HOLDING = 128, 8_000_000
"""Of few queries a matrix product is slower; more than so many, or so many scores, make it no faster on a CPU."""


class ExactIndex:
    """Scores every item for every interest; see `ItemIndex` for the contract."""

    def __init__(self, vectors: npt.ArrayLike, *, rows: Rows | None = None, device: str = "cpu") -> None:
        """Search *vectors*, (N, D) float32; of *rows*, ascending, alone, where they are given."""
        self.vectors = check_item_vectors(vectors)
        self.rows = own_rows(rows, len(self.vectors))
        """(N,) those of the items, ascending."""
        chosen = self.vectors if rows is None else self.vectors[rows]
        self._items = _shared(chosen) if device == "cpu" else torch.tensor(chosen, device=device)

    def over(self, vectors: Vectors) -> ExactIndex:
        """Return the same items over (R, D) *vectors* that are their own wherever they stand."""
        moved = copy(self)
        moved.vectors = vectors
        return moved

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
        return rank(self.vectors, *self._find(interests, k))

    def candidates(self, interests: Vectors, k: int) -> Rows:
        """Return the rows of the *k* best items of each interest; see `ItemIndex.candidates`."""
        return self._find(interests, k)[1]

    def widen(self, ef: int) -> None:
        """Change nothing: every item is looked at."""

    def _find(self, interests: Vectors, k: int) -> tuple[Vectors, Rows]:
        queries, finite = check_interests(interests, self.dimensions)
        rows = no_rows(len(queries), k)
        width = min(k, self.size)
        if not len(queries) or not width:
            return queries, rows
        step = min(self._step(), len(queries))
        # Written to again and again: memory that is new each time takes as long as what is done with it.
        room = torch.empty((step, self.size), device=self._items.device)
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            rows[part, :width] = self.rows[self._best(queries[part], width, room)]
        rows[~finite] = NO_ROW
        return queries, rows

    def _step(self) -> int:
        """Return how many queries are scored together."""
        most = max(1, _SCORES_AT_ONCE // self.size)
        return most if self._items.is_cuda else min(most, max(_QUERIES_AT_ONCE, _WORTH_HOLDING // self.size))

    def _best(self, queries: Vectors, k: int, room: Tensor) -> Rows:
        """Return the (Q, k) places of the best; of items equal at the last of them, the first ones.

        The scores are made in *room*, (Q or more, N) float32.
        """
        with torch.inference_mode():
            asked = torch.as_tensor(queries, device=self._items.device)
            scores = torch.mm(asked, self._items.T, out=room[: len(queries)])
            rows, crowded = greatest(scores, k)
            for query in torch.nonzero(crowded).flatten().tolist():
                rows[query] = torch.sort(scores[query], descending=True, stable=True).indices[:k]
            return np.asarray(rows.cpu().numpy(), dtype=np.int64)


def _shared(vectors: Vectors) -> Tensor:
    """Return *vectors*, which nobody writes to, as a tensor; a copy where the memory is never to be written to."""
    view = vectors.view()
    try:
        view.flags.writeable = True  # torch has no notion of an array that can't be
    except ValueError:
        view = vectors.copy()
    return torch.from_numpy(view)


def greatest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the (Q, k) places of the greatest of (Q, n) *scores*, in no order, and whether others equal the last.

    Where more than k are as great as the last of them, which are returned is left open.
    """
    # Looking at blocks first is faster where there are many; a GPU is fast enough, and has its own way.
    has_many_blocks = scores.device.type == "cpu" and scores.shape[1] // BLOCK > 2 * k
    return (_top_of_blocks if has_many_blocks else _top)(scores, k)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best, places = torch.topk(scores, k, dim=1, sorted=False)
    return places, (scores >= best.amin(dim=1, keepdim=True)).sum(dim=1) > k


def _top_of_blocks(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Do what `_top` does, which takes three times as long on a hundred thousand scores.

    The k greatest scores lie in the k blocks with the greatest maxima, so only those are searched.
    """
    queries, count = scores.shape
    blocks = count // BLOCK
    whole = blocks * BLOCK
    # A block is what stands `blocks` apart: then the maxima are taken of whole stretches of memory.
    maxima = scores[:, :whole].view(queries, BLOCK, blocks).amax(dim=1)
    chosen_blocks = torch.topk(maxima, k, dim=1, sorted=False).indices
    places = (chosen_blocks[:, None, :] + torch.arange(0, whole, blocks)[:, None]).view(queries, -1)
    places = torch.cat([places, torch.arange(whole, count).expand(queries, count - whole)], dim=1)
    chosen = torch.gather(scores, 1, places)
    best, at = torch.topk(chosen, k, dim=1, sorted=False)
    last = best.amin(dim=1, keepdim=True)
    inside, outside = (chosen >= last).sum(dim=1), (maxima >= last).sum(dim=1)
    reaching = (torch.gather(maxima, 1, chosen_blocks) >= last).sum(dim=1)
    return torch.gather(places, 1, at), (inside > k) | (outside > reaching)
