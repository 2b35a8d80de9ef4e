"""An intake of a test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.settings import Settings
from tests.streams.intake import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(Settings(data_dir=tmp_path))
    yield made
    await made.ingest.close()
