"""Damaged index files: each must be refused, and none may crash the process that asks."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.ann.check import check_file, check_here
from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex
from engine.errors import DamagedIndex
from tests.ann.test_index import draw

ITEMS, DIMENSIONS = 400, 8
HEADER, RECORD = 96, 32 * 4 + 4 + DIMENSIONS * 4 + 8


@pytest.fixture(scope="module")
def good() -> bytes:
    return HnswIndex.build(draw(ITEMS, DIMENSIONS)).to_bytes()


def refuse(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DamagedIndex) as caught:
        check_here(path, dimensions=DIMENSIONS, items=ITEMS)
    return str(caught.value)


def patch(content: bytes, at: int, replacement: bytes) -> bytes:
    return content[:at] + replacement + content[at + len(replacement) :]


def test_good_file_passes(tmp_path: Path, good: bytes):
    path = tmp_path / "index.hnsw"
    path.write_bytes(good)

    check_file(path, dimensions=DIMENSIONS, items=ITEMS)


@pytest.mark.parametrize("size", [0, 1, 95, 96, 97, 5_000])
def test_truncated_file_is_refused(tmp_path: Path, good: bytes, size: int):
    refuse(tmp_path / "index.hnsw", good[:size])


def test_extended_file_is_refused(tmp_path: Path, good: bytes):
    assert "after its last item" in refuse(tmp_path / "index.hnsw", good + b"\0")


def test_item_count_beyond_reason_is_refused_before_memory_is_taken(tmp_path: Path, good: bytes):
    assert "max_elements" in refuse(tmp_path / "index.hnsw", patch(good, 8, struct.pack("<Q", 2**40)))


def test_neighbor_that_is_not_there_is_refused(tmp_path: Path, good: bytes):
    first_neighbor = HEADER + 7 * RECORD + 4

    assert "neighbor" in refuse(tmp_path / "index.hnsw", patch(good, first_neighbor, struct.pack("<I", ITEMS)))


def test_longer_neighbor_list_than_there_is_room_for_is_refused(tmp_path: Path, good: bytes):
    refuse(tmp_path / "index.hnsw", patch(good, HEADER + 7 * RECORD, struct.pack("<H", 33)))


def test_entry_point_that_is_not_there_is_refused(tmp_path: Path, good: bytes):
    assert "starts at" in refuse(tmp_path / "index.hnsw", patch(good, 52, struct.pack("<I", ITEMS + 5)))


def test_label_given_twice_is_refused(tmp_path: Path, good: bytes):
    label = HEADER + RECORD - 8
    other = good[label + RECORD : label + RECORD + 8]

    assert "labels" in refuse(tmp_path / "index.hnsw", patch(good, label, other))


def test_vector_that_is_not_finite_is_refused(tmp_path: Path, good: bytes):
    vector = HEADER + 9 * RECORD + 132

    assert "not finite" in refuse(tmp_path / "index.hnsw", patch(good, vector, struct.pack("<f", float("nan"))))


def test_graph_without_ways_passes_because_the_searcher_scores_all_items_then(tmp_path: Path, good: bytes):
    # Every item its own only neighbor: no number is out of range, and hnswlib never leaves its first item.
    content = good
    for item in range(ITEMS):
        content = patch(content, HEADER + item * RECORD, struct.pack("<H", 1))
        content = patch(content, HEADER + item * RECORD + 4, struct.pack("<I", item))

    path = tmp_path / "index.hnsw"
    path.write_bytes(content)

    loaded, interests = HnswIndex.load(path, draw(ITEMS, DIMENSIONS)), draw(5, DIMENSIONS, seed=4)

    expected, _ = ExactIndex(loaded.vectors).search(interests, 10)
    np.testing.assert_array_equal(loaded.search(interests, 10)[0], expected)


def test_flipped_bit_is_refused_or_leaves_a_graph_that_answers_soundly(tmp_path: Path, good: bytes):
    random, vectors = np.random.default_rng(11), draw(ITEMS, DIMENSIONS)
    path = tmp_path / "index.hnsw"
    for at in random.integers(len(good) * 8, size=6).tolist():
        flipped = bytearray(good)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            loaded = HnswIndex.load(path, vectors)
        except DamagedIndex:
            continue
        # A neighbor swapped for another one that exists: a valid graph, only not the one that was built.
        rows, scores = loaded.search(draw(20, DIMENSIONS, seed=4), 10)
        assert (rows >= 0).all()
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: None], ids=["directory", "missing"])
def test_what_is_no_file_is_refused(tmp_path: Path, make):
    path = tmp_path / "index.hnsw"
    make(path)

    with pytest.raises(DamagedIndex, match="can't be read"):
        check_file(path, dimensions=DIMENSIONS, items=ITEMS)


def test_child_that_crashes_is_a_refusal(tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "index.hnsw"
    path.write_bytes(good)
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))

    with pytest.raises(DamagedIndex, match="status -11"):
        check_file(path, dimensions=DIMENSIONS, items=ITEMS)


def test_child_that_hangs_is_a_refusal(tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "index.hnsw"
    path.write_bytes(good)
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 30\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hanging))

    with pytest.raises(DamagedIndex, match="did not end"):
        check_file(path, dimensions=DIMENSIONS, items=ITEMS, timeout_s=0.2)


def test_child_needs_no_torch():
    code = "import sys, engine.ann.check; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
