"""Partition stores of many users, written through the codec, for the benchmarks of state and recovery.

A user's clicks lie a minute apart; ids are as short as a shop's: `u0012345`, `i0012345`, and event ids of 8 characters.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from rocksdict import WriteBatch

from engine.events import ClickEvent
from engine.log.partitioning import partition_of
from engine.settings import Settings
from engine.store import codec
from engine.store.header import StoreHeader, check_header, stores_dir
from engine.store.rocksdb import open_for_writing
from engine.store.windows import LoggedClick

PARTITIONS, ITEMS = 4, 100_000
NOON_MS = 1_795_867_200_000
MINUTE_MS = 60_000
_AT_ONCE = 5_000


def sizes_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of how many users small and large stores have, and how many clicks come on top."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 and 200,000 users, 50,000 clicks")
    parser.add_argument("--few", type=int, help="users of the small stores; 500,000 by default")
    parser.add_argument("--many", type=int, help="users of the large stores; 10,000,000 by default")
    parser.add_argument("--clicks", type=int, help="on top of what they hold; a million by default")
    parser.add_argument("--directory", type=Path, help="where everything lies meanwhile; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    return parser


def parse_sizes(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments, with the sizes that were not given."""
    arguments = parser.parse_args()
    arguments.few = arguments.few or (20_000 if arguments.quick else 500_000)
    arguments.many = arguments.many or (200_000 if arguments.quick else 10_000_000)
    arguments.clicks = arguments.clicks or (50_000 if arguments.quick else 1_000_000)
    return arguments


def header_of(partition: int) -> StoreHeader:
    return StoreHeader("bench", "clicks", "bench", PARTITIONS, partition, max_clicks=50)


def user_id(number: int) -> str:
    return f"u{number:07d}"


def draw_click(user: str, clicked_at_ms: int, rng: random.Random) -> ClickEvent:
    return ClickEvent(
        user_id=user,
        item_id=f"i{rng.randrange(ITEMS):07d}",
        clicked_at_ms=clicked_at_ms,
        event_id=f"{rng.getrandbits(32):08x}",
    )


def fill(
    directory: Path,
    users: int,
    clicks_each: int,
    *,
    with_lists: bool,
    header: Callable[[int], StoreHeader] = header_of,
    has_applied: bool = True,
) -> int:
    """Write the stores below *directory* as an engine's data directory holds them; return the clicks of the fullest.

    Args:
        directory: the engine's data directory.
        users: how many.
        clicks_each: clicks of every user.
        with_lists: every user has a derived row, as after a refresh.
        header: what the store of a partition is made for.
        has_applied: whether the clicks are those of as many offsets; else the log begins behind them.
    """
    rng = random.Random(7)
    root = stores_dir(Settings(data_dir=directory))
    paths = [root / f"{header(partition).topic}-{partition}" for partition in range(PARTITIONS)]
    stores = [open_for_writing(path) for path in paths]
    batches = [WriteBatch(raw_mode=True) for _ in stores]
    for partition, (store, path) in enumerate(zip(stores, paths, strict=True)):
        check_header(store, path, header(partition))
    counts = [0] * PARTITIONS
    for number in range(users):
        user = user_id(number)
        key = user.encode()
        partition = partition_of(key, PARTITIONS)
        batch = batches[partition]
        for at in range(clicks_each):
            click = draw_click(user, NOON_MS + at * MINUTE_MS, rng)
            batch.put(codec.user_prefix(codec.CLICKS, key) + codec.click_order(click), codec.encode_click(click))
        if with_lists:
            row = codec.DerivedRow(NOON_MS, 1, number)
            batch.put(codec.DERIVED + key, codec.encode_derived(row))
        counts[partition] += clicks_each
        if len(batch) >= _AT_ONCE:
            stores[partition].write(batch)
            batches[partition] = WriteBatch(raw_mode=True)
    for store, batch, count in zip(stores, batches, counts, strict=True):
        if has_applied:
            batch.put(codec.OFFSET_KEY, codec.encode_offset(count - 1))
        store.write(batch)
        store.flush()
        store.close()
    return max(counts)


def more_clicks(count: int, users: int, *, after: int) -> Iterator[tuple[int, list[LoggedClick]]]:
    """Yield micro-batches of 2,000 records as they come off the log, each of one partition, of users drawn evenly."""
    rng = random.Random(8)
    open_batches: dict[int, list[LoggedClick]] = {partition: [] for partition in range(PARTITIONS)}
    offsets = dict.fromkeys(open_batches, after)
    for number in range(count):
        user = user_id(rng.randrange(users))
        partition = partition_of(user.encode(), PARTITIONS)
        offsets[partition] += 1
        click = draw_click(user, NOON_MS + 10**8 + number, rng)
        open_batches[partition].append(LoggedClick(offsets[partition], NOON_MS + 10**8 + number, click))
        if len(open_batches[partition]) == 2_000:
            yield partition, open_batches[partition]
            open_batches[partition] = []


def bytes_on_disk(path: Path) -> int:
    """Return the size of all files of a store or a folder of them, RocksDB's own log of what it did left out."""
    files = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("LOG"))
    return sum(file.stat().st_size for file in files)
