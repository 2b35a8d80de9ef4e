"""The refresh loop: dirty users become interests, interests become lists, in micro-batches.

Stands between the partition stores, which mark a user dirty with every click, and the topic `recall-lists`. One
micro-batch takes the users who wait longest, together with a view of their windows, makes their lists under one
snapshot, publishes them, and only after the broker's acknowledgement has the stores delete exactly the marks it took: a
click that comes meanwhile keeps a mark of its own, and a crash or a failure anywhere leaves the marks where they were.
A user of whom no list can be made is the exception: `microbatch` gives up on that one alone, mark and all.

Who waited when a partition joined the loop, or when the first model came, is backlog: whoever clicks afterwards goes
first, and of each micro-batch the backlog gets a share.

After each live micro-batch goes a smaller one of the sweep: users whom another model version refreshed, the most
recently active first. So a swap reaches everybody, while nobody's click waits for more than one small batch.

Windows, routing, search and merge run in one thread of their own; the event loop waits for the broker only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from engine import metrics
from engine.ann.memory import give_back_memory
from engine.catalog import Catalog
from engine.errors import DamagedStore, EngineError
from engine.log import Message, Publisher
from engine.microbatch import TOPIC, ListMaker, Made, Taken
from engine.settings import Settings
from engine.snapshot import ServingSnapshot, SnapshotHolder
from engine.store.windows import PartitionStore

BACK_OFF_S = (0.1, 5.0)
"""First and longest pause after a micro-batch that failed."""
IDLE_S = 1.0
"""An idle loop looks around this often, also when nobody notified it."""
STOP_WITHIN_S = 10.0
"""How long `stop` waits for the micro-batch in flight; its marks stay when the broker does not answer."""
SWEEP_SHARE = 0.25
"""Size of a sweep's micro-batch, of `refresh_batch_size`: small, because a live click may have to wait for it."""

log = structlog.get_logger()
Answer = TypeVar("Answer")


def wall_clock_ms() -> int:
    """Return the time in UTC milliseconds."""
    return time.time_ns() // 1_000_000


