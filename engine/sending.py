"""The commands `mindstream replay` and `mindstream simulate`: which source, a progress bar, and what was sent."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from engine.replay import ReplayReport, replay
from engine.settings import Settings
from engine.simulate import SimulatedShop
from engine.sources import EventSource, open_source
from engine.sources.table import write_clicks


def run_replay(
    settings: Settings,
    data_path: Path | None = None,
    *,
    rate: float | None = None,
    speed: float | None = None,
    first: int = 0,
    last: int | None = None,
    restamp: bool = False,
    send_items: bool = True,
    fresh: bool = False,
    **columns: Any,
) -> ReplayReport:
    """Replay the data set at *data_path*, or the simulated shop, and tell what was sent.

    Its place is kept in the data directory, one file per source.

    Args:
        settings: names the cluster, the topics and the data directory.
        data_path: a folder or file; None is the simulated shop.
        rate: clicks per second.
        speed: event time runs this many times faster than the clock.
        first: index of the first click.
        last: index after the last click; None means to the end.
        restamp: send each click as a new one of this moment.
        send_items: send the catalog too.
        fresh: begin anew instead of where the last replay stopped.
        **columns: the column options of `open_source`.
    """
    source = choose_source(data_path, seed=settings.seed, **columns)
    resume_file = settings.data_dir / f"replay-{source.name}.json"
    if fresh:
        resume_file.unlink(missing_ok=True)
    return send_with_bar(
        settings,
        source,
        rate=rate,
        speed=speed,
        first=first,
        last=last,
        restamp=restamp,
        send_items=send_items,
        resume_file=resume_file,
    )


def run_simulate(
    settings: Settings,
    *,
    seed: int | None = None,
    items: int = 4_000,
    users: int = 3_000,
    clicks: int = 120_000,
    days: int = 56,
    to_file: Path | None = None,
    **options: Any,
) -> None:
    """Send a simulated shop, or write its clicks to a file, and say plainly that it is simulated.

    Args:
        settings: names the cluster; its seed is the shop's unless *seed* is given.
        seed: the shop's seed.
        items: size of the catalog.
        users: how many users, bots included.
        clicks: how many clicks in all.
        days: how long the simulated time is.
        to_file: a CSV, TSV or Parquet file to write instead of sending anything; the truth is not in it.
        **options: those of `replay`: rate, speed, restamp, send_items, first, last.

    Raises:
        ConfigError: a size is out of range.
        SourceError: the file can't be written.
    """
    shop = SimulatedShop(settings.seed if seed is None else seed, items=items, users=users, clicks=clicks, days=days)
    if to_file is None:
        send_with_bar(settings, shop, **options)
        return
    written = write_clicks(to_file, shop.clicks())
    Console().print(f"{written:,} simulated clicks written to {to_file}; no real person clicked here.", highlight=False)


def choose_source(path: Path | None, *, seed: int, **columns: Any) -> EventSource:
    """Return the source at *path*, or the simulated shop of *seed* where that is None.

    *columns* are the column options of `open_source`, and the errors are its errors.
    """
    return SimulatedShop(seed) if path is None else open_source(path, **columns)


def send_with_bar(settings: Settings, source: EventSource, **options: Any) -> ReplayReport:
    """Replay *source* with a progress bar until the end or Ctrl-C, and print what was sent.

    *options* are those of `replay`. Ctrl-C ends it after the chunk in flight.
    """
    console = Console()
    kind = "a simulated shop: no real person clicked here" if source.simulated else "real events"
    console.print(f"Sending [bold]{source.name}[/bold] ({kind}), {source.click_count:,} clicks.", highlight=False)
    if source.dropped:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in source.dropped.items())
        console.print(f"Left out of it: {dropped}.", highlight=False)
    report = asyncio.run(_send(settings, source, console, options))
    is_resumable = options.get("resume_file") is not None
    console.print(outcome(report, is_resumable=is_resumable), highlight=False)
    return report


async def _send(settings: Settings, source: EventSource, console: Console, options: dict[str, Any]) -> ReplayReport:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    columns = (
        TextColumn("Sending"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} clicks/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("send", total=None, rate=0.0)
        return await replay(
            settings,
            source,
            on_progress=lambda done, total, rate: bar.update(task, completed=done, total=total, rate=rate),
            stop=stop,
            **options,
        )


def outcome(report: ReplayReport, *, is_resumable: bool) -> str:
    """Return in one sentence what was sent; *is_resumable* where the place is kept for a next run."""
    sent = f"{report.clicks_sent:,} clicks and {report.items_sent:,} items sent in {report.seconds:.1f} s"
    outages = f", {report.outages} failed attempts made up for" if report.outages else ""
    if report.finished:
        return f"{sent}{outages}." if report.clicks_sent else "Everything was sent before; --fresh begins anew."
    goes_on = ", the next run goes on there" if is_resumable else ""
    return f"{sent}{outages}; stopped before click {report.next_click:,}{goes_on}."
