"""Lists of an engine that had lost the partition, behind newer ones: who is refreshed anew, and who is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from engine.errors import LogError, StoreBusy
from engine.log import Record
from engine.settings import Settings
from engine.store.header import StoreHeader
from engine.store.windows import LoggedClick, PartitionStore, Refreshed
from engine.streams import list_watch
from engine.streams.list_watch import PATIENCE_S, ListWatch
from tests.builders import NOON_MS, make_click

EPOCH = "this-epoch"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PartitionStore]:
    """A store whose users a and b have lists of window offset 1 and activation 4, and nobody waits."""
    store = PartitionStore.open(tmp_path / "0", StoreHeader("c", "clicks", "t", 2, 0, max_clicks=50))
    clicks = [make_click(user_id=user, item_id="i1") for user in ("a", "b")]
    store.apply([LoggedClick(at, NOON_MS, click) for at, click in enumerate(clicks)], through_offset=1)
    publish(store, activation=4)
    yield store
    store.close()


def publish(store: PartitionStore, *, activation: int) -> None:
    batch = store.take_dirty(10)
    store.settle(batch, [Refreshed(user.user_id, NOON_MS, activation, is_published=True) for user in batch.users])


def record(user: str, window_offset: object, activation: int, *, epoch: str = EPOCH, partition: int = 0) -> Record:
    order = {"epoch": epoch, "window_offset": window_offset, "activation": activation}
    headers = {name: str(value).encode() for name, value in order.items()}
    return Record("recall-lists", partition, 0, NOON_MS, user.encode(), b"{}", headers)


class Watched:
    """A watch of one store, with a clock that the test moves."""

    def __init__(self, store: PartitionStore) -> None:
        self.now_s, self.notified, self.store = 100.0, 0, store
        self.failures: list[BaseException] = []
        self.watch = ListWatch(
            Settings(),
            EPOCH,
            lambda: {0: store},
            self._notify,
            on_failure=self.failures.append,
            clock=lambda: self.now_s,
        )

    def _notify(self) -> None:
        self.notified += 1

    async def later(self, seconds: float = PATIENCE_S) -> list[str]:
        """Return who waits for a refresh so many seconds on."""
        self.now_s += seconds
        await self.watch.refresh_overwritten()
        batch = self.store.take_dirty(10)
        self.store.release(batch)
        return [user.user_id for user in batch.users]


@pytest.fixture
def watched(store: PartitionStore) -> Watched:
    return Watched(store)


def overwritten() -> float:
    return REGISTRY.get_sample_value("mindstream_lists_overwritten_total") or 0.0


@pytest.mark.parametrize(("window_offset", "activation", "epoch"), [(0, 4, EPOCH), (1, 3, EPOCH), (9, 9, "another")])
async def test_whose_last_list_is_older_than_the_newest_is_refreshed_anew(
    watched: Watched, window_offset: int, activation: int, epoch: str
) -> None:
    counted = overwritten()

    await watched.watch.apply([record("a", window_offset, activation, epoch=epoch), record("b", 1, 4)])

    assert await watched.later(PATIENCE_S - 0.1) == []
    assert await watched.later(0.1) == ["a"]
    assert (watched.notified, overwritten() - counted) == (1, 1)


async def test_an_older_list_that_a_newer_one_follows_in_time_is_none(watched: Watched) -> None:
    await watched.watch.apply([record("a", 0, 4)])
    await watched.later(PATIENCE_S - 1)
    await watched.watch.apply([record("a", 1, 4)])

    assert await watched.later(100) == []
    assert watched.notified == 0


async def test_a_second_older_list_does_not_start_the_wait_again(watched: Watched) -> None:
    await watched.watch.apply([record("a", 0, 4)])
    await watched.later(PATIENCE_S - 1)
    await watched.watch.apply([record("a", 0, 4)])

    assert await watched.later(1) == ["a"]


async def test_who_was_refreshed_anew_is_done_with_until_the_next_older_list(watched: Watched) -> None:
    await watched.watch.apply([record("a", 0, 4)])
    assert await watched.later() == ["a"]
    publish(watched.store, activation=4)

    assert await watched.later(100) == []


async def test_who_waits_already_waits_once(watched: Watched) -> None:
    watched.store.apply([LoggedClick(2, NOON_MS, make_click(user_id="a", item_id="i2"))], through_offset=2)
    await watched.watch.apply([record("a", 0, 4)])

    assert await watched.later() == ["a"]
    publish(watched.store, activation=4)
    assert await watched.later() == []


async def test_what_is_no_list_of_ours_is_passed_over(watched: Watched) -> None:
    await watched.watch.apply(
        [
            record("nobody", 0, 0),
            record("a", "soon", 0),
            Record("recall-lists", 0, 0, NOON_MS, b"a", None, {}),
            Record("recall-lists", 0, 0, NOON_MS, None, b"{}", {"epoch": b"x"}),
            Record("recall-lists", 0, 0, NOON_MS, b"\xff", b"{}", record("a", 0, 0).headers),
        ]
    )
    await watched.watch.apply([record("a", 0, 0, partition=1)])

    assert await watched.later(100) == []


async def test_a_partition_that_was_given_away_meanwhile_is_left_alone(watched: Watched) -> None:
    await watched.watch.apply([record("a", 0, 4)])
    watched.store.close()
    watched.now_s += 100

    await watched.watch.refresh_overwritten()
    await watched.watch.apply([record("a", 0, 4)])

    assert watched.failures == []
    assert await watched.later(100) == []


async def test_a_mark_made_again_outlives_the_process(watched: Watched, tmp_path: Path) -> None:
    await watched.watch.apply([record("a", 0, 4)])
    await watched.later()
    watched.store.close()

    reopened = PartitionStore.open(tmp_path / "0", watched.store.header)

    assert (reopened.count_dirty(), reopened.take_dirty(10).users[0].user_id) == (1, "a")
    reopened.close()


async def test_a_broker_that_is_away_is_asked_again_and_a_store_that_fails_ends_it(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Exception] = [LogError("recall-lists", problem="is away", remedy="wait"), StoreBusy(Path("store"))]

    async def fail() -> None:
        raise outcomes.pop(0)

    monkeypatch.setattr(list_watch, "AGAIN_S", 0.01)
    monkeypatch.setattr(watched.watch, "_follow", fail)
    watched.watch.begin()

    async with asyncio.timeout(10):
        await watched.watch.keep()

    assert (outcomes, [type(one) for one in watched.failures]) == ([], [StoreBusy])