class RefreshLoop:
    """Keeps the lists of all added partitions fresh; lives on the event loop that started it."""

    def __init__(
        self,
        settings: Settings,
        holder: SnapshotHolder,
        catalog: Catalog,
        publisher: Publisher,
        epoch: str,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
        check_pulse: Callable[[], None] = lambda: None,
        on_damage: Callable[[DamagedStore], None] = lambda _error: None,
    ) -> None:
        """Prepare to refresh; nothing is done before `start`.

        Args:
            settings: how many users a micro-batch has, and what a list holds.
            holder: the snapshot in service.
            catalog: what is available.
            publisher: writes the lists.
            epoch: the life of `clicks`, which every list names.
            now_ms: wall time.
            check_pulse: called right before lists are sent; raises where they may not be ours to send any more.
            on_damage: called with the loop's last error: a store that can't be read won't be readable at the next try.
        """
        self._on_damage = on_damage
        self._check_pulse = check_pulse
        self._settings, self._holder, self._catalog = settings, holder, catalog
        self._publisher, self._epoch, self._now_ms = publisher, epoch, now_ms
        self._stores: dict[int, PartitionStore] = {}
        self._maker: ListMaker | None = None
        self._prepared: ListMaker | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="refresh")
        self._in_flight = asyncio.Lock()
        self._wake = asyncio.Event()
        self._notified_s: float | None = None
        self._is_stopping = self._had_no_model = False
        self._task: asyncio.Task[None] | None = None

    def add_partition(self, partition: int, store: PartitionStore) -> None:
        """Refresh the users of *store* from now on; those who wait already are backlog."""
        store.set_back()
        self._stores[partition] = store
        _show_progress(self._stores, self._holder.current)
        self.notify()

    async def remove_partition(self, partition: int) -> None:
        """Finish the micro-batch in flight, then leave the partition alone: its store may be closed."""
        async with self._in_flight:
            self._stores.pop(partition, None)

    def notify(self) -> None:
        """Wake the loop: there are clicks, or a new snapshot. To be called on the event loop's thread."""
        if self._notified_s is None:
            self._notified_s = time.perf_counter()
        self._wake.set()

    def is_behind(self) -> bool:
        """Whether more users wait than the next micro-batch takes; without a model nothing is done about them."""
        if self._holder.current is None or self._holder.current.model is None:
            return False
        return sum(store.count_dirty() for store in self._stores.values()) > self._settings.refresh_batch_size

    def prepare(self, snapshot: ServingSnapshot) -> None:
        """Bring the items of *snapshot*, which is about to serve, to the present; any thread may call this."""
        if snapshot.model is not None:
            self._prepared = self._new_maker(snapshot)

    async def start(self) -> None:
        """Start the loop."""
        self._task = asyncio.create_task(self._run(), name="refresh")

    async def stop(self) -> None:
        """Finish the micro-batch in flight and end; users not refreshed stay marked in their stores."""
        self._is_stopping = True
        self._wake.set()
        if self._task is not None:
            _done, late = await asyncio.wait([self._task], timeout=STOP_WITHIN_S)
            for task in late:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._thread.shutdown)

    # --- the loop

    async def _run(self) -> None:
        back_off_s, longest_s = BACK_OFF_S
        while not self._is_stopping:
            self._wake.clear()
            try:
                refreshed = await self._refresh_live() + await self._refresh(_take_behind, self._sweep_size)
                back_off_s = BACK_OFF_S[0]
            except DamagedStore as error:
                metrics.REFRESH_FAILURES.inc()
                self._on_damage(error)
                return
            except Exception as error:
                metrics.REFRESH_FAILURES.inc()
                log.error(
                    "refresh_failed",
                    error=type(error).__name__,
                    message=str(error),
                    again_in_s=back_off_s,
                    exc_info=not isinstance(error, EngineError),
                )
                await self._pause(back_off_s)
                back_off_s = min(2 * back_off_s, longest_s)
                continue
            if not refreshed:
                await self._wait_for_work()

    async def _pause(self, seconds: float) -> None:
        """Sleep for *seconds*, less when the loop is to stop."""
        deadline_s = time.monotonic() + seconds
        while not self._is_stopping and (left_s := deadline_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, 0.1))

    async def _wait_for_work(self) -> None:
        """Wait until notified, then a little longer for company; an idle loop looks around by itself."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_S):
                await self._wake.wait()
        if self._wake.is_set() and not self._is_stopping:
            await asyncio.sleep(self._settings.refresh_wait_ms / 1000)

    @property
    def _sweep_size(self) -> int:
        return math.ceil(self._settings.refresh_batch_size * SWEEP_SHARE)

    async def _refresh_live(self) -> int:
        notified_s, self._notified_s = self._notified_s, None
        waited_s = 0.0 if notified_s is None else time.perf_counter() - notified_s
        refreshed = await self._refresh(_take_dirty, self._settings.refresh_batch_size)
        if refreshed:
            metrics.STAGE.labels("wait").observe(waited_s)
        return refreshed

    async def _refresh(self, take: Take, limit: int) -> int:
        """Do one micro-batch of at most *limit* users under one snapshot and return how many it took.

        Few steps, each as long as the thread can go on alone: at every change of thread others take the interpreter.
        """
        async with self._in_flight:
            snapshot, stores = self._holder.current, dict(self._stores)
            if snapshot is None or snapshot.model is None:
                self._had_no_model = True
                await self._in_thread(lambda: _show_progress(stores, snapshot))
                return 0
            if self._had_no_model:
                self._had_no_model = False
                for store in stores.values():
                    store.set_back()
            taken: list[Taken] = []
            try:
                made, messages = await self._in_thread(lambda: self._make(snapshot, stores, take, limit, taken))
                users = sum(len(part.batch.users) for part in taken)
                if taken:
                    await self._publish(made, messages)
                    await self._in_thread(lambda: _conclude(made, taken, stores, snapshot))
                return users
            except BaseException:
                # The one thread runs this after whatever it is still busy with.
                await asyncio.shield(self._in_thread(lambda: _give_back(taken, stores, snapshot)))
                raise

    def _make(
        self,
        snapshot: ServingSnapshot,
        stores: Mapping[int, PartitionStore],
        take: Take,
        limit: int,
        taken: list[Taken],
    ) -> tuple[list[Made], list[Message]]:
        """Take users, noted in *taken* whatever happens then, and make their lists."""
        take(stores, snapshot.activation, limit, taken)
        if not taken:
            _show_progress(stores, snapshot)
            return [], []
        if self._maker is None or not self._maker.adopt(snapshot):
            prepared, self._prepared = self._prepared, None
            self._maker = prepared if prepared and prepared.adopt(snapshot) else self._new_maker(snapshot)
            give_back_memory()  # what the version before it took
        made = self._maker.make(taken)
        topic = self._settings.topic(TOPIC)
        return made, [message for part in made for message in part.to_messages(topic)]

    def _new_maker(self, snapshot: ServingSnapshot) -> ListMaker:
        return ListMaker(self._settings, snapshot, self._catalog, epoch=self._epoch, now_ms=self._now_ms)

    async def _publish(self, made: Sequence[Made], messages: Sequence[Message]) -> None:
        """Write the lists and wait for the broker's acknowledgements."""
        if not messages:
            return
        self._check_pulse()
        with metrics.STAGE.labels("publish").time():
            await self._publisher.send_all(messages)
        metrics.LISTS_PUBLISHED.inc(len(messages))
        now_ms = self._now_ms()
        for one in (one for part in made for one in part.lists):
            accepted_at_ms = one.recall_list.accepted_at_ms
            if accepted_at_ms is None:
                continue
            metrics.CLICK_TO_LIST.observe(max(0, now_ms - accepted_at_ms) / 1000)
            if one.recall_list.interests:
                # Only now: a batch that is given back and tried again would count its interests each time.
                metrics.CLICK_TO_INTERESTS.observe(max(0, one.routed_at_ms - accepted_at_ms) / 1000)

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


