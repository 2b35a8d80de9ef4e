"""The engine: one process that takes clicks in and keeps recall lists fresh.

Composition only: what each part does stands in its own module. Ingest starts before the model is loaded; lists follow
once there is one. The parts live on one event loop; slow work runs in the named threads of ingest, refresh and loading.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path

import structlog
from aiokafka.errors import KafkaError

from engine import metrics
from engine.catalog import Catalog
from engine.erasures import Erasures
from engine.errors import ConfigError, DamagedStore, LogError, StoreBusy
from engine.hotswap import HotSwap
from engine.log import Admin, Epoch, Publisher, topic_epoch, wait_for_broker
from engine.pulse import Pulse
from engine.refresh import RefreshLoop
from engine.settings import Settings
from engine.snapshot import SnapshotHolder
from engine.store.checkpoints import Checkpoints
from engine.store.recovery import Recovery
from engine.streams.batches import FaustApp, worker_id
from engine.streams.checkpointing import Checkpointer
from engine.streams.clicks import Ingest
from engine.streams.dead_letters import DeadLetters
from engine.streams.decompression import bound_decompression
from engine.streams.erasing import Eraser
from engine.streams.garbage import seldom_collect_garbage
from engine.streams.list_watch import ListWatch

BROKER_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0

log = structlog.get_logger()


def run_engine(settings: Settings) -> None:
    """Run an engine until SIGINT or SIGTERM; a second one ends it at once.

    Raises:
        LogError: the broker can't be reached, a topic is missing, or the log is not the one the stores were made from.
        StoreError: a partition store can't be used.
    """
    asyncio.run(_run_until_signal(settings))


async def _run_until_signal(settings: Settings) -> None:
    engine = asyncio.create_task(_run(settings), name="engine")
    loop = asyncio.get_running_loop()

    def stop() -> None:
        log.info("engine_stopping")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        engine.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await engine
    log.info("engine_stopped")


async def _run(settings: Settings) -> None:
    """Start every part, and wait until one of them fails; stop them in the order that loses nothing."""
    _set_up_process(settings)
    epoch = await _check_log(settings)
    failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with contextlib.AsyncExitStack() as parts:
        parts.enter_context(_own(settings.data_dir / "engine"))
        publisher = Publisher(settings)
        parts.push_async_callback(publisher.stop)
        await publisher.start()
        catalog, holder = Catalog(settings), SnapshotHolder()
        parts.push_async_callback(catalog.stop)
        await catalog.start()
        pulse = Pulse(settings.session_timeout_s)
        checkpointer = _checkpointer(settings)
        recovery = Recovery(settings, None if checkpointer is None else checkpointer.checkpoints)

        def fail(error: BaseException) -> None:
            if isinstance(error, DamagedStore):
                recovery.suspect()
            _fail(failure, error)

        refresh = RefreshLoop(settings, holder, catalog, publisher, epoch.text, check_pulse=pulse.check, on_damage=fail)
        hotswap = HotSwap(settings, holder, on_swap=lambda _snapshot: refresh.notify(), prepare=refresh.prepare)
        parts.push_async_callback(hotswap.stop)
        dead_letters = DeadLetters(settings, publisher, epoch.text)
        erasures = Erasures(settings, epoch.text, on_change=lambda: ingest.erase())
        list_watch = ListWatch(settings, epoch.text, lambda: ingest.stores(), refresh.notify, on_failure=fail)
        ingest = Ingest(
            settings,
            epoch,
            dead_letters,
            refresh,
            on_failure=fail,
            recovery=recovery,
            checkpointer=checkpointer,
            eraser=Eraser(settings, erasures, dead_letters, recovery),
            on_assigned=list_watch.begin,
        )
        if checkpointer is not None:
            parts.push_async_callback(checkpointer.close)
        parts.push_async_callback(ingest.close)
        parts.push_async_callback(refresh.stop)
        parts.push_async_callback(erasures.stop)
        await erasures.start()
        await erasures.wait_until_read()  # before any click is applied
        await refresh.start()
        faust_app = FaustApp(settings, ingest)
        parts.push_async_callback(_stop_faust, faust_app)
        log.info("engine_started", epoch=epoch.text, partitions=epoch.partitions, worker=faust_app.worker_id)
        running = [
            _run_faust(faust_app),
            catalog.wait(),
            erasures.wait(),
            _follow_models(catalog, hotswap),
            list_watch.keep(),
            pulse.keep(),
        ]
        if checkpointer is not None:
            running.append(checkpointer.keep(ingest.stores))
        await _first_failure(*running, failure)


def _set_up_process(settings: Settings) -> None:
    port, host = settings.engine_metrics_port, settings.metrics_host
    metrics.listen(port, host=host, setting="MINDSTREAM_ENGINE_METRICS_PORT")
    bound_decompression()
    seldom_collect_garbage()


async def _check_log(settings: Settings) -> Epoch:
    """Wait for the broker, and return the life of `clicks` once every topic is one that an engine can work with.

    Raises:
        LogError: the broker can't be reached, or a topic is missing or doesn't fit.
        ConfigError: the log forgets clicks, and there are no checkpoints.
    """
    log.info("engine_waits_for_broker", bootstrap_servers=settings.bootstrap_servers)
    await wait_for_broker(settings, BROKER_WITHIN_S)
    epoch = await topic_epoch(settings, "clicks")
    await _check_lists(settings, epoch.partitions)
    await _check_retention(settings)
    for topic in ("items", "models", "erasures", "clicks.dead-letters"):
        await topic_epoch(settings, topic)  # whatever needs it would wait for a missing one
    return epoch


async def _check_lists(settings: Settings, partitions: int) -> None:
    """Raise LogError where `recall-lists` can't take a list in the partition that its user's clicks are in."""
    lists = await topic_epoch(settings, "recall-lists")
    if lists.partitions < partitions:
        clicks, topic = settings.topic("clicks"), settings.topic("recall-lists")
        raise LogError(
            topic,
            problem=f"has {lists.partitions} partitions, {clicks} has {partitions}: a list goes where its clicks are",
            remedy=f"delete it, it is derived, then MINDSTREAM_CLICKS_PARTITIONS={partitions} mindstream topics create",
        )


async def _check_retention(settings: Settings) -> None:
    """Raise ConfigError where the log forgets clicks and nothing else would have them.

    A cluster that doesn't let us see the topic's configs is taken at its word.
    """
    topic = settings.topic("clicks")
    try:
        async with Admin(settings) as admin:
            configs = (await admin.configs([topic])).get(topic, {})
    except LogError as error:
        log.warning("retention_unknown", topic=topic, error=str(error))
        return
    finite = [
        f"{name}={configs[name]}" for name in ("retention.ms", "retention.bytes") if configs.get(name, "-1") != "-1"
    ]
    if finite and settings.checkpoint_url is None and not settings.accept_log_gap:
        expected = f"set, for {topic} forgets clicks ({', '.join(finite)}) and lost stores could not be rebuilt from it"
        raise ConfigError("MINDSTREAM_CHECKPOINT_URL", got=None, expected=expected)


def _checkpointer(settings: Settings) -> Checkpointer | None:
    if settings.checkpoint_url is None:
        return None
    worker = worker_id(settings)
    checkpoints = Checkpoints(settings.checkpoint_url, worker=worker, keep=settings.keep_checkpoints)
    return Checkpointer(settings, checkpoints)


@contextlib.contextmanager
def _own(directory: Path) -> Iterator[None]:
    """Keep every other engine out of *directory*; the lock goes with the process, however it ends.

    Raises:
        StoreBusy: another engine has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusy(directory) from error
        yield


