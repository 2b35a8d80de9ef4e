"""Approximate search with an hnswlib graph; owns hnswlib together with `engine/ann/check.py`.

The graph only finds candidates: their scores are the exact inner products with the version's vectors, and the order is
by them. What hnswlib does that this file has to know:

- `add_items` beside `knn_query`, and saving while adding, corrupt a graph: this one is built once and never changed.
- Built by one thread, the same vectors give the same graph, byte for byte; by several they don't. Up to
  `DETERMINISTIC_ITEMS` one thread builds it; above, all that are offered.
- It accepts vectors of another dimension and reads out of bounds, loads files with flipped bits and crashes later, and
  reports nothing when a disk is full: see `check.py`, which every file passes in a child process before it is loaded.
- `knn_query` raises for the whole batch when one query reaches fewer than k items: such a batch is scored in full.
- `ef` isn't saved with the graph, so it is a setting of who searches.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import hnswlib
import numpy as np
import numpy.typing as npt

from engine.ann import check
from engine.ann.index import (
    OwnRows,
    Rows,
    Vectors,
    check_interests,
    check_item_vectors,
    no_rows,
    own_rows,
    rank,
)
from engine.durable import sync
from engine.errors import DamagedIndex
from engine.item_rows import NO_ROW

M = 16
"""Neighbors of an item on the upper levels, twice as many on the lowest."""
EF_CONSTRUCTION = 200
"""Candidates kept while a neighbor list is made; higher builds a better graph, slower."""
EF_PER_ITEM = 1.5
"""A search keeps at least so many candidates for each item it asks for: with one, the far end of an answer is poor."""
ADDED_AT_ONCE = 20_000
"""So many vectors are copied out for a graph at a time."""
FOLDER_PREFIX, ABANDONED_AFTER_S = "mindstream-index-", 3_600
DETERMINISTIC_ITEMS = 20_000
"""Up to so many items one thread builds the graph, so that the same vectors give the same file."""


@dataclass(frozen=True, slots=True)
class SavedIndex:
    """What a saved file is: its size in bytes and its sha256, in hex."""

    size: int
    sha256: str


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a temporary folder; one that a killed process left behind goes when it is an hour old."""
    place, oldest_s = Path(tempfile.gettempdir()), time.time() - ABANDONED_AFTER_S
    for left in place.glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):  # another process may take it away, or own it
            if left.stat().st_mtime < oldest_s:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        yield Path(folder)


