"""Query services: two without Kafka, and a real one for the tests that only ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.serving.service import QueryService
from engine.settings import Settings
from tests.conftest import free_port
from tests.serving.live import LiveService, prepare, serving
from tests.serving.parts import list_record, make_list, make_snapshot, open_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueryService]:
    """A service that knows u1, for tests that only ask."""
    with open_service(tmp_path_factory.mktemp("shared"), snapshot=make_snapshot()) as opened:
        assert opened.lists is not None
        opened.lists.apply([list_record(make_list("u1"), offset=0)])
        yield opened


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[QueryService]:
    """A service that knows u1, for a test that changes it."""
    with open_service(tmp_path, snapshot=make_snapshot()) as opened:
        assert opened.lists is not None
        opened.lists.apply([list_record(make_list("u1"), offset=0)])
        yield opened


@pytest.fixture(scope="module")
def live(
    broker: Settings, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[LiveService]:
    """A running and ready `mindstream serve` with topics of the module's own."""
    prefix = request.module.__name__.rsplit(".", 1)[-1].replace("_", "-") + "-"
    changes = {"topic_prefix": prefix, "data_dir": tmp_path_factory.mktemp("live"), "serve_port": free_port()}
    settings = broker.model_copy(update=changes)
    prepare(settings)
    with serving(settings) as running:
        running.wait_until(running.is_ready, what="the service is ready")
        yield running
