"""An index whose items change: the version's index, and beside it what the catalog has added and changed since.

An immutable base, either backend; an exact delta of new and changed items; and the base's rows that no longer count.
Nothing is ever added to a graph, which hnswlib does not bear beside a search: at a bound a new base is built in the
background, and taken over between two searches. Rows are stable: an item keeps its row for the life of the index.

One thread at a time searches and changes it; only the building of a base runs beside. Vectors are kept once, here, and
every base ranks by them: they are its own wherever its items have not changed, and items that have are none of its any
more. A version's are loaded with room for new items (`with_room`), so that no change copies them while the version
before still serves. Beside them a graph holds a copy of its own, and while one is built there are two.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import structlog

from engine import metrics
from engine.ann.delta import Delta
from engine.ann.index import (
    ItemIndex,
    OwnRows,
    Rows,
    Vectors,
    check_interests,
    nothing_found,
    rank,
)
from engine.ann.memory import give_back_memory
from engine.ann.selection import top_places
from engine.item_rows import NO_ROW

SPARE = 8
"""The base is asked for so many more, and for more still, until what no longer counts shortens no answer."""
GROWTH = 1.25
NICE = 10
"""Niceness of the thread that builds a base."""
CACHE_LINE_BYTES = 64
SELDOM = 8
"""Where at most one row of the base in so many no longer counts, candidates are taken as they come."""

log = structlog.get_logger()
Kind = TypeVar("Kind", bound=np.generic)


class Base(ItemIndex, Protocol):
    """What both backends are: an index of some rows of vectors that somebody else may hold."""

    vectors: Vectors
    """(N, D) float32 by row, not to be written to."""

    rows: OwnRows
    """(n,) those of the items that it finds, ascending."""

    def over(self, vectors: Vectors) -> Self:
        """Return the same index over (R, D) *vectors* that are its own wherever its items stand."""


class Build(Protocol):
    """Makes a base."""

    def __call__(self, vectors: Vectors, *, rows: Rows) -> Base:
        """Return an index of the *rows*, ascending, of (N, D) *vectors*, which others may change meanwhile."""


class LiveIndex:
    """Searches a catalog that changes; see `ItemIndex` for the contract."""

    def __init__(self, base: Base, *, build: Build, rebuild_at: int, room: Vectors | None = None) -> None:
        """Search *base*, whose rows are the first rows here.

        Args:
            base: the index of all items of a model version; never changed, but for its vectors where they have *room*.
            build: called in a background thread.
            rebuild_at: items in the delta, or rows of the base that no longer count, at which one is built.
            room: (R, D) float32, an array that begins with the base's vectors and is nobody else's, to hold those of
                the items that change; None: the first change makes one.
        """
        self._base, self._build, self._rebuild_at = base, build, rebuild_at
        self._is_in_base = np.ones(base.size, dtype=np.bool_)
        self._is_stale = np.zeros(base.size, dtype=np.bool_)  # in the base, and counts no more
        self._stale = 0
        self._vectors = base.vectors
        self._is_absent = np.zeros(base.size, dtype=np.bool_)
        self._row_count = base.size
        self._ef = 0
        self._delta = Delta(base.dimensions)
        self.generation = 0
        """Grows with each new base: what the one before found may lack items of this one."""
        self._changed_since_build: set[int] | None = None
        self._built: Base | None = None
        self._building: threading.Thread | None = None
        if room is not None:
            self._move_to(room)

    @property
    def dimensions(self) -> int:
        """D, the length of an item vector and of an interest."""
        return int(self._vectors.shape[1])

    @property
    def size(self) -> int:
        """Items that a search can find."""
        return self._base.size - self._stale + len(self._delta)

    @property
    def vectors(self) -> Vectors:
        """(R, D) float32 by row, those of removed items too; not to be written to."""
        return self._vectors[: self._row_count]

    @property
    def delta_size(self) -> int:
        """Items that are searched beside the base."""
        return len(self._delta)

    def put(self, rows: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """Make items findable by new vectors.

        Args:
            rows: (n,) int64, each once; an item that had none yet gets the next one.
            vectors: (n, D) float32, finite.
        """
        at = np.asarray(rows, dtype=np.int64)
        if not len(at):
            return
        self._reserve(max(self._row_count, int(at.max()) + 1))
        self._vectors[at] = vectors
        self._is_absent[at] = False
        self._outdate(at)
        self._delta.put(at, self._vectors[at])

    def remove(self, rows: Iterable[int]) -> None:
        """Make items be found no more, until they are put again."""
        at = np.fromiter(rows, dtype=np.int64)
        if not len(at):
            return
        self._reserve(self._row_count)
        self._is_absent[at] = True
        self._outdate(at)
        self._delta.remove(at.tolist())

    def search(self, interests: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return the *k* best of the items of now for each interest; see `ItemIndex.search`."""
        queries, finite = check_interests(interests, self.dimensions)
        rows, scores = self._search_base(queries, k)
        if not len(self._delta) or not len(queries):
            return rows, scores
        more = self._search_delta(queries, k)
        rows, scores = np.concatenate([rows, more[0]], axis=1), np.concatenate([scores, more[1]], axis=1)
        rows[~finite], scores[~finite] = NO_ROW, -np.inf
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def base_candidates(self, interests: Vectors, k: int) -> Rows:
        """Return (Q, k) rows of the base that each of the (Q, D) interests is near to, in no order; -1 for none.

        With `delta_candidates` and without those that `is_gone`, they are what `search` chooses from; the base's are
        worth keeping, for as long as `generation` stays.
        """
        if SELDOM * self._stale > self._base.size:
            return self._search_base(interests, k)[0]
        return self._base.candidates(interests, k)

    def delta_candidates(self, interests: Vectors, k: int) -> Rows:
        """Return (Q, k or fewer) rows beside the base, the best of each of the (Q, D) interests, in no order."""
        return self._delta.rows[self._delta.nearest(interests, k)]

    def is_gone(self, rows: npt.NDArray[np.signedinteger]) -> npt.NDArray[np.bool_]:
        """Return where *rows*, which were found in the base, have left it: removed, or changed and in the delta."""
        is_gone: npt.NDArray[np.bool_] = rows == NO_ROW
        if self._stale:
            is_gone |= self._is_absent[rows] | self._delta.holds(rows)
        return is_gone

    def is_absent(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return which of *rows* no search finds: removed."""
        return self._is_absent[rows]

    def widen(self, ef: int) -> None:
        """Look at *ef* candidates at least in every search of the base from now on; see `HnswIndex.widen`."""
        self._ef = max(self._ef, ef)
        self._base.widen(self._ef)

    def search_exactly(self, interests: Vectors, k: int) -> Rows:
        """Return (Q, at most k) rows of the best items of now for (Q, D) *interests*, in no order, by a look at all."""
        scores = interests @ self.vectors.T
        scores[:, self._is_absent[: self._row_count]] = -np.inf
        return top_places(scores, min(k, scores.shape[1]))

    def catch_up(self) -> None:
        """Take over a base that is ready, and have one built where the bound is reached; between two searches."""
        if self._built is not None:
            self._take_over(self._built)
        if self._changed_since_build is None and max(len(self._delta), self._stale) >= self._rebuild_at:
            rows = np.flatnonzero(~self._is_absent[: self._row_count])
            self._changed_since_build = set()
            arguments = (self._vectors, rows)
            self._building = threading.Thread(target=self._build_base, args=arguments, name="index", daemon=True)
            self._building.start()

    def wait_for_build(self) -> None:
        """Return once no base is being built."""
        if self._building is not None:
            self._building.join()

    # --- the base, built beside

    def _build_base(self, vectors: Vectors, rows: Rows) -> None:
        # An item that changes meanwhile is noted, and whatever of it came into the base is never shown.
        if sys.platform == "linux":  # elsewhere a thread can't stand back behind those that serve
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            self._built = self._build(vectors, rows=rows)
        except Exception as error:
            # What serves goes on serving; it is tried again, not with each search but at twice as many changes.
            metrics.INDEX_REBUILDS.labels("failed").inc()
            log.error("index_rebuild_failed", error=type(error).__name__, problem=str(error), items=len(rows))
            self._rebuild_at *= 2
            self._changed_since_build = None

    def _take_over(self, built: Base) -> None:
        changed = self._changed_since_build or set()
        self._built = self._changed_since_build = self._building = None
        self._base = built.over(_read_only(self._vectors))
        if self._ef:
            self._base.widen(self._ef)
        give_back_memory()
        self.generation += 1
        self._is_in_base[:] = self._is_stale[:] = False
        self._is_in_base[built.rows] = True
        self._outdate(np.fromiter(changed, dtype=np.int64, count=len(changed)))
        self._delta.keep(changed)
        metrics.INDEX_REBUILDS.labels("taken").inc()
        log.info("index_rebuilt", items=built.size, changed_meanwhile=len(changed))

    # --- changes

    def _reserve(self, rows: int) -> None:
        """Have an array of our own that holds so many rows; where there is no room yet, vectors are copied."""
        capacity = len(self._vectors)
        if not self._vectors.flags.writeable or rows > capacity:
            self._move_to(_grown(self._vectors, capacity if rows <= capacity else room_for(rows), np.float32(0.0)))
        self._row_count = max(self._row_count, rows)

    def _move_to(self, vectors: Vectors) -> None:
        """Go on with *vectors*, which begin with those of now, and may be written to."""
        capacity = len(vectors)
        self._vectors = vectors
        self._is_in_base = _grown(self._is_in_base, capacity, np.bool_(False))
        self._is_stale = _grown(self._is_stale, capacity, np.bool_(False))
        self._is_absent = _grown(self._is_absent, capacity, np.bool_(True))
        self._delta.reserve(capacity)
        self._base = self._base.over(_read_only(vectors))

    def _outdate(self, rows: Rows) -> None:
        self._is_stale[rows] = self._is_in_base[rows]
        self._stale = int(self._is_stale.sum())
        changed = self._changed_since_build  # a build that fails takes it away
        if changed is not None:
            changed.update(rows.tolist())

    # --- searches

    def _search_base(self, queries: Vectors, k: int) -> tuple[Rows, Vectors]:
        base, stale = self._base, self._stale
        if not base.size or stale == base.size or not len(queries):
            return nothing_found(len(queries), k)
        if not stale:
            return base.search(queries, k)
        width = min(base.size, k + SPARE + 2 * k * stale // base.size)
        enough = min(k, base.size - stale)
        while True:
            rows, scores = base.search(queries, width)
            gone = (rows == NO_ROW) | self._is_stale[rows]
            if width >= min(base.size, k + stale) or ((~gone).sum(axis=1) >= enough).all():
                break
            width = min(base.size, 2 * width)
        order = np.argsort(gone, axis=1, kind="stable")[:, :k]  # those that count first, in their order
        rows = np.where(gone, NO_ROW, rows)
        scores = np.where(gone, np.float32(-np.inf), scores)
        found, best = nothing_found(len(queries), k)
        found[:, : order.shape[1]] = np.take_along_axis(rows, order, axis=1)
        best[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
        return found, best

    def _search_delta(self, queries: Vectors, k: int) -> tuple[Rows, Vectors]:
        rows, scores = rank(self._delta.vectors, queries, self._delta.nearest(queries, k))
        return self._delta.rows[rows], scores


def room_for(rows: int) -> int:
    """Return how many rows to have room for when there are so many."""
    return int(rows * GROWTH) + 1


def with_room(vectors: Vectors) -> Vectors:
    """Return (R, D) float32 that begin with the (N, D) *vectors*; what is behind them takes no memory yet."""
    return _grown(vectors, room_for(len(vectors)), np.float32(0.0))


def _read_only(vectors: Vectors) -> Vectors:
    view = vectors.view()
    view.flags.writeable = False
    return view


def _grown(values: npt.NDArray[Kind], capacity: int, filler: Kind) -> npt.NDArray[Kind]:
    shape = (capacity, *values.shape[1:])
    grown: npt.NDArray[Kind] = np.full(shape, filler) if filler else _aligned_zeros(shape, values.dtype)
    grown[: len(values)] = values
    return grown


def _aligned_zeros(shape: tuple[int, ...], kind: np.dtype[Kind]) -> npt.NDArray[Kind]:
    """Return zeros, which take no memory before they are written over, that begin with a line of the cache.

    A vector of 64 numbers then lies in four lines. Memory fresh from the system begins 16 bytes into a line, and it
    would lie in five.
    """
    size = math.prod(shape) * kind.itemsize
    memory = np.zeros(size + CACHE_LINE_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % CACHE_LINE_BYTES
    return memory[start : start + size].view(kind).reshape(shape)