class HnswIndex:
    """Finds near neighbors in a navigable graph; see `ItemIndex` for the contract."""

    def __init__(
        self, graph: hnswlib.Index, vectors: Vectors, *, ef: int, threads: int, rows: Rows | OwnRows | None = None
    ) -> None:
        self.vectors = vectors
        self._graph = graph
        self.rows = own_rows(rows, len(vectors))
        """(N,) those of the items in the graph, ascending."""
        self._threads = threads
        self._ef = ef
        self._ef_lock = threading.Lock()
        graph.set_ef(ef)

    @classmethod
    def build(
        cls, vectors: npt.ArrayLike, *, rows: Rows | None = None, threads: int = 1, seed: int = 7, ef: int = 200
    ) -> HnswIndex:
        """Return the graph of *vectors*, (N, D) float32; the item at row i is found as i.

        Args:
            vectors: (N, D) float32, finite; N may be 0.
            rows: ascending, those that are put into the graph; None: all. The others are never found.
            threads: how many build above `DETERMINISTIC_ITEMS`, and how many search.
            seed: of the levels that items are put on.
            ef: candidates kept while searching.

        Raises:
            ItemIndexError: the vectors are not two-dimensional or not finite.
        """
        checked = check_item_vectors(vectors)
        chosen = np.arange(len(checked)) if rows is None else rows
        graph = hnswlib.Index(space="ip", dim=checked.shape[1])
        graph.init_index(max_elements=max(len(chosen), 1), M=M, ef_construction=EF_CONSTRUCTION, random_seed=seed)
        builders = 1 if len(chosen) <= DETERMINISTIC_ITEMS else threads
        for start in range(0, len(chosen), ADDED_AT_ONCE):
            part = chosen[start : start + ADDED_AT_ONCE]
            graph.add_items(checked[part], part, num_threads=builders)
        return cls(graph, checked, ef=ef, threads=threads, rows=rows)

    @classmethod
    def load(cls, path: Path, vectors: npt.ArrayLike, *, ef: int = 200, threads: int = 1) -> HnswIndex:
        """Return the graph saved at *path*, after a child process has checked it.

        Args:
            path: the saved file; nobody may change it meanwhile.
            vectors: (N, D) float32, the item vectors of the same version.
            ef: candidates kept while searching.
            threads: how many threads search.

        Raises:
            DamagedIndex: the file fails a check, or is not the graph of *vectors*.
            ItemIndexError: the vectors are not two-dimensional or not finite.
        """
        checked = check_item_vectors(vectors)
        items, dimensions = checked.shape
        check.check_file(path, dimensions=dimensions, items=items)
        if not check.holds_vectors(path, checked):
            raise DamagedIndex(path, problem="it was built from other vectors than the version's")
        graph = hnswlib.Index(space="ip", dim=dimensions)
        try:
            graph.load_index(str(path))
        except RuntimeError as error:
            raise DamagedIndex(path, problem=f"hnswlib says: {error}") from error
        return cls(graph, checked, ef=ef, threads=threads)

    def save(self, path: Path) -> SavedIndex:
        """Write the graph to *path*: whole, on the disk, and checked in a child process before it has its name.

        Raises:
            DamagedIndex: what arrived on the disk is not the graph, as on a full disk; *path* is as it was.
        """
        if not path.parent.is_dir():
            raise DamagedIndex(path, problem="its directory does not exist")
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        written = Path(name)
        try:
            os.close(descriptor)
            self._write(written)
            check.check_file(written, dimensions=self.dimensions, items=self.size)
            content = written.read_bytes()
            written.replace(path)
        finally:
            written.unlink(missing_ok=True)
        return SavedIndex(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    def to_bytes(self) -> bytes:
        """Return the checked content of a saved file, for a model version.

        Raises:
            DamagedIndex: the temporary directory could not hold it.
        """
        with private_folder() as folder:
            path = folder / "index.hnsw"
            self.save(path)
            return path.read_bytes()

    def over(self, vectors: Vectors) -> HnswIndex:
        """Return the same graph over (R, D) *vectors* that are its own wherever its items stand."""
        return HnswIndex(self._graph, vectors, ef=self._ef, threads=self._threads, rows=self.rows)

    @property
    def dimensions(self) -> int:
        """D, the length of an item vector and of an interest."""
        return int(self.vectors.shape[1])

    @property
    def size(self) -> int:
        """N, the number of items."""
        return len(self.rows)

    @property
    def ef(self) -> int:
        """Candidates kept while searching; never fewer than `EF_PER_ITEM` for each item a search has asked for."""
        return self._ef

    def widen(self, ef: int) -> None:
        """Keep at least *ef* candidates while searching from now on: finds more, costs more."""
        with self._ef_lock:
            if ef > self._ef:
                self._graph.set_ef(ef)
                self._ef = ef

    def search(self, interests: Vectors, k: int) -> tuple[Rows, Vectors]:
        """Return about the *k* best items of each interest; see `ItemIndex.search`."""
        self.widen(int(min(k, self.size) * EF_PER_ITEM))
        return rank(self.vectors, *self._find(interests, k))

    def candidates(self, interests: Vectors, k: int) -> Rows:
        """Return the rows of about the *k* best items of each interest; see `ItemIndex.candidates`.

        As many as `ef` cost no more than one; the far end of them is poor.
        """
        self.widen(min(k, self.size))
        return self._find(interests, k)[1]

    def _find(self, interests: Vectors, k: int) -> tuple[Vectors, Rows]:
        queries, finite = check_interests(interests, self.dimensions)
        rows = no_rows(len(queries), k)
        width = min(k, self.size)
        if len(queries) and width:
            rows[:, :width] = self._reach(queries, width)
        rows[~finite] = NO_ROW
        return queries, rows

    def _reach(self, queries: Vectors, k: int) -> Rows:
        try:
            labels, _ = self._graph.knn_query(queries, k=k, num_threads=self._threads)
        except RuntimeError:  # some query reached fewer than k items
            return self._all_scored(queries, k)
        return np.asarray(labels, dtype=np.int64)

    def _all_scored(self, queries: Vectors, k: int) -> Rows:
        rows = np.empty((len(queries), k), dtype=np.int64)
        for at, query in enumerate(queries):
            rows[at] = self.rows[np.argsort(-(self.vectors[self.rows] @ query), kind="stable")[:k]]
        return rows

    def _write(self, path: Path) -> None:
        try:
            self._graph.save_index(str(path))
        except RuntimeError as error:
            raise DamagedIndex(path, problem=f"hnswlib says: {error}") from error
        sync(path)
        size, expected = path.stat().st_size, self._graph.index_file_size()
        # hnswlib counts no upper levels of an empty graph, and says nothing of a disk that is full.
        if self.size and size != expected:
            raise DamagedIndex(path, problem=f"{size} of {expected} bytes arrived on the disk; make room")
