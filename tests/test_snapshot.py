from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from engine.ann.calibration import EXACT_IS_WORTH
from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex
from engine.ann.index import NO_ROW
from engine.errors import DamagedIndex, DamagedVersion, IncompatibleVersion, ItemIndexError, ModelError, UnknownVersion
from engine.model import UserInput
from engine.model.parts import VersionParts
from engine.model.registry import Registry
from engine.settings import Settings
from engine.snapshot import SnapshotHolder, builder_of, canary_interests, load_snapshot
from tests.builders import NOON_MS
from tests.served import ITEM_IDS, make_model, make_parts, make_popular_snapshot, make_snapshot


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def publish(settings: Settings, parts: VersionParts) -> str:
    return Registry(settings.registry).publish(parts, created_at_ms=NOON_MS)


def test_loaded_snapshot_recalls_as_the_published_model_does(settings: Settings):
    version = publish(settings, make_parts())

    loaded = load_snapshot(settings.model_copy(update={"index_backend": "hnsw"}), version, 3)

    expected, user = make_snapshot(), UserInput(list(ITEM_IDS[:6]))
    assert loaded.model is not None
    assert expected.model is not None
    vectors = loaded.model.interests([user]).vectors
    np.testing.assert_array_equal(vectors, expected.model.interests([user]).vectors)
    assert loaded.index is not None
    assert expected.index is not None
    np.testing.assert_array_equal(loaded.index.search(vectors[0], 10), expected.index.search(vectors[0], 10))
    assert list(loaded.item_ids) == list(expected.item_ids)


def test_snapshot_carries_version_activation_time_metrics_and_popular_lists(settings: Settings):
    parts = dataclasses.replace(make_parts(), manifest={"metrics": {"recall_at_50": 0.25}})
    publish(settings, parts)
    version = publish(settings, parts)

    loaded = load_snapshot(settings, version, 17)

    assert (loaded.model_version, loaded.activation, loaded.trained_at_ms) == ("0002", 17, NOON_MS)
    assert loaded.metrics == {"recall_at_50": 0.25}
    assert list(loaded.popular.overall) == parts.popular["overall"]


@pytest.mark.parametrize(("backend", "kind"), [("hnsw", HnswIndex), ("exact", ExactIndex)])
def test_setting_chooses_what_searches(settings: Settings, backend: str, kind: type):
    version = publish(settings, make_parts())

    loaded = load_snapshot(settings.model_copy(update={"index_backend": backend}), version, 0)

    assert isinstance(loaded.index, kind)
    assert loaded.room is not None
    assert len(loaded.room) > len(loaded.index.vectors)
    assert np.shares_memory(loaded.room, loaded.index.vectors)
    assert (loaded.without_index().index, loaded.without_index().room) == (None, None)


def test_canary_windows_are_of_items_that_lie_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    ids, vectors = model.all_item_vectors()
    windows: list[UserInput] = []
    interests = model.interests
    monkeypatch.setattr(model, "interests", lambda users: windows.extend(users) or interests(users))

    queries, count = canary_interests("0001", model, ids, vectors), len(windows)

    lengths = np.linalg.norm(vectors, axis=1)
    cosines = vectors @ vectors.T / lengths / lengths[:, None]
    tastes = [frozenset(np.argsort(-row)[:4].tolist()) for row in cosines]
    rows = np.array([[ids.index(item_id) for item_id in window.item_ids] for window in windows]).reshape(-1, 4)
    assert {frozenset(taste) for taste in rows.tolist()} <= set(tastes)
    assert queries.shape[1] == vectors.shape[1]
    np.testing.assert_array_equal(canary_interests("0001", model, ids, vectors), queries)
    assert len(canary_interests("0001", model, ids[:1], vectors[:1])) == count


def test_without_a_choice_a_measurement_decides_what_searches_and_it_is_named(settings: Settings):
    version = publish(settings, make_parts())

    with capture_logs() as logs:
        loaded = load_snapshot(settings, version, 0)

    (chosen,) = [line for line in logs if line["event"] == "index_chosen"]
    assert chosen["half_recall"] >= 0.98
    times = {"exact": chosen["exact_ms"], "exact_half": chosen["half_ms"]}
    fastest, longest = min(times.values()), EXACT_IS_WORTH * chosen["graph_ms"]
    assert times.get(chosen["backend"], fastest) == fastest
    assert fastest <= longest + 0.002 if chosen["backend"] in times else fastest >= longest - 0.002
    assert isinstance(loaded.index, HnswIndex if chosen["backend"] == "hnsw" else ExactIndex)
    assert chosen["graph_recall"] >= 0.98
    for name in ("exact", "exact_half", "hnsw"):
        shown = REGISTRY.get_sample_value("mindstream_index_info", {"backend": name})
        assert shown == float(name == chosen["backend"])


def test_an_index_made_anew_is_like_the_one_it_takes_the_place_of(settings: Settings):
    vectors = make_parts().item_vectors
    assert vectors is not None

    rows = np.arange(1, len(vectors))

    graph = builder_of(settings, like=HnswIndex.build(vectors, ef=333))(vectors, rows=rows)
    exact = builder_of(settings, like=ExactIndex(vectors))(vectors, rows=rows)
    half = builder_of(settings, like=ExactIndex(vectors, is_half=True))(vectors, rows=rows)

    assert isinstance(graph, HnswIndex)
    assert graph.ef == 333
    assert isinstance(exact, ExactIndex)
    assert isinstance(half, ExactIndex)
    assert (exact.is_half, half.is_half) == (False, True)
    for index in (graph, exact, half):
        assert (index.size, index.search(vectors[:1], len(vectors))[0].min()) == (len(rows), NO_ROW)
        assert 0 not in index.search(vectors[:1], 10)[0]


