"""Check a saved item index in a process of its own: `python -m engine.ann.check FILE --dimensions D --items N`.

hnswlib loads whatever it is given: a flipped bit in a neighbor list crashes the process that searches, another
dimension reads out of bounds, and a save to a full disk leaves a stub without an error. So no engine loads a file that
this hasn't passed: the header against the file's size, every neighbor list against the number of items and levels,
every label, every vector; then hnswlib itself loads it and answers queries whose answers are known. Whatever crashes
here, crashes here alone. Nothing of this imports torch.

The layout is that of hnswlib 0.8: a header, one record an item (neighbors of level 0, vector, label), then each item's
upper levels, preceded by their size.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
from pathlib import Path

import hnswlib
import numpy as np
import numpy.typing as npt

from engine.errors import DamagedIndex

_HEADER = struct.Struct("<6QiI3QdQ")
_FIELDS = (
    "offset_level0",
    "max_elements",
    "elements",
    "record_size",
    "label_offset",
    "vector_offset",
    "top_level",
    "entry",
    "max_neighbors",
    "max_neighbors_level0",
    "m",
    "level_scale",
    "ef_construction",
)
_PASSED, _FAILED = 0, 3
READ_AT_ONCE = 20_000
"""So many records are compared with vectors at a time."""
_CANARIES, _CANARY_K, _CANARY_RECALL = 32, 10, 0.5
_SEED = 20_190_417


def check_file(path: Path, *, dimensions: int, items: int, timeout_s: float = 120.0) -> None:
    """Check the index at *path* in a child process.

    Raises:
        DamagedIndex: the file fails a check, or the child crashed or hung on it.
    """
    command = [sys.executable, "-m", "engine.ann.check", str(path)]
    command += ["--dimensions", str(dimensions), "--items", str(items)]
    try:
        # A session of its own: Ctrl-C at a terminal must not look like a damaged file.
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, start_new_session=True
        )
    except subprocess.TimeoutExpired as error:
        raise DamagedIndex(path, problem=f"its check did not end within {timeout_s:g} s") from error
    if done.returncode == _FAILED:
        raise DamagedIndex(path, problem=done.stdout.strip())
    if done.returncode != _PASSED:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise DamagedIndex(path, problem=f"its check ended with status {done.returncode}: {last}")


def check_here(path: Path, *, dimensions: int, items: int) -> None:
    """Check the index at *path* in this process, which a damaged file may crash.

    Raises:
        DamagedIndex: the file fails a check.
    """
    vectors = _check_bytes(path, dimensions=dimensions, items=items)
    graph = hnswlib.Index(space="ip", dim=dimensions)
    try:
        graph.load_index(str(path))
        if items:
            _ask(path, graph, vectors)
    except RuntimeError as error:
        raise DamagedIndex(path, problem=f"hnswlib says: {error}") from error


def holds_vectors(path: Path, vectors: npt.NDArray[np.float32]) -> bool:
    """Return whether a checked file holds exactly the (N, D) *vectors*, by row; read in parts, to save memory."""
    layout = _record_layout(_read_header(path), vectors.shape[1])
    with path.open("rb") as file:
        file.seek(_HEADER.size)
        for start in range(0, len(vectors), READ_AT_ONCE):
            records = np.fromfile(file, dtype=layout, count=min(READ_AT_ONCE, len(vectors) - start))
            if not np.array_equal(records["vector"], vectors[records["label"].astype(np.int64)]):
                return False
    return True


def _check_bytes(path: Path, *, dimensions: int, items: int) -> npt.NDArray[np.float32]:
    head = _read_header(path)
    _check_header(path, head, dimensions=dimensions, items=items)
    records = _read_records(path, head, dimensions)
    if not np.array_equal(np.sort(records["label"]), np.arange(items, dtype=np.uint64)):
        raise DamagedIndex(path, problem=f"its labels are not the item rows 0 to {items - 1}")
    _check_neighbors(path, records["count"], records["neighbors"], items=items)
    _check_upper_levels(path, head, items=items)
    vectors = np.empty((items, dimensions), dtype=np.float32)
    vectors[records["label"]] = records["vector"]
    if not np.isfinite(vectors).all():
        raise DamagedIndex(path, problem="it holds vectors that are not finite")
    return vectors


def _read_header(path: Path) -> dict[str, int]:
    with path.open("rb") as file:
        raw = file.read(_HEADER.size)
    if len(raw) < _HEADER.size:
        raise DamagedIndex(path, problem=f"it has {len(raw)} bytes, fewer than a header")
    return dict(zip(_FIELDS, _HEADER.unpack(raw), strict=True))


def _check_header(path: Path, head: dict[str, int], *, dimensions: int, items: int) -> None:
    links = head["max_neighbors_level0"] * 4 + 4
    expected = {
        "offset_level0": 0,
        "elements": items,
        "max_elements": max(items, 1),
        "vector_offset": links,
        "label_offset": links + dimensions * 4,
        "record_size": links + dimensions * 4 + 8,
        "max_neighbors": head["m"],
        "max_neighbors_level0": head["m"] * 2,
    }
    for field, value in expected.items():
        if head[field] != value:
            raise DamagedIndex(path, problem=f"its header has {field} {head[field]}, expected {value}")
    if items and not (head["entry"] < items and 0 <= head["top_level"] < 64):
        raise DamagedIndex(path, problem=f"it starts at item {head['entry']} of {items}, level {head['top_level']}")
    if path.stat().st_size < _HEADER.size + items * (head["record_size"] + 4):
        raise DamagedIndex(path, problem=f"it has {path.stat().st_size} bytes, too few for {items} items")


def _record_layout(head: dict[str, int], dimensions: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("count", "<u2"),
            ("deleted", "<u2"),
            ("neighbors", "<u4", (head["max_neighbors_level0"],)),
            ("vector", "<f4", (dimensions,)),
            ("label", "<u8"),
        ]
    )


def _read_records(path: Path, head: dict[str, int], dimensions: int) -> npt.NDArray[np.void]:
    layout = _record_layout(head, dimensions)
    if not head["elements"]:
        return np.empty(0, dtype=layout)
    return np.memmap(path, dtype=layout, mode="r", offset=_HEADER.size, shape=(head["elements"],))


def _check_neighbors(
    path: Path, counts: npt.NDArray[np.uint16], neighbors: npt.NDArray[np.uint32], *, items: int
) -> None:
    width = neighbors.shape[1]
    used = np.arange(width) < counts[:, None]
    if (counts > width).any() or (neighbors[used] >= items).any():
        raise DamagedIndex(path, problem=f"a neighbor list is longer than {width} or names an item that isn't there")


def _check_upper_levels(path: Path, head: dict[str, int], *, items: int) -> None:
    """Check that each list above level 0 names items that reach its level; hnswlib follows them blindly."""
    level_size = head["max_neighbors"] * 4 + 4
    levels = np.zeros(items, dtype=np.int64)
    lists: list[tuple[int, npt.NDArray[np.uint32]]] = []
    raw = memoryview(path.read_bytes())[_HEADER.size + items * head["record_size"] :]
    at = 0
    for item in range(items):
        size = int.from_bytes(raw[at : at + 4], "little")
        at += 4
        if size % level_size or at + size > len(raw):
            raise DamagedIndex(path, problem=f"the upper levels of item {item} have {size} bytes")
        levels[item] = size // level_size
        for level in range(levels[item]):
            lists.append((level + 1, np.frombuffer(raw, "<u4", level_size // 4, at + level * level_size)))
        at += size
    if at != len(raw):
        raise DamagedIndex(path, problem=f"it goes on for {len(raw) - at} bytes after its last item")
    if items and levels[head["entry"]] != head["top_level"]:
        raise DamagedIndex(path, problem=f"it starts at an item of level {levels[head['entry']]}")
    for level, links in lists:
        count = int(links[0]) & 0xFFFF
        if count >= len(links) or (links[1 : count + 1] >= items).any() or (levels[links[1 : count + 1]] < level).any():
            raise DamagedIndex(path, problem=f"a neighbor list of level {level} names an item that isn't there")


def _ask(path: Path, graph: hnswlib.Index, vectors: npt.NDArray[np.float32]) -> None:
    """Search for items whose answers are known by scoring all; a graph may miss some, not half of them."""
    k = min(_CANARY_K, len(vectors))
    graph.set_ef(max(200, k))
    queries = np.random.default_rng(_SEED).permutation(len(vectors))[:_CANARIES]
    try:
        labels, distances = graph.knn_query(vectors[queries], k=k, num_threads=1)
    except RuntimeError:  # fewer than k reached: the searcher scores all items for such a query
        return
    if not np.isfinite(distances).all() or (labels >= len(vectors)).any():
        raise DamagedIndex(path, problem="a canary query was answered with nonsense")
    scores = vectors[queries] @ vectors.T
    floor = np.partition(scores, -k, axis=1)[:, -k] - 1e-4
    found = (np.take_along_axis(scores, labels.astype(np.int64), axis=1) >= floor[:, None]).mean()
    if found < _CANARY_RECALL:
        raise DamagedIndex(path, problem=f"canary queries found {found:.0%} of the nearest items")


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.ann.check", description="Check a saved item index.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--dimensions", type=int, required=True)
    parser.add_argument("--items", type=int, required=True)
    given = parser.parse_args()
    try:
        check_here(given.file, dimensions=given.dimensions, items=given.items)
    except DamagedIndex as error:
        os.write(1, error.problem.encode())
        return _FAILED
    except OSError as error:
        os.write(1, f"it can't be read: {error.strerror}".encode())
        return _FAILED
    return _PASSED


if __name__ == "__main__":
    sys.exit(_main())