# --- steps of a micro-batch that touch the stores; all run in the refresh thread


Take = Callable[[Mapping[int, PartitionStore], int, int, list[Taken]], None]
"""Takes users of these stores, for an activation, at most so many, and appends them."""


def _take_dirty(stores: Mapping[int, PartitionStore], _activation: int, limit: int, taken: list[Taken]) -> None:
    waiting = {partition: store.count_dirty() for partition, store in stores.items()}
    for partition, share in _share(limit, waiting).items():
        taken.append(Taken(partition, stores[partition], stores[partition].take_dirty(share)))


def _take_behind(stores: Mapping[int, PartitionStore], activation: int, limit: int, taken: list[Taken]) -> None:
    behind = {partition: store.count_behind(activation) for partition, store in stores.items()}
    for partition, share in _share(limit, behind).items():
        batch = stores[partition].take_behind(activation, share)
        if batch.users:
            taken.append(Taken(partition, stores[partition], batch))
        else:
            stores[partition].release(batch)


def _share(limit: int, waiting: Mapping[int, int]) -> dict[int, int]:
    """Share *limit* among partitions evenly; what one doesn't need goes to those with more waiting users.

    Each with a waiting user gets at least 1, also where that exceeds the limit.
    """
    shares: dict[int, int] = {}
    fewest_first = sorted((users, partition) for partition, users in waiting.items() if users)
    for place, (users, partition) in enumerate(fewest_first):
        left = limit - sum(shares.values())
        shares[partition] = min(users, max(1, left // (len(fewest_first) - place)))
    return shares


def _conclude(
    made: Sequence[Made], taken: list[Taken], stores: Mapping[int, PartitionStore], snapshot: ServingSnapshot
) -> None:
    """Note in the stores that the lists are out; what is still in *taken* after a failure is to be given back."""
    for part in made:
        part.taken.store.settle(part.taken.batch, part.refreshed)
        metrics.UNKNOWN_ITEMS.inc(part.unknown_clicks)
        taken.remove(part.taken)
    _show_progress(stores, snapshot)


def _give_back(taken: Sequence[Taken], stores: Mapping[int, PartitionStore], snapshot: ServingSnapshot) -> None:
    for part in taken:
        part.store.release(part.batch)
    _show_progress(stores, snapshot)


def _show_progress(stores: Mapping[int, PartitionStore], snapshot: ServingSnapshot | None) -> None:
    metrics.DIRTY_USERS.set(sum(store.count_dirty() for store in stores.values()))
    if snapshot is not None:
        lists = [store.count_lists(snapshot.activation) for store in stores.values()]
        every = sum(kept for _current, kept in lists)
        metrics.LISTS_ON_CURRENT_VERSION.set(sum(current for current, _kept in lists) / every if every else 1.0)
