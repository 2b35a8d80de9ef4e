from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from engine.errors import CheckpointsUnusable
from engine.settings import Settings
from engine.store.checkpoints import Checkpoint, Checkpoints
from engine.store.recovery import Recovery
from engine.store.windows import PartitionStore
from engine.streams import checkpointing
from engine.streams.checkpointing import Checkpointer
from engine.streams.clicks import Ingest
from engine.streams.dead_letters import DeadLetters
from tests.store.test_checkpoints import HEADER, apply, filled
from tests.streams.intake import EPOCH, Bench, record


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", checkpoint_every_s=1.0)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path / "checkpoints"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PartitionStore]:
    opened = filled(tmp_path / "store", 10)
    yield opened
    opened.close()


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("mindstream_checkpoints_total", {"outcome": outcome}) or 0.0


def offsets(checkpoints: Checkpoints) -> list[int]:
    return [checkpoint.applied_offset for checkpoint in checkpoints.find(HEADER)]


class WithCheckpoints(Bench):
    """Ingest that hands its partitions over by checkpoints."""

    def __init__(self, settings: Settings, checkpoints: Checkpoints) -> None:
        super().__init__(settings)
        self.checkpointer = Checkpointer(settings, checkpoints)
        self.ingest = Ingest(
            settings,
            EPOCH,
            DeadLetters(settings, self.log, EPOCH.text),
            self.refresh,
            on_failure=self.failures.append,
            recovery=Recovery(settings, checkpoints),
            checkpointer=self.checkpointer,
        )


async def test_the_next_owner_of_a_partition_goes_on_where_the_last_one_stopped(
    settings: Settings, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    first = WithCheckpoints(settings, checkpoints)
    second = WithCheckpoints(settings.model_copy(update={"data_dir": tmp_path / "other"}), checkpoints)

    assert await first.own(end=3) == 0
    await first.take(*(record(offset) for offset in range(3)))
    await first.ingest.revoke()
    assert await second.own(end=3) == 3
    assert second.store.read_window("u1").item_ids == ["i0", "i1", "i2"]
    await second.take(record(3))
    await second.ingest.revoke()
    assert await first.own(end=4) == 4, "its own store is the older one now"

    assert first.store.read_window("u1").item_ids == ["i0", "i1", "i2", "i3"]
    for bench in (first, second):
        await bench.ingest.close()
        await bench.checkpointer.close()


async def test_a_store_is_copied_again_and_again_while_it_changes(
    settings: Settings, checkpoints: Checkpoints, store: PartitionStore
) -> None:
    checkpointer = Checkpointer(settings, checkpoints)
    keeping = asyncio.create_task(checkpointer.keep(lambda: {2: store}))
    before = counted("written")

    await until(lambda: offsets(checkpoints) == [9])
    apply(store, 5, first=10)
    await until(lambda: offsets(checkpoints) == [14, 9])
    await asyncio.sleep(2.5 * settings.checkpoint_every_s)

    assert offsets(checkpoints) == [14, 9], "nothing new, nothing written"
    assert counted("written") == before + 2
    assert REGISTRY.get_sample_value("mindstream_checkpoint_lag") == 0
    keeping.cancel()
    await checkpointer.close()
    assert not list((settings.data_dir / "engine" / "copies").iterdir())


async def test_a_place_out_of_reach_is_counted_and_tried_again(settings: Settings, store: PartitionStore) -> None:
    place = Flaky("memory://flaky")
    checkpointer = Checkpointer(settings, place)
    before = counted("failed")
    keeping = asyncio.create_task(checkpointer.keep(lambda: {2: store}))

    await until(lambda: counted("failed") == before + 2)
    place.is_down = False
    await until(lambda: offsets(place) == [9])

    keeping.cancel()
    await checkpointer.close()


class Flaky(Checkpoints):
    """An object store that can't be reached while it is down."""

    is_down = True

    def write(self, *arguments: object, **options: object) -> Checkpoint:
        if self.is_down:
            raise CheckpointsUnusable(self.url, cause="no answer")
        return super().write(*arguments, **options)  # type: ignore[arg-type]


class Slow(Checkpoints):
    """An object store that takes as long as it wants."""

    may_end = threading.Event()

    def write(self, *arguments: object, **options: object) -> Checkpoint:
        self.may_end.wait(30)
        return super().write(*arguments, **options)  # type: ignore[arg-type]


async def test_a_hand_over_does_not_wait_for_a_slow_place(
    settings: Settings, store: PartitionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "HAND_OVER_WITHIN_S", 0.05)
    other = filled(tmp_path / "second", 10)
    place = Slow(str(tmp_path / "slow"))
    checkpointer = Checkpointer(settings, place)

    await checkpointer.hand_over([store, other])
    other.close()  # RocksDB lets go of it although its copy is still due
    PartitionStore.open(tmp_path / "second", HEADER).close()
    place.may_end.set()
    await checkpointer.close()

    assert offsets(place) == [9], "what was under way is finished, it is a checkpoint like any other"


async def until(is_true: object) -> None:
    assert callable(is_true)
    for _ in range(600):
        if is_true():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not within 30 s")
