"""What tests of the partition store begin with."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.events import ClickEvent
from engine.store.header import StoreHeader
from engine.store.windows import LoggedClick, PartitionStore, Refreshed

HEADER = StoreHeader(cluster_id="c", topic="clicks", topic_id="t", partitions=4, partition=0, max_clicks=3)


def logged(clicks: Sequence[ClickEvent], *, first_offset: int = 0) -> list[LoggedClick]:
    return [LoggedClick(offset, 1_000 + offset, click) for offset, click in enumerate(clicks, first_offset)]


def apply(store: PartitionStore, *clicks: ClickEvent) -> None:
    first = store.applied_offset + 1
    store.apply(logged(clicks, first_offset=first), through_offset=first + len(clicks) - 1)


def published(user_id: str, last_activity_ms: int, activation: int) -> Refreshed:
    return Refreshed(user_id, last_activity_ms, activation, is_published=True)


def settle_all(store: PartitionStore, *, activation: int = 1) -> list[str]:
    batch = store.take_dirty(1_000)
    users = [user.user_id for user in batch.users]
    store.settle(batch, [published(user, 5, activation) for user in users])
    return users


def reopen(store: PartitionStore, path: Path) -> PartitionStore:
    store.close()
    return PartitionStore.open(path / "store", store.header)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow, as on a disk without room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
