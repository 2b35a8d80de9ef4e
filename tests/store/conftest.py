"""A partition store of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.store.windows import PartitionStore
from tests.store.stores import HEADER


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PartitionStore]:
    opened = PartitionStore.open(tmp_path / "store", HEADER)
    yield opened
    opened.close()
