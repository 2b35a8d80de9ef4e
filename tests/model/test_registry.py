from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import ConfigError, DamagedVersion, IncompatibleVersion, ModelError, RegistryUnusable, UnknownVersion
from engine.model.parts import MAX_FILE_BYTES, VersionParts
from engine.model.registry import Registry
from tests.builders import NOON_MS

FILES = (
    "config.json",
    "index.hnsw",
    "item_vectors.safetensors",
    "items.json",
    "popular.json",
    "vocabulary.json",
    "weights.safetensors",
)


def small_parts(**changes: Any) -> VersionParts:
    """Parts that fit one another; the registry knows nothing of what a model makes of them."""
    vectors = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    parts = VersionParts(
        popular={"overall": ["a", "b"], "by_category": {"mugs": ["a"]}},
        config={"dimensions": 4},
        vocabulary={"items": ["a", "b", "ü"]},
        tensors={"table": vectors * 2, "scale": np.array(1.5, dtype=np.float32), "rows": np.zeros(2, dtype=np.int64)},
        item_ids=["a", "b", "ü"],
        item_vectors=vectors,
        index=b"graph",
        manifest={"parent": "0000", "metrics": {"recall_at_50": 0.2}, "training": {"clicks": 10}},
    )
    return dataclasses.replace(parts, **changes)


