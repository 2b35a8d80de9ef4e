from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex
from engine.ann.index import Vectors
from engine.errors import DamagedIndex, ItemIndexError
from tests.ann.test_index import draw
from tests.ann.vectors import load_content


def clustered(items: int, *, seed: int = 3) -> Vectors:
    """Item vectors as training leaves them: in clusters, of different lengths."""
    random = np.random.default_rng(seed)
    centers = random.standard_normal((40, 32))
    vectors = centers[random.integers(40, size=items)] + 0.5 * random.standard_normal((items, 32))
    return (vectors * random.uniform(0.5, 2.0, size=(items, 1))).astype(np.float32)


def test_graph_finds_at_least_98_percent_of_the_50_nearest():
    vectors, interests = clustered(3_000), clustered(200, seed=4)

    found, _ = HnswIndex.build(vectors).search(interests, 50)

    exact, _ = ExactIndex(vectors).search(interests, 50)
    overlap = [len(set(a) & set(b)) / 50 for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    assert np.mean(overlap) >= 0.98


def test_scores_are_the_same_numbers_as_those_of_exact_search():
    vectors, interests = clustered(500), clustered(20, seed=4)

    rows, scores = HnswIndex.build(vectors, ef=500).search(interests, 20)

    exact_rows, exact_scores = ExactIndex(vectors).search(interests, 20)
    same = rows == exact_rows
    assert same.mean() > 0.95
    np.testing.assert_array_equal(scores[same], exact_scores[same])


def test_same_vectors_give_the_same_file(tmp_path: Path):
    first, second = (HnswIndex.build(clustered(800), threads=2).save(tmp_path / f"{n}.hnsw") for n in range(2))

    assert first == second


def test_saved_and_loaded_graph_answers_the_same(tmp_path: Path):
    vectors, interests = clustered(500), clustered(20, seed=4)
    built = HnswIndex.build(vectors)
    saved = built.save(tmp_path / "index.hnsw")

    loaded = HnswIndex.load(tmp_path / "index.hnsw", vectors)

    content = (tmp_path / "index.hnsw").read_bytes()
    assert (saved.size, saved.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    np.testing.assert_array_equal(loaded.search(interests, 20), built.search(interests, 20))


@pytest.mark.parametrize("items", [0, 1, 2, 33])
def test_small_graph_can_be_saved_and_loaded(items: int):
    vectors = draw(items)

    loaded = load_content(HnswIndex.build(vectors).to_bytes(), vectors)

    assert loaded.size == items
    assert (np.sort(loaded.search(draw(1, seed=4), 33)[0][0])[33 - items :] == np.arange(items)).all()


def test_query_that_reaches_too_few_items_is_answered_in_full():
    # Items without a direction are neighbors of nobody in particular; asking for all of them makes hnswlib give up.
    vectors = np.vstack([draw(300), np.zeros((300, 8), dtype=np.float32)])

    rows, scores = HnswIndex.build(vectors, ef=10).search(draw(3, seed=4), 600)

    assert [sorted(found) for found in rows.tolist()] == [list(range(600))] * 3
    assert np.isfinite(scores).all()


def test_asking_for_more_widens_the_search():
    index = HnswIndex.build(clustered(500), ef=10)

    index.search(clustered(1, seed=4), 300)

    assert index.ef == 450


def test_many_threads_may_search_at_once():
    index, interests = HnswIndex.build(clustered(1_000)), clustered(64, seed=4)
    expected = index.search(interests, 50)
    wrong: list[int] = []

    def search() -> None:
        for _ in range(20):
            if not np.array_equal(index.search(interests, 50)[0], expected[0]):
                wrong.append(1)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


def test_save_into_a_missing_directory_is_an_error(tmp_path: Path):
    with pytest.raises(DamagedIndex, match="directory"):
        HnswIndex.build(draw(5)).save(tmp_path / "missing" / "index.hnsw")


def test_write_to_a_full_disk_is_an_error():
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full on this system")
    index = HnswIndex.build(clustered(500))

    with pytest.raises((DamagedIndex, OSError)):
        index._write(path)


def test_graph_of_other_vectors_is_refused():
    content = HnswIndex.build(draw(50)).to_bytes()

    with pytest.raises(DamagedIndex, match="other vectors"):
        load_content(content, draw(50, seed=9))


@pytest.mark.parametrize("dimensions", [7, 4, 16, 64])
def test_graph_of_another_dimension_is_refused(dimensions: int):
    content = HnswIndex.build(draw(50)).to_bytes()

    with pytest.raises(ItemIndexError, match="header"):
        load_content(content, draw(50, dimensions))


def test_what_a_killed_process_left_behind_goes_and_what_another_one_uses_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, used, foreign = tmp_path / "mindstream-index-left", tmp_path / "mindstream-index-used", tmp_path / "other"
    for folder in (left, used, foreign):
        folder.mkdir()
        (folder / "index.hnsw").write_bytes(b"graph")
    for folder in (left, foreign):
        os.utime(folder, (1, 1))

    HnswIndex.build(clustered(10)).to_bytes()

    assert sorted(tmp_path.iterdir()) == [used, foreign]
