"""A query service with a trained version, and the engine's way to the same list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.events import ClickEvent
from engine.microbatch import ListMaker, Taken
from engine.recall import RecallList
from engine.serving.service import QueryService
from engine.store.header import StoreHeader
from engine.store.windows import LoggedClick, PartitionStore
from engine.window import SeenRule
from tests.builders import NOON_MS
from tests.served import make_snapshot
from tests.serving.parts import EPOCH, open_service

SHORT_LISTS = {"list_size": 50, "max_query_items": 50}


@contextmanager
def open_trained(path: Path, **settings: Any) -> Iterator[QueryService]:
    """Yield a service of 400 items, with a version that routes and without Kafka."""
    with open_service(path, snapshot=make_snapshot(), **{**SHORT_LISTS, **settings}) as service:
        try:
            yield service
        finally:
            service.spot.stop()


def make_engine_list(service: QueryService, path: Path, clicks: Sequence[ClickEvent]) -> RecallList:
    """Return what an engine makes of one user's *clicks*: through a store, in a micro-batch."""
    snapshot = service.holder.current
    assert snapshot is not None
    max_clicks = service.settings.window_max_clicks
    header = StoreHeader(cluster_id="c", topic="clicks", topic_id="t", partitions=1, partition=0, max_clicks=max_clicks)
    store = PartitionStore.open(path, header, seen=SeenRule.of(service.settings))
    try:
        logged = [LoggedClick(offset, NOON_MS + offset, click) for offset, click in enumerate(clicks)]
        store.apply(logged, through_offset=len(clicks) - 1)
        maker = ListMaker(service.settings, snapshot, service.catalog, epoch=EPOCH, now_ms=lambda: NOON_MS)
        batch = store.take_dirty(10)
        [made] = maker.make([Taken(0, store, batch)])
        store.release(batch)
    finally:
        store.close()
    return made.lists[0].recall_list
