"""The whole system on one machine: `mindstream up`.

In order: a real broker, topics, the query service, an engine, version 0000 (popular lists), the replay of the first
95 % of the events, a first training while live clicks already flow, its swap, a summary. Then live traffic until
Ctrl-C. The parts are the same commands a production set-up runs, as child processes; a part that crashes is started
again. What was measured comes from the parts' own metrics (`engine/summary.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from engine.doctor import check_start
from engine.errors import ConfigError, SetupError
from engine.log import wait_for_broker
from engine.processes import Child, child_environment, stop_all
from engine.replay import replay
from engine.sending import choose_source
from engine.settings import PREFIX, Settings
from engine.sources import EventSource, Sessions
from engine.sources.place import identity_of
from engine.streams.local_broker import LocalBroker
from engine.streams.topics import create_topics
from engine.summary import OBSERVE_EVERY_S, Measured, observe, service_address, show_summary, write_report

MARKER = "source.json"
"""The file in a data directory that says which source it holds."""
LIVE_SHARE = 0.05
"""Share of the events, the latest, that is held back and sent as live traffic."""
LIVE_PHASE_S = 63.0
"""How long live traffic runs before its freshness is read: the minute that the query service looks back on, and a
little more, so that the last of the backlog is not in it."""
CANCEL_AGAIN_S = 2.0
"""A task that is still there so long after it was canceled is canceled again."""
TRAINING_GRACE_S = 300.0
"""Reading, evaluating, publishing and loading the first version may take this long beside its training."""
TRAINER_NICENESS = 10
"""The trainer yields the cores to the click's way."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `mindstream up` was asked for on its command line."""

    data_path: Path | None = None
    exit_when_replayed: bool = False
    report_path: Path | None = None
    click_limit: int | None = None
    live_rate: float = 20.0
    train_every: str = "15m"


def run_up(settings: Settings, options: UpOptions) -> int:
    """Run the system until Ctrl-C, or to the end of the live phase; return the exit code.

    Raises:
        ConfigError: the engine's metrics, which say how far it is, are turned off, or the report's folder is missing.
        SetupError: Java, a port or the disk is not as needed; nothing was started.
        SourceError: the data can't be read.
    """
    if settings.engine_metrics_port == 0:
        raise ConfigError(PREFIX + "ENGINE_METRICS_PORT", got=0, expected="a port, for `mindstream up` to read them")
    if options.report_path is not None and not options.report_path.absolute().parent.is_dir():
        raise ConfigError("--report", got=str(options.report_path), expected="a file in a folder that exists")
    console = Console()
    source = choose_source(options.data_path, seed=settings.seed)
    settings = claim_data_dir(settings, source, console)
    check_start(settings)
    console.print(describe_source(source))
    with started_broker(settings, console) as broker:
        return asyncio.run(_System(settings, options, source, console, broker).run())


def claim_data_dir(settings: Settings, source: EventSource, console: Console) -> Settings:
    """Return settings whose data directory holds *source* and no other; two shops never mix in one log.

    Raises:
        SetupError: another source is in the topics of a cluster of the user's own, or it can't be told which one.
    """
    asked = HeldSource(source.name, identity_of(source))
    held = _held_source(settings.data_dir / MARKER)
    if held not in (None, asked):
        if not settings.uses_local_broker:
            raise SetupError(
                f"the topics that {settings.data_dir} belongs to hold {held}, and {asked} must not be mixed in",
                remedy=f"set {PREFIX}TOPIC_PREFIX and {PREFIX}DATA_DIR to new ones for {source.name}",
            )
        settings = settings.model_copy(update={"data_dir": settings.data_dir / str(asked)})
        console.print(
            f"{settings.data_dir.parent} holds another source, so this run keeps its state in {settings.data_dir}.\n"
            f"Say {PREFIX}DATA_DIR={settings.data_dir} to other commands.",
            highlight=False,
        )
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    (settings.data_dir / MARKER).write_text(json.dumps(asdict(asked)))
    return settings


@dataclass(frozen=True, slots=True)
class HeldSource:
    """Which source a data directory holds: its name for people, and what tells it from others of that name."""

    name: str
    identity: str

    def __str__(self) -> str:
        return f"{self.name}-{self.identity[:8]}"


