"""What a click and a window cost as the stores grow: CPU, disk and memory with few users and with many.

Stores are filled through the codec with two clicks a user; then a million clicks of users drawn evenly are applied as
they come off the log (without the log), and the windows of everybody they touched are read and settled, as the refresh
does. CPU is that of the whole process, RocksDB's own threads and a final wait for its compactions included. Each size
runs in a process of its own. Disk is measured after a full compaction.

The last part reads windows of 50 clicks again and again, and that of a user of whom 100,000 clicks were trimmed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import at_most, conclude, machine
from rocksdict import Rdict
from store_load import (
    NOON_MS,
    PARTITIONS,
    bytes_on_disk,
    draw_click,
    fill,
    header_of,
    more_clicks,
    parse_sizes,
    sizes_parser,
    user_id,
)

from engine.log.partitioning import partition_of
from engine.settings import Settings
from engine.store.codec import CLICKS
from engine.store.header import stores_dir
from engine.store.rocksdb import open_for_reading, open_for_writing, scan_keys
from engine.store.scans import scan_window
from engine.store.windows import TRIM_EVERY, LoggedClick, PartitionStore, Refreshed

CLICKS_EACH, FULL_WINDOW, READ_AT_ONCE = 2, 50, 256
MOST_GROWTH, MOST_BYTES, MOST_RSS_GIB, MOST_READ_US = 2.0, 40.0, 1.5, 60.0


def main() -> int:
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(grown(arguments.measure, arguments.clicks, arguments.directory)))
        return 0
    directory = Path(tempfile.mkdtemp(prefix="bench-state-", dir=arguments.directory))
    try:
        few, many = (in_own_process(users, arguments, directory) for users in (arguments.few, arguments.many))
        reads = windows(directory / "reads", arguments)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    figures = {"machine": machine(), "clicks": arguments.clicks, "few": few, "many": many, "reads": reads}
    figures["checks"] = checks(few, many, reads)
    show(figures)
    return conclude(figures, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = sizes_parser(__doc__)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    return parse_sizes(parser)


def in_own_process(users: int, arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    folder = directory / str(users)
    fill_command = [sys.executable, __file__, "--measure", str(users), "--clicks", str(arguments.clicks)]
    print(f"  {users:,} users: filling the stores", flush=True)
    fill(folder, users, CLICKS_EACH, with_lists=True)
    ended = subprocess.run([*fill_command, "--directory", str(folder)], capture_output=True, text=True)
    shutil.rmtree(folder)
    if ended.returncode:
        sys.exit(ended.stderr[-3000:])
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    print(
        f"  {users:,} users: {figures['cpu_us_per_click']:.1f} us of CPU a click, "
        f"{figures['disk_bytes_per_click']:.1f} bytes on disk a click, {figures['rss_bytes'] / 2**30:.2f} GiB, "
        f"opened in {figures['open_s']:.1f} s",
        flush=True,
    )
    return figures


def grown(users: int, clicks: int, directory: Path) -> dict[str, Any]:
    """Return what *clicks* more cost in the stores of *users* below *directory*."""
    began_s = time.perf_counter()
    root = stores_dir(Settings(data_dir=directory))
    stores = [PartitionStore.open(root / f"clicks-{number}", header_of(number)) for number in range(PARTITIONS)]
    open_s = time.perf_counter() - began_s
    cpu_began_s, making_s, applied = time.process_time(), 0.0, 0
    batches = more_clicks(clicks, users, after=users * CLICKS_EACH)
    while True:
        made_s = time.thread_time()
        partition, batch = next(batches, (0, []))
        making_s += time.thread_time() - made_s
        if not batch:
            break
        stores[partition].apply(batch, through_offset=batch[-1].offset)
        refresh(stores[partition])
        applied += len(batch)
    for store in stores:
        store.close()  # waits for what RocksDB has under way
    cpu_s = time.process_time() - cpu_began_s - making_s
    rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "users": users,
        "open_s": open_s,
        "cpu_us_per_click": cpu_s / applied * 1e6,
        "rss_bytes": rss_bytes,
        "disk_bytes_per_click": compacted_bytes_per_click(root),
    }


def refresh(store: PartitionStore) -> None:
    while store.count_dirty():
        batch = store.take_dirty(READ_AT_ONCE)
        done = []
        for user in batch.users:
            window = batch.read_window(user.user_id)
            done.append(Refreshed(user.user_id, window.newest_ms or 0, 1, is_published=True))
        store.settle(batch, done)


def compacted_bytes_per_click(root: Path) -> float:
    held = size = 0
    for path in sorted(root.iterdir()):
        db = open_for_writing(path)
        db.compact_range(None, None)
        held += sum(1 for _ in scan_keys(db.iter(), CLICKS, start=CLICKS))
        db.close()
        size += bytes_on_disk(path)
    return size / held


def windows(directory: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Return microseconds a window of 50 clicks takes to read, of many users and of one who was trimmed much."""
    print("  reading windows of 50 clicks", flush=True)
    fill(directory, 2_000, FULL_WINDOW, with_lists=False)
    path = stores_dir(Settings(data_dir=directory)) / "clicks-0"
    users = [user for user in map(user_id, range(2_000)) if partition_of(user.encode(), PARTITIONS) == 0]
    trim_again_and_again(path, users[0], 10_000 if arguments.quick else 100_000)
    db = open_for_reading(path)
    try:
        return {
            "full_us": read_us(db, users[1 : READ_AT_ONCE + 1]),
            "trimmed_us": read_us(db, users[:1] * READ_AT_ONCE),
        }
    finally:
        db.close()


