"""One real query service for the tests that only ask it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.settings import Settings
from tests.conftest import free_port
from tests.serving.live import LiveService, prepare, serving


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
