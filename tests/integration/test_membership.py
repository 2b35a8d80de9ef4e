"""An engine that leaves hands its partitions over at once, however long a session lasts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.log import wait_for_broker
from engine.settings import Settings
from tests.faults.rig import Rig, wait

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

LONG_SESSION_S = 300.0
"""Longer than the rig waits for anything: within it, only who leaves lets go."""


@pytest.fixture
def rig(broker: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    asyncio.run(wait_for_broker(broker, 60.0))
    prefix = f"members-{time.time_ns()}-"
    made = Rig(broker.model_copy(update={"session_timeout_s": LONG_SESSION_S}), tmp_path / "rig", prefix=prefix, seed=5)
    yield made
    made.close()


def test_who_takes_over_from_an_engine_that_left_goes_on_from_its_checkpoints(rig: Rig) -> None:
    rig.send(2_000)
    first = rig.start(rig.settings.model_copy(update={"leave_on_stop": True}))
    every = float(rig.settings.clicks_partitions)
    wait(lambda: rig.applied() == rig.logged(), first, what="the clicks to be applied")
    assert first.stop() == 0

    folder = rig.settings.data_dir / "other"
    folder.mkdir()
    second = rig.start(rig.settings.model_copy(update={"data_dir": folder, "registry_url": rig.settings.registry}))
    wait(lambda: second.figures().get("mindstream_owned_partitions") == every, second, what="the partitions to come")

    assert second.figures()['mindstream_stores_opened_total{base="checkpoint"}'] == every
    assert second.stop() == 0