@pytest.fixture(params=["directory", "object store"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return Registry(str(tmp_path) if request.param == "directory" else f"memory://{tmp_path}")


@pytest.fixture
def published(tmp_path: Path) -> tuple[Registry, Path]:
    """A registry in a directory with one version, and that version's folder."""
    registry = Registry(str(tmp_path))
    version = registry.publish(small_parts(), created_at_ms=NOON_MS)
    return registry, tmp_path / "versions" / version


def rewrite_manifest(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Put *content* in place with a manifest that fits, as a publisher with a fault would."""
    (folder / name).write_bytes(content)

    def relist(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    rewrite_manifest(folder, relist)


def test_published_version_is_loaded_as_it_was(registry: Registry):
    version = registry.publish(small_parts(), created_at_ms=NOON_MS)

    loaded = registry.load(version, manifest_sha256=registry.manifest_sha256(version))

    expected = small_parts()
    assert (loaded.config, loaded.vocabulary, loaded.popular) == (
        expected.config,
        expected.vocabulary,
        expected.popular,
    )
    assert (loaded.item_ids, loaded.index) == (expected.item_ids, expected.index)
    np.testing.assert_array_equal(loaded.item_vectors, expected.item_vectors)
    assert {name: (t.shape, t.dtype) for name, t in loaded.tensors.items()} == {
        name: (t.shape, t.dtype) for name, t in expected.tensors.items()
    }


def test_graph_can_be_loaded_into_a_file_in_place_of_memory(registry: Registry, tmp_path: Path):
    version, path = registry.publish(small_parts(), created_at_ms=NOON_MS), tmp_path / "copied"

    loaded = registry.load(version, index_file=path)

    assert (loaded.index, path.read_bytes()) == (None, small_parts().index)


def test_graph_that_is_not_what_the_manifest_says_is_refused_on_its_way_into_a_file(
    published: tuple[Registry, Path], tmp_path: Path
):
    registry, folder = published
    version, file = folder.name, folder / "index.hnsw"
    content = file.read_bytes()
    for number, other in enumerate((content[:-1], content + b"x", bytes([content[0] ^ 1]) + content[1:], None)):
        file.unlink()
        if other is not None:
            file.write_bytes(other)

        with pytest.raises(DamagedVersion, match=r"index\.hnsw"):
            registry.load(version, index_file=tmp_path / str(number))


def test_manifest_names_every_file_and_where_the_version_comes_from(registry: Registry):
    manifest = registry.manifest(registry.publish(small_parts(), created_at_ms=NOON_MS))

    assert tuple(sorted(manifest["files"])) == FILES
    assert (manifest["version"], manifest["parent"], manifest["created_at_ms"]) == ("0001", "0000", NOON_MS)
    assert (manifest["items"], manifest["dimensions"]) == (3, 4)
    assert (manifest["metrics"], manifest["training"]) == ({"recall_at_50": 0.2}, {"clicks": 10})


def test_versions_are_numbered_in_the_order_of_publishing(registry: Registry):
    published = [registry.publish(small_parts(), created_at_ms=NOON_MS) for _ in range(3)]

    assert published == ["0001", "0002", "0003"]
    assert registry.list_versions() == published


def test_version_zero_is_popular_lists_alone_and_is_written_once(registry: Registry):
    other = small_parts(popular={"overall": ["z"], "by_category": {}})

    names = [registry.publish_popular(parts, created_at_ms=NOON_MS) for parts in (small_parts(), other)]

    loaded = registry.load("0000")
    assert names == ["0000", "0000"]
    assert (loaded.has_model, loaded.item_vectors, loaded.tensors) == (False, None, {})
    assert loaded.popular["overall"] == ["a", "b"]


def test_empty_registry_has_no_versions(registry: Registry):
    assert registry.list_versions() == []


@pytest.mark.parametrize("version", ["0007", "../0001", "/etc", "", "1", "00001", "0001/../0001", "manifest.json"])
def test_version_that_is_not_there_is_unknown(published: tuple[Registry, Path], version: str):
    with pytest.raises(UnknownVersion):
        published[0].load(version)


def test_publishers_at_the_same_time_get_numbers_of_their_own(registry: Registry):
    numbers: list[str] = []

    def publish() -> None:
        for _ in range(5):
            numbers.append(registry.publish(small_parts(), created_at_ms=NOON_MS))

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(numbers) == [f"{number:04d}" for number in range(1, 21)]
    assert all(registry.load(number) for number in numbers)


KILL_PUBLISHERS = """
import os, random, signal, sys, time
import numpy as np
from engine.model.parts import VersionParts
from engine.model.registry import Registry
vectors = np.ones((20_000, 4), dtype=np.float32)
parts = VersionParts({"overall": [], "by_category": {}}, {"dimensions": 4}, {}, {"table": vectors},
                     [str(n) for n in range(20_000)], vectors)
wait = random.Random(5)
for _ in range(int(sys.argv[2])):
    publisher = os.fork()
    while not publisher:
        Registry(sys.argv[1]).publish(parts, created_at_ms=1)
    time.sleep(wait.uniform(0.0, 0.1))
    os.kill(publisher, signal.SIGKILL)
    os.waitpid(publisher, 0)
"""


def test_publishers_killed_at_any_moment_leave_only_whole_versions(tmp_path: Path):
    subprocess.run([sys.executable, "-c", KILL_PUBLISHERS, str(tmp_path), "20"], check=True)
    registry = Registry(str(tmp_path))

    after = registry.publish(small_parts(), created_at_ms=NOON_MS)

    versions = registry.list_versions()
    assert list((tmp_path / "versions").glob(".publishing-*")), "no publisher was killed in the middle"
    assert versions[-1] == after
    assert all(registry.load(version).has_model for version in versions)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_in_any_file_is_refused(published: tuple[Registry, Path], name: str):
    registry, folder = published
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)

    with pytest.raises(DamagedVersion, match=f"{name} has sha256"):
        registry.load("0001")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "extended", "missing", "empty"])
def test_file_of_another_size_is_refused(published: tuple[Registry, Path], name: str, damage: str):
    registry, folder = published
    content = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    else:
        damaged = {"truncated": content[:-1], "extended": content + b"\0", "empty": b""}[damage]
        (folder / name).write_bytes(damaged)

    with pytest.raises(DamagedVersion, match=name):
        registry.load("0001")


def test_file_of_another_version_is_refused(published: tuple[Registry, Path]):
    registry, folder = published
    registry.publish(small_parts(config={"dimensions": 4, "seed": 9}), created_at_ms=NOON_MS)
    (folder / "config.json").write_bytes((folder.parent / "0002" / "config.json").read_bytes())

    with pytest.raises(DamagedVersion, match=r"config\.json"):
        registry.load("0001")


def test_version_without_manifest_is_none(published: tuple[Registry, Path]):
    registry, folder = published
    (folder / "manifest.json").unlink()

    assert registry.list_versions() == []
    with pytest.raises(UnknownVersion):
        registry.load("0001")
    assert registry.publish(small_parts(), created_at_ms=NOON_MS) == "0002"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1', b"NaN", b"[" * 100_000])
def test_manifest_that_is_no_json_object_is_refused(published: tuple[Registry, Path], content: bytes):
    registry, folder = published
    (folder / "manifest.json").write_bytes(content)

    with pytest.raises(DamagedVersion, match="manifest"):
        registry.load("0001")


def test_manifest_other_than_the_announced_one_is_refused(published: tuple[Registry, Path]):
    with pytest.raises(DamagedVersion, match="manifest"):
        published[0].load("0001", manifest_sha256="0" * 64)


@pytest.mark.parametrize(
    ("key", "value"), [("format", 2), ("format", None), ("version", "0002"), ("items", 4), ("dimensions", 8)]
)
def test_manifest_that_says_something_else_is_refused(published: tuple[Registry, Path], key: str, value: object):
    registry, folder = published
    rewrite_manifest(folder, lambda manifest: manifest.update({key: value}))

    with pytest.raises(IncompatibleVersion):
        registry.load("0001")


@pytest.mark.parametrize("name", ["../0002/config.json", "/etc/passwd", "extra.bin", "manifest.json"])
def test_manifest_that_lists_another_file_is_refused(published: tuple[Registry, Path], name: str):
    registry, folder = published
    entry = {"size": 1, "sha256": "0" * 64}
    rewrite_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))

    with pytest.raises(IncompatibleVersion, match="list of files"):
        registry.load("0001")


@pytest.mark.parametrize("size", [MAX_FILE_BYTES + 1, 50 * 2**30, -1, 1.5, True, None, "7"])
def test_size_beyond_reason_is_refused_unread(published: tuple[Registry, Path], size: object):
    registry, folder = published
    rewrite_manifest(folder, lambda manifest: manifest["files"]["config.json"].update(size=size))

    with pytest.raises(DamagedVersion, match=r"config\.json"):
        registry.load("0001")


def test_link_in_place_of_a_file_is_refused(published: tuple[Registry, Path]):
    registry, folder = published
    (folder / "config.json").rename(folder.parent / "elsewhere")
    (folder / "config.json").symlink_to(folder.parent / "elsewhere")

    with pytest.raises(DamagedVersion, match="link"):
        registry.load("0001")


def test_linked_version_directory_is_refused(published: tuple[Registry, Path]):
    registry, folder = published
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")

    with pytest.raises(DamagedVersion, match="link"):
        registry.load("0001")


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_is_refused_without_waiting(published: tuple[Registry, Path], kind: str):
    registry, folder = published
    (folder / "config.json").unlink()
    if kind == "pipe":
        os.mkfifo(folder / "config.json")
    else:
        (folder / "config.json").mkdir()

    with pytest.raises(DamagedVersion, match=r"config\.json"):
        registry.load("0001")


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\x80\x04K\x01.", b"PK\x03\x04", b"\x7fELF", (2**63).to_bytes(8, "little") + b"{}"],
    ids=["empty", "no header", "pickle", "zip", "program", "huge header"],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "item_vectors.safetensors"])
def test_tensors_in_another_format_are_refused(published: tuple[Registry, Path], name: str, content: bytes):
    registry, folder = published
    replace_file(folder, name, content)

    with pytest.raises(DamagedVersion, match="no tensors"):
        registry.load("0001")


NO_OBJECTS = [b"", b"{", b"null", b"7", b'["a", 7, null]']


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in FILES if name.endswith(".json") for content in NO_OBJECTS),
        ("items.json", b'{"overall": "a"}'),
        ("popular.json", b'{"overall": "a", "by_category": {}}'),
    ],
)
def test_json_of_another_shape_is_refused(published: tuple[Registry, Path], name: str, content: bytes):
    registry, folder = published
    replace_file(folder, name, content)

    with pytest.raises((DamagedVersion, IncompatibleVersion)):
        registry.load("0001")


UNFIT = {
    "NaN weight": {"tensors": {"table": np.array([1, np.nan], dtype=np.float32)}},
    "infinite weight": {"tensors": {"table": np.array([1, np.inf], dtype=np.float32)}},
    "exploded weight": {"tensors": {"table": np.array([1, 1e9], dtype=np.float32)}},
    "only zeros": {"tensors": {"table": np.zeros(4, dtype=np.float32)}},
    "complex weight": {"tensors": {"table": np.ones(4, dtype=np.complex64)}},
    "zero item vectors": {"item_vectors": np.zeros((3, 4), dtype=np.float32)},
    "NaN item vector": {"item_vectors": np.full((3, 4), np.nan, dtype=np.float32)},
    "other dimension": {"item_vectors": np.ones((3, 5), dtype=np.float32)},
    "flat item vectors": {"item_vectors": np.ones(12, dtype=np.float32)},
    "double item vectors": {"item_vectors": np.ones((3, 4), dtype=np.float64)},
    "no item vectors": {"item_vectors": None},
    "fewer ids": {"item_ids": ["a", "b"]},
    "repeated id": {"item_ids": ["a", "b", "b"]},
    "empty id": {"item_ids": ["a", "b", ""]},
    "no vocabulary": {"vocabulary": None},
    "no popular lists": {"popular": {"overall": []}},
}


@pytest.mark.parametrize("what", UNFIT)
def test_parts_that_are_not_fit_to_serve_are_not_published(registry: Registry, what: str):
    with pytest.raises(ModelError):
        registry.publish(small_parts(**UNFIT[what]), created_at_ms=NOON_MS)

    assert registry.list_versions() == []


def test_registry_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "versions").write_text("a file where the directory should be")

    with pytest.raises(RegistryUnusable, match=str(tmp_path)):
        Registry(str(tmp_path)).publish(small_parts(), created_at_ms=NOON_MS)


def test_pruning_keeps_the_last_ones_version_zero_and_those_named(registry: Registry):
    registry.publish_popular(small_parts(), created_at_ms=NOON_MS)
    for _ in range(5):
        registry.publish(small_parts(), created_at_ms=NOON_MS)

    deleted = registry.prune(keep_last=2, keep=["0002"])

    assert deleted == ["0001", "0003"]
    assert registry.list_versions() == ["0000", "0002", "0004", "0005"]
    assert registry.publish(small_parts(), created_at_ms=NOON_MS) == "0006"


def test_pruning_removes_what_killed_publishers_left_after_a_day(published: tuple[Registry, Path]):
    registry, folder = published
    left = folder.parent / ".publishing-0002-killed"
    left.mkdir()

    registry.prune(keep_last=5, now_s=left.stat().st_mtime + 3_600)
    assert left.exists()

    registry.prune(keep_last=5, now_s=left.stat().st_mtime + 90_000)
    assert not left.exists()


@pytest.mark.parametrize("url", ["nosuch://models", "abfs://models"])
def test_address_that_can_not_be_opened_here_is_a_wrong_setting(url: str):
    with pytest.raises(ConfigError, match="MINDSTREAM_REGISTRY_URL must be a directory, or an address that fsspec can"):
        Registry(url)
