"""Versions trained and published for real, swapped in under readers that never stop asking."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from engine.hotswap import HotSwap
from engine.model import UserInput
from engine.model.parts import VersionParts
from engine.model.registry import Registry
from engine.settings import Settings
from engine.snapshot import SnapshotHolder
from engine.streams.topics import create_topics
from tests.builders import NOON_MS
from tests.trainer.test_run import quiet, send, tasteful_clicks
from trainer.publish import promote
from trainer.run import run_training

pytestmark = pytest.mark.kafka
USERS = [UserInput([f"t{taste}-{number:02d}" for number in range(6)]) for taste in range(6)]


@dataclass(frozen=True)
class Answer:
    """What one reading of the holder gave: the version it said it was, and what it found."""

    version: str
    activation: int
    vectors: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    item_ids: tuple[str, ...]


class Reader(threading.Thread):
    """Asks the holder again and again, as a refresh does: one snapshot for routing, search and ids."""

    def __init__(self, holder: SnapshotHolder) -> None:
        super().__init__()
        self._holder = holder
        self.done = threading.Event()
        self.answers: list[Answer] = []
        self.failures: list[Exception] = []

    def run(self) -> None:
        while not self.done.is_set():
            try:
                self._ask()
            except Exception as error:
                self.failures.append(error)

    def _ask(self) -> None:
        current = self._holder.current
        if current is None or current.model is None or current.index is None:
            return
        found = current.model.interests(USERS)
        vectors = found.vectors[found.mask]
        rows, scores = current.index.search(vectors, 10)
        self.answers.append(
            Answer(current.model_version, current.activation, vectors, rows, scores, tuple(current.item_ids))
        )


async def test_no_answer_given_during_swaps_mixes_two_versions(broker: Settings, tmp_path: Path):
    settings = broker.model_copy(
        update={
            "topic_prefix": "swapping-",
            "data_dir": tmp_path,
            "train_epochs": 0.5,
            "train_batch_size": 64,
            "train_threads": 1,
            "train_min_clicks": 500,
        }
    )
    await create_topics(settings)
    send(settings, tasteful_clicks())
    holder = SnapshotHolder()
    hotswap = HotSwap(settings, holder)
    await hotswap.start()
    readers = [Reader(holder) for _ in range(2)]
    for reader in readers:
        reader.start()

    try:
        for version in ("0001", "0002"):
            await asyncio.to_thread(run_training, settings, force=True, display=quiet()[0])
            await until_served(holder, version)
            await until_answered(readers, version)
        rolled_back = await asyncio.to_thread(promote, settings, "0001", now_ms=NOON_MS)
        await until_served(holder, "0001", activation=rolled_back.activation)
    finally:
        for reader in readers:
            reader.done.set()
        for reader in readers:
            await asyncio.to_thread(reader.join)
        await hotswap.stop()

    answers = [answer for reader in readers for answer in reader.answers]
    assert {answer.version for answer in answers} == {"0001", "0002"}
    assert [reader.failures for reader in readers] == [[], []]
    published = {version: Registry(settings.registry).load(version) for version in ("0001", "0002")}
    assert not [answer.version for answer in answers if is_mixed(answer, published[answer.version])]
    for reader in readers:
        activations = [answer.activation for answer in reader.answers]
        assert activations == sorted(activations)


def is_mixed(answer: Answer, published: VersionParts) -> bool:
    """Score the answer again with the published vectors of the version it names."""
    assert published.item_vectors is not None
    expected = np.einsum("qkd,qd->qk", published.item_vectors[answer.rows], answer.vectors)
    same_scores = np.allclose(answer.scores, expected, rtol=1e-5, atol=1e-5)
    return answer.item_ids != tuple(published.item_ids) or not same_scores


async def until_served(holder: SnapshotHolder, version: str, *, activation: int = 0) -> None:
    async with asyncio.timeout(60):
        while (
            holder.current is None or holder.current.model_version != version or holder.current.activation < activation
        ):
            await asyncio.sleep(0.02)


async def until_answered(readers: list[Reader], version: str) -> None:
    async with asyncio.timeout(60):
        while any(version not in {answer.version for answer in reader.answers} for reader in readers):
            await asyncio.sleep(0.05)