def _fail(failure: asyncio.Future[None], error: BaseException) -> None:
    if not failure.done():
        log.error("engine_failed", error=str(error), kind=type(error).__name__)
        failure.set_exception(error)


async def _run_faust(faust_app: FaustApp) -> None:
    """Run the Faust worker; return never, raise when it crashes."""
    try:
        await faust_app.start()
        await faust_app.wait_until_stopped()
        if faust_app.crash_reason is not None:
            raise faust_app.crash_reason
    except KafkaError as error:
        remedy = "check that the broker runs (`mindstream doctor`), and start the engine again"
        raise LogError("the Faust worker", problem=f"can't reach the log: {error}", remedy=remedy) from error
    raise LogError(
        "the Faust worker", problem="stopped by itself", remedy="see its last log lines, and start the engine again"
    )


async def _stop_faust(faust_app: FaustApp) -> None:
    try:
        async with asyncio.timeout(STOP_WITHIN_S):
            await faust_app.stop()
    except TimeoutError:
        log.warning("faust_still_stopping", after_s=STOP_WITHIN_S)


async def _follow_models(catalog: Catalog, hotswap: HotSwap) -> None:
    """Follow `models` once the catalog is known, so that the first lists already leave out what can't be had."""
    await catalog.caught_up.wait()
    await hotswap.start()
    await hotswap.wait()


async def _first_failure(*parts: asyncio.Future[None] | Coroutine[object, object, None]) -> None:
    """Run *parts* together and raise what ends the first of them."""
    tasks = {asyncio.ensure_future(part) for part in parts}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
