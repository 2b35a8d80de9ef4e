from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ConfigError
from engine.hotswap import HotSwap, read_announcement
from engine.log import Message, Publisher
from engine.metrics import MODEL_INFO, SWAPS
from engine.model.parts import VersionParts
from engine.model.registry import Registry
from engine.settings import Settings
from engine.snapshot import ServingSnapshot, SnapshotHolder
from engine.streams.topics import create_topics
from tests.builders import NOON_MS
from tests.served import make_parts

_prefixes = (f"swap{number}-" for number in itertools.count())


class Lab:
    """A registry, the topic `models`, and whatever follows it in a test."""

    def __init__(self, settings: Settings, publisher: Publisher) -> None:
        self.settings = settings
        self.registry = Registry(settings.registry)
        self.swapped: list[tuple[str, int]] = []
        self._publisher = publisher
        self._running: list[HotSwap] = []

    def folder(self, version: str) -> Path:
        return Path(self.settings.registry) / "versions" / version

    def publish(self, *, seed: int = 7) -> str:
        return self.registry.publish(make_parts(seed=seed), created_at_ms=NOON_MS)

    async def announce(self, version: str, **changes: object) -> int:
        sha256 = self.registry.manifest_sha256(version) if self.folder(version).exists() else "0" * 64
        value = {"model_version": version, "manifest_sha256": sha256, "announced_at_ms": NOON_MS, **changes}
        return await self.send(json.dumps(value).encode())

    async def send(self, value: bytes | None) -> int:
        message = Message(self.settings.topic("models"), value, b"model")
        return (await self._publisher.send(message)).offset

    async def start(self) -> SnapshotHolder:
        holder = SnapshotHolder()
        hotswap = HotSwap(self.settings, holder, self.note)
        await hotswap.start()
        self._running.append(hotswap)
        await asyncio.wait_for(hotswap.caught_up.wait(), 60)
        return holder

    def note(self, snapshot: ServingSnapshot) -> None:
        self.swapped.append((snapshot.model_version, snapshot.activation))

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_true():
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        for hotswap in self._running:
            await hotswap.stop()


@pytest.fixture
async def lab(broker: Settings, tmp_path: Path) -> AsyncIterator[Lab]:
    settings = broker.model_copy(update={"topic_prefix": next(_prefixes), "data_dir": tmp_path})
    await create_topics(settings)
    publisher = Publisher(settings)
    await publisher.start()
    lab = Lab(settings, publisher)
    yield lab
    await lab.stop()
    await publisher.stop()


def refusals() -> float:
    return SWAPS.labels("refused")._value.get()


@pytest.mark.kafka
async def test_with_nothing_announced_nothing_serves_and_the_start_is_over(lab: Lab):
    holder = await lab.start()

    assert holder.current is None


@pytest.mark.kafka
async def test_last_announced_version_serves_and_those_before_it_are_skipped(lab: Lab):
    for _ in range(3):
        activation = await lab.announce(lab.publish())

    holder = await lab.start()

    assert holder.current is not None
    assert (holder.current.model_version, holder.current.activation) == ("0003", activation)
    assert lab.swapped == [("0003", activation)]


@pytest.mark.kafka
async def test_version_announced_while_running_is_swapped_in(lab: Lab):
    await lab.announce(lab.registry.publish_popular(make_parts(), created_at_ms=NOON_MS))
    holder = await lab.start()
    first = holder.current

    activation = await lab.announce(lab.publish())

    await lab.until(lambda: holder.current is not first)
    assert lab.swapped == [("0000", 0), ("0001", activation)]
    assert [sample.labels["version"] for sample in next(iter(MODEL_INFO.collect())).samples] == ["0001"]


@pytest.mark.kafka
async def test_older_version_announced_again_is_a_rollback_with_a_greater_activation(lab: Lab):
    for seed in (1, 2):
        await lab.announce(lab.publish(seed=seed))
    holder = await lab.start()

    await lab.announce("0001")

    await lab.until(lambda: len(lab.swapped) == 2)
    assert lab.swapped == [("0002", 1), ("0001", 2)]
    assert holder.current is not None
    assert holder.current.model_version == "0001"


@pytest.mark.kafka
async def test_same_version_announced_again_keeps_its_parts_in_memory(lab: Lab):
    await lab.announce(lab.publish())
    holder = await lab.start()
    first = holder.current
    shutil.rmtree(lab.folder("0001"))

    await lab.send(json.dumps({"model_version": "0001", "manifest_sha256": lab_sha256(first, lab)}).encode())

    await lab.until(lambda: len(lab.swapped) == 2)
    assert first is not None
    assert holder.current is not None
    assert (holder.current.model, holder.current.activation) == (first.model, 1)


def lab_sha256(snapshot: ServingSnapshot | None, lab: Lab) -> str:
    """Publish the same version once more elsewhere: the same parts have the same manifest."""
    assert snapshot is not None
    elsewhere = Registry(str(lab.settings.data_dir / "elsewhere"))
    return elsewhere.manifest_sha256(elsewhere.publish(make_parts(), created_at_ms=NOON_MS))


def flip(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 16
    (folder / name).write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped weight": lambda folder: flip(folder, "weights.safetensors"),
    "flipped index": lambda folder: flip(folder, "index.hnsw"),
    "truncated vectors": lambda folder: (folder / "item_vectors.safetensors").write_bytes(b"\0" * 9),
    "missing vocabulary": lambda folder: (folder / "vocabulary.json").unlink(),
    "missing manifest": lambda folder: (folder / "manifest.json").unlink(),
    "missing version": shutil.rmtree,
}