def test_version_zero_has_popular_lists_and_neither_model_nor_index(settings: Settings):
    version = Registry(settings.registry).publish_popular(make_parts(), created_at_ms=NOON_MS)

    loaded = load_snapshot(settings, version, 0)

    assert (loaded.model, loaded.index, loaded.item_ids) == (None, None, ())
    assert loaded.popular.overall


def test_unknown_version_is_refused(settings: Settings):
    with pytest.raises(UnknownVersion, match="0009"):
        load_snapshot(settings, "0009", 0)


def damaged(what: str) -> VersionParts:
    parts, other = make_parts(), make_parts(seed=8)
    assert parts.index is not None
    assert parts.item_vectors is not None
    name, tensor = next((name, tensor) for name, tensor in parts.tensors.items() if tensor.ndim == 2)
    changes = {
        "index of another version": {"index": other.index},
        "truncated index": {"index": parts.index[:-100]},
        "no index": {"index": None},
        "missing tensor": {"tensors": {key: value for key, value in parts.tensors.items() if key != name}},
        "extra tensor": {"tensors": {**parts.tensors, "extra": tensor}},
        "cut tensor": {"tensors": {**parts.tensors, name: tensor[:-1]}},
        "shorter vocabulary": {"vocabulary": {**(parts.vocabulary or {}), "items": list(ITEM_IDS[:-1])}},
        "unknown config": {"config": {**(parts.config or {}), "unheard_of": 1}},
        "no items": {
            "item_ids": [],
            "item_vectors": parts.item_vectors[:0],
            "index": HnswIndex.build(parts.item_vectors[:0]).to_bytes(),
        },
    }
    return dataclasses.replace(parts, **changes[what])


@pytest.mark.parametrize(
    "what",
    [
        "index of another version",
        "truncated index",
        "no index",
        "missing tensor",
        "extra tensor",
        "cut tensor",
        "shorter vocabulary",
        "unknown config",
        "no items",
    ],
)
def test_version_whose_parts_do_not_fit_one_another_is_refused(settings: Settings, what: str):
    version = publish(settings, damaged(what))

    with pytest.raises((IncompatibleVersion, DamagedVersion, DamagedIndex)):
        load_snapshot(settings, version, 0)


def test_no_flipped_bit_in_any_file_gets_past_the_checks(settings: Settings):
    version = publish(settings, make_parts())
    folder, random = Path(settings.registry) / "versions" / version, np.random.default_rng(7)
    manifest_sha256 = Registry(settings.registry).manifest_sha256(version)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for at in random.integers(len(content) * 8, size=10).tolist():
            flipped = bytearray(content)
            flipped[at // 8] ^= 1 << at % 8
            path.write_bytes(flipped)
            with pytest.raises((ModelError, ItemIndexError)):
                load_snapshot(settings, version, 0, manifest_sha256=manifest_sha256)
        path.write_bytes(content)

    assert load_snapshot(settings, version, 0, manifest_sha256=manifest_sha256).model is not None


def test_swap_returns_the_snapshot_it_retires():
    first, second = make_popular_snapshot(), make_popular_snapshot(activation=4)
    holder = SnapshotHolder()

    assert holder.current is None
    assert holder.swap(first) is None
    assert holder.swap(second) is first
    assert holder.current is second


def test_readers_during_swaps_never_see_two_versions():
    snapshots = [make_snapshot(ITEM_IDS[:100], activation=number, seed=number) for number in (1, 2)]
    holder, mixed, reads = SnapshotHolder(snapshots[0]), [], []
    user = UserInput(list(ITEM_IDS[:6]))
    expected = {}
    for snapshot in snapshots:
        assert snapshot.model is not None
        assert snapshot.index is not None
        found = snapshot.index.search(snapshot.model.interests([user]).vectors[0], 10)
        expected[snapshot.model_version] = found

    def read() -> None:
        for _ in range(60):
            current = holder.current
            assert current is not None
            assert current.model is not None
            assert current.index is not None
            rows, scores = current.index.search(current.model.interests([user]).vectors[0], 10)
            wanted_rows, wanted_scores = expected[current.model_version]
            if not (np.array_equal(rows, wanted_rows) and np.array_equal(scores, wanted_scores)):
                mixed.append(current.model_version)
            reads.append(current.model_version)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    swaps = 0
    while any(reader.is_alive() for reader in readers):
        swaps += 1
        holder.swap(snapshots[swaps % 2])

    assert set(reads) == {"0001", "0002"}
    assert not mixed


def test_activating_again_keeps_the_parts():
    snapshot = make_popular_snapshot(activation=1)

    again = snapshot.activated(9)

    assert again == dataclasses.replace(snapshot, activation=9)


def test_loading_sets_how_many_threads_torch_works_with_in_the_threads_that_come(settings: Settings):
    version, before = publish(settings, make_parts()), torch.get_num_threads()
    counts: list[int] = []

    try:
        load_snapshot(settings.model_copy(update={"torch_threads": 3}), version, 3)
        refreshing = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        refreshing.start()
        refreshing.join()
    finally:
        torch.set_num_threads(before)

    assert counts == [3]