def trim_again_and_again(path: Path, user: str, clicks: int) -> None:
    """Apply *clicks* of one user, 200 at a time, each time followed by a refresh, which trims what is behind 50."""
    store, rng = PartitionStore.open(path, header_of(0)), random.Random(3)
    for start in range(0, clicks, 200):
        first = store.applied_offset + 1
        more = [draw_click(user, NOON_MS + 10**8 + start + at, rng) for at in range(200)]
        logged = [LoggedClick(first + at, click.clicked_at_ms, click) for at, click in enumerate(more)]
        store.apply(logged, through_offset=logged[-1].offset)
        refresh(store)
    store.close()


def read_us(db: Rdict, users: Sequence[str]) -> float:
    """Return the CPU microseconds of a window read as an engine reads it, warm, a batch from one view.

    One batch in `TRIM_EVERY` looks behind the windows too: medians of 20 such batches and of 20 others, weighed so.
    """
    medians = {}
    for looks_behind in (True, False):
        seconds = []
        for _ in range(21):
            began_s = time.thread_time()
            view = db.iter()
            for user in users:
                window, _ = scan_window(view, user, max_clicks=FULL_WINDOW, looks_behind=looks_behind)
                assert len(window) == FULL_WINDOW
            seconds.append(time.thread_time() - began_s)
        medians[looks_behind] = sorted(seconds[1:])[10] / len(users) * 1e6
    return (medians[True] + (TRIM_EVERY - 1) * medians[False]) / TRIM_EVERY


def checks(few: dict[str, Any], many: dict[str, Any], reads: dict[str, float]) -> list[dict[str, Any]]:
    bars = (
        ("CPU a click, many users over few", many["cpu_us_per_click"] / few["cpu_us_per_click"], MOST_GROWTH),
        ("bytes on disk a click", many["disk_bytes_per_click"], MOST_BYTES),
        ("memory with many users, GiB", many["rss_bytes"] / 2**30, MOST_RSS_GIB),
        ("microseconds a full window", reads["full_us"], MOST_READ_US),
        ("microseconds the window of a user trimmed much", reads["trimmed_us"], MOST_READ_US),
    )
    return [at_most(name, value, bar) for name, value, bar in bars]


def show(figures: dict[str, Any]) -> None:
    reads = figures["reads"]
    growth = figures["checks"][0]["value"]
    print(
        f"state ({figures['machine']}): CPU a click grows {growth:.2f} times from {figures['few']['users']:,} to "
        f"{figures['many']['users']:,} users; a full window is read in {reads['full_us']:.0f} us, "
        f"one trimmed much in {reads['trimmed_us']:.0f} us"
    )


if __name__ == "__main__":
    sys.exit(main())