@pytest.mark.kafka
@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_version_is_refused_and_counted_and_the_current_one_serves_on(lab: Lab, damage: str):
    await lab.announce(lab.publish(seed=1))
    holder = await lab.start()
    before, counted = holder.current, refusals()
    version = lab.publish(seed=2)
    sha256 = lab.registry.manifest_sha256(version)
    DAMAGES[damage](lab.folder(version))

    await lab.send(json.dumps({"model_version": version, "manifest_sha256": sha256}).encode())

    await lab.until(lambda: refusals() == counted + 1)
    assert holder.current is before


@pytest.mark.kafka
@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"7",
        b'{"model_version": 1, "manifest_sha256": "x"}',
        b'{"model_version": "../../etc", "manifest_sha256": "x"}',
    ],
)
async def test_record_that_announces_nothing_is_refused_and_counted(lab: Lab, value: bytes | None):
    await lab.announce(lab.publish())
    holder = await lab.start()
    before, counted = holder.current, refusals()

    await lab.send(value)

    await lab.until(lambda: refusals() == counted + 1)
    assert holder.current is before


@pytest.mark.kafka
async def test_good_version_after_a_refused_one_is_swapped_in(lab: Lab):
    await lab.announce(lab.publish())
    holder = await lab.start()
    await lab.announce("0099")

    await lab.announce(lab.publish())

    await lab.until(lambda: holder.current is not None and holder.current.model_version == "0002")


@pytest.mark.kafka
async def test_start_on_a_damaged_version_serves_the_one_announced_before_it(lab: Lab):
    for seed in (1, 2, 3):
        await lab.announce(lab.publish(seed=seed))
    flip(lab.folder("0003"), "weights.safetensors")
    flip(lab.folder("0002"), "items.json")

    holder = await lab.start()

    assert holder.current is not None
    assert (holder.current.model_version, holder.current.activation) == ("0001", 0)


@pytest.mark.kafka
async def test_registry_that_is_away_is_asked_again(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.hotswap.RETRY_S", (0.05, 0.1))
    await lab.announce(lab.publish(seed=1))
    holder = await lab.start()
    counted = refusals()
    await lab.announce(lab.publish(seed=2))
    versions = lab.folder("0001").parent
    await lab.until(lambda: holder.current is not None and holder.current.model_version == "0002")

    version = lab.publish(seed=3)
    sha256 = lab.registry.manifest_sha256(version)
    versions.rename(versions.with_name("away"))
    versions.write_text("not a directory: reading fails")
    await lab.send(json.dumps({"model_version": version, "manifest_sha256": sha256}).encode())
    await asyncio.sleep(0.3)
    versions.unlink()
    versions.with_name("away").rename(versions)

    await lab.until(lambda: holder.current is not None and holder.current.model_version == version)
    assert refusals() == counted


@pytest.mark.kafka
async def test_version_that_would_answer_nonsense_is_refused(lab: Lab):
    await lab.announce(lab.publish())
    holder = await lab.start()
    before, counted = holder.current, refusals()
    parts = make_parts(seed=3)
    # Valid numbers in a valid file, whose interests overflow: only a canary window shows it.
    broken = {
        name: np.full_like(tensor, 9e5) if tensor.dtype.kind == "f" else tensor
        for name, tensor in parts.tensors.items()
    }
    version = lab.registry.publish(dataclasses.replace(parts, tensors=broken), created_at_ms=NOON_MS)

    await lab.announce(version)

    await lab.until(lambda: refusals() > counted or holder.current is not before)
    assert holder.current is before


@pytest.mark.kafka
@pytest.mark.parametrize("field", ["max_clicks", "profile_dimensions"])
async def test_version_that_a_library_stumbles_over_is_refused_and_what_serves_goes_on(lab: Lab, field: str):
    await lab.announce(lab.publish())
    holder = await lab.start()
    before, counted = holder.current, refusals()
    parts = make_parts(seed=3)
    odd = dataclasses.replace(parts, config={**(parts.config or {}), field: 10**30})

    await lab.announce(lab.registry.publish(odd, created_at_ms=NOON_MS))
    await lab.until(lambda: refusals() == counted + 1)
    assert holder.current is before
    good = lab.publish(seed=4)
    await lab.announce(good)

    await lab.until(lambda: holder.current is not None and holder.current.model_version == good)


@pytest.mark.parametrize(
    "value", [None, b"", b"\xff", b"{", b"[]", b"null", b'{"model_version": "0001"}', b"[" * 100_000]
)
def test_bytes_that_are_no_announcement_are_none(value: bytes | None):
    assert read_announcement(value, activation=3) is None


def test_announcement_carries_its_offset_as_activation():
    value = json.dumps({"model_version": "0001", "manifest_sha256": "ab", "announced_at_ms": 1}).encode()

    announcement = read_announcement(value, activation=3)

    assert announcement is not None
    assert (announcement.activation, announcement.model_version, announcement.manifest_sha256) == (3, "0001", "ab")


def test_parts_of_the_same_seed_are_the_same_version(tmp_path: Path):
    def sha256(name: str) -> str:
        registry = Registry(str(tmp_path / name))
        parts: VersionParts = make_parts()
        return registry.manifest_sha256(registry.publish(parts, created_at_ms=NOON_MS))

    assert sha256("one") == sha256("two")


def test_registry_that_can_not_be_opened_is_named_before_anything_is_followed(tmp_path: Path):
    settings = Settings(data_dir=tmp_path, registry_url="nosuch://models")

    with pytest.raises(ConfigError, match="MINDSTREAM_REGISTRY_URL"):
        HotSwap(settings, SnapshotHolder())