def _held_source(marker: Path) -> HeldSource | None:
    try:
        held = json.loads(marker.read_text())
        return HeldSource(str(held["name"]), str(held["identity"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise SetupError(f"{marker} does not say which source is held here", remedy="delete that file") from error


def describe_source(source: EventSource) -> str:
    """Return one line that says which events run through the system, and plainly when they are made up."""
    kind = "a simulated shop, not real events" if source.simulated else "real events"
    return f"Source: [bold]{source.name}[/bold] ({kind}), {source.click_count:,} clicks."


def environment_of(settings: Settings, source: EventSource) -> dict[str, str]:
    """Return the environment of the processes; sessions are learned as such unless a setting says otherwise."""
    values: dict[str, object] = {
        PREFIX + "DATA_DIR": settings.data_dir.resolve(),
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
    }
    if isinstance(source, Sessions) and "train_sessions" not in settings.model_fields_set:
        values[PREFIX + "TRAIN_SESSIONS"] = "true"
    return child_environment(values)


def count_users(source: EventSource, clicks: int) -> int:
    """Return how many users made the first *clicks* clicks of *source*."""
    return len({click.user_id for click in islice(source.clicks(), clicks)})


@contextlib.contextmanager
def started_broker(settings: Settings, console: Console) -> Iterator[LocalBroker | None]:
    """Run the local broker around the block; with a cluster of the user's own, run nothing."""
    if not settings.uses_local_broker:
        console.print(f"Kafka: {settings.bootstrap_servers} (yours)", highlight=False)
        yield None
        return
    broker = LocalBroker(settings)
    try:
        with console.status("Starting Apache Kafka ..."):
            broker.start()
        console.print(f"Kafka: {broker.bootstrap_servers}, one node, started here", highlight=False)
        yield broker
    finally:
        broker.stop()


@contextlib.asynccontextmanager
async def beside(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run *work* beside the block and set its event at the end of it; should it fail, the block ends with its error."""
    stop, block = asyncio.Event(), asyncio.current_task()
    assert block is not None
    task = asyncio.create_task(work(stop))
    task.add_done_callback(lambda _ended: None if stop.is_set() else block.cancel())
    try:
        yield
    finally:
        stop.set()
        await task


async def end_tasks(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel *tasks* until all have ended; one whose cancellation was lost in a library's clean-up gets another."""
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _ended, waiting = await asyncio.wait(waiting, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


class _System:
    """The running children and what was seen of them."""

    def __init__(
        self,
        settings: Settings,
        options: UpOptions,
        source: EventSource,
        console: Console,
        broker: LocalBroker | None,
    ) -> None:
        self.settings, self.options, self.source, self.console = settings, options, source, console
        self.broker = broker
        self.measured = Measured(source.name, source.simulated, live_rate=options.live_rate)
        self.total = min(source.click_count, options.click_limit or source.click_count)
        self.first_live = self.total - max(1, int(self.total * LIVE_SHARE))
        self.stopping = asyncio.Event()
        environment = environment_of(settings, source)

        def child(name: str, *arguments: str, niceness: int = 0) -> Child:
            log_path = settings.data_dir / "logs" / f"{name}.log"
            return Child(name, arguments, environment=environment, log_path=log_path, niceness=niceness)

        self.serve = child("serve", "serve")
        self.engine = child("engine", "engine")
        self.trainer = child("trainer", "train", "--every", options.train_every, niceness=TRAINER_NICENESS)
        self.version_zero = child("version-zero", "train", "--version-zero")
        self.kept_up: list[Child] = []

    async def run(self) -> int:
        """Go through the phases; Ctrl-C at any moment leads to the same clean stop."""
        loop = asyncio.get_running_loop()
        for sent in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sent, self.stopping.set)
        watching = [asyncio.create_task(self._keep_up()), asyncio.create_task(observe(self.settings, self.measured))]
        phases = asyncio.create_task(self._phases())
        stopped = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait({phases, stopped, *watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in (phases, *watching):
                if task.done():
                    task.result()
        finally:
            await self._stop([phases, stopped, *watching])
        if self.options.report_path is not None:
            write_report(self.measured, self.options.report_path)
            self.console.print(f"Report: {self.options.report_path}", highlight=False)
        return 0

    async def _phases(self) -> None:
        await wait_for_broker(self.settings, timeout_s=60)
        await create_topics(self.settings)
        self.measured.broker_ready_at = time.monotonic()
        for part in (self.serve, self.engine):
            self._start(part)
        self.version_zero.start()
        self.console.print(
            f"Page: {service_address(self.settings)}/ (popular items, until the first model is trained)",
            highlight=False,
        )
        await self._replay()
        self._start(self.trainer)
        async with beside(self._send_live):
            await self._wait("Applying what was replayed", lambda: self.measured.is_applied)
            await self._wait_for_first_version()
            await self._wait("Refreshing every user's list", lambda: self.measured.is_drained)
            self.measured.note_drained()
            await self._wait_seconds("Measuring freshness on live traffic", LIVE_PHASE_S)
            self.measured.note_freshness()
            if not self.options.exit_when_replayed:
                await self._summarize()
                self.console.print("Live clicks keep flowing; Ctrl-C stops everything.")
                await self.stopping.wait()
                return
        await self._wait_seconds("Sending the last live clicks", 2 * OBSERVE_EVERY_S)
        await self._wait("Applying the last live clicks", lambda: self.measured.has_applied_everything)
        if self.options.exit_when_replayed:
            await self._summarize()

    async def _wait_for_first_version(self) -> None:
        """Wait for a version with a model; a run that is to end by itself gives up when training had its time."""
        within_s = self.settings.train_max_seconds + TRAINING_GRACE_S
        try:
            async with asyncio.timeout(within_s if self.options.exit_when_replayed else None):
                await self._wait(
                    "Training the first model version", lambda: self.measured.has_trained_version, self.trainer
                )
        except TimeoutError as error:
            raise SetupError(
                f"no version was trained and served within {within_s:.0f} s; the trainer says: "
                f"{self.trainer.last_lines(1)}",
                remedy=f"read {self.trainer.log_path}",
            ) from error

    async def _summarize(self) -> None:
        sent = self.first_live + min(self.measured.live_sent, self.total - self.first_live)
        self.measured.users = await asyncio.to_thread(count_users, self.source, sent)
        show_summary(self.console, self.settings, self.measured)

    def _start(self, part: Child) -> None:
        part.start()
        self.kept_up.append(part)

    async def _replay(self) -> None:
        """Send all but the live share; what an earlier run sent is not sent again."""
        columns = (
            TextColumn("Replaying"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} clicks/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("replay", total=self.first_live, rate=0.0)
            report = await replay(
                self.settings,
                self.source,
                last=self.first_live,
                resume_file=self.settings.data_dir / "replay.json",
                on_progress=lambda done, total, rate: bar.update(task, completed=done, total=total, rate=rate),
                stop=self.stopping,
            )
        self.measured.note_replayed(report.clicks_sent)
        if report.clicks_sent == 0:
            self.console.print("Everything was replayed before; going on from the state on disk.")

    async def _send_live(self, stop: asyncio.Event) -> None:
        """Send the held-back clicks with the time of sending, over and over."""
        while not stop.is_set():
            sent_before = self.measured.live_sent

            def count(done: int, total: int, rate: float, sent_before: int = sent_before) -> None:
                self.measured.live_sent = sent_before + done

            await replay(
                self.settings,
                self.source,
                first=self.first_live,
                last=self.total,
                rate=self.options.live_rate,
                restamp=True,
                send_items=False,
                on_progress=count,
                stop=stop,
            )

    async def _keep_up(self) -> None:
        """Start a crashed part again; give up, and stop everything, when it keeps crashing or the broker ended."""
        while True:
            if self.broker is not None:
                self.broker.raise_if_ended()
            for part in self.kept_up:
                if part.exit_code not in (None, 0):
                    self.console.print(f"{part.name} ended with {part.exit_code}; starting it again", highlight=False)
                if not part.revive(now=time.monotonic()):
                    raise SetupError(
                        f"{part.name} keeps crashing:\n{part.last_lines()}\n", remedy=f"read {part.log_path}"
                    )
            await asyncio.sleep(0.5)

    async def _wait(self, title: str, is_done: Callable[[], bool], talker: Child | None = None) -> None:
        """Show *title*, and the last line that *talker* logged, until *is_done*."""
        columns = (SpinnerColumn(), TextColumn("{task.description} ..."), TextColumn("[dim]{task.fields[said]}"))
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(title, said="")
            while not is_done():
                if talker is not None:
                    bar.update(task, said=talker.last_lines(1)[-100:])
                await asyncio.sleep(0.2)
        self.console.print(f"{title}: done", highlight=False)

    async def _wait_seconds(self, title: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        await self._wait(title, lambda: time.monotonic() >= until)

    async def _stop(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        """End the tasks, then all parts together."""
        await end_tasks(tasks)
        self.console.print("Stopping ...")
        killed = stop_all([self.trainer, self.version_zero, self.engine, self.serve])
        if killed:
            self.console.print(f"Had to kill: {', '.join(killed)}")
