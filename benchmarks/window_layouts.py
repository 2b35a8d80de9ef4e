"""Two layouts of a window in RocksDB, both with full windows of 50: one small put a click, or one value a user.

The figures behind docs/decisions/0005. CPU time of the whole process, so RocksDB's own threads count; no decoding of
clicks on either side, and one value a user is spared all but splitting, merging and joining.
"""

from __future__ import annotations

import argparse
import random
import struct
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rocksdict import Rdict, WriteBatch

from engine.store.rocksdb import open_for_writing

WINDOW, BATCH, READ_AT_ONCE = 50, 2_000, 256
_SIZES = struct.Struct(">BB")

Entry = tuple[bytes, bytes]
"""Place in the window and value of one click, as `engine/store/codec.py` lays them out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000, help="how many full windows there are")
    parser.add_argument("--clicks", type=int, default=60_000, help="how many clicks are put on top")
    parser.add_argument("--windows", type=int, default=4_000, help="how many windows are read")
    arguments = parser.parse_args()
    rng = random.Random(20_261_125)
    users = [b"customer-%031d" % number for number in range(arguments.users)]
    clicks = [(rng.choice(users), entry(rng, 1_000 + number)) for number in range(arguments.clicks)]
    with tempfile.TemporaryDirectory() as directory:
        small, whole = (open_for_writing(Path(directory) / name) for name in ("small", "whole"))
        fill(small, whole, users, rng)
        put_us = [cpu_us(put, db, clicks, each=len(clicks)) for put, db in ((put_small, small), (put_whole, whole))]
        chosen = rng.sample(users, min(arguments.windows, len(users)))
        read_us = [
            cpu_us(read, db, chosen, each=len(chosen)) for read, db in ((read_small, small), (read_whole, whole))
        ]
        small.close()
        whole.close()
    print(f"one small put a click: {put_us[0]:.1f} us a click, {read_us[0]:.1f} us a window read")
    print(f"one value a user:      {put_us[1]:.1f} us a click, {read_us[1]:.1f} us a window read")


def entry(rng: random.Random, at: int) -> Entry:
    place = struct.pack(">Q", 2**64 - 1 - at) + b"%016x\xff" % rng.getrandbits(64)
    return place, b"\x01\x01" + struct.pack(">d", 1.0) + b"\x05click" + b"product-%031d" % rng.randrange(100_000)


def fill(small: Rdict, whole: Rdict, users: Sequence[bytes], rng: random.Random) -> None:
    """Give every user a full window in both layouts, flushed and compacted."""
    for user in users:
        window = sorted(entry(rng, at) for at in range(WINDOW))
        one, many = WriteBatch(raw_mode=True), WriteBatch(raw_mode=True)
        one.put(b"w" + user, join(window))
        for place, value in window:
            many.put(b"w" + user + b"\x00" + place, value)
        small.write(many)
        whole.write(one)
    for db in (small, whole):
        db.flush()
        db.compact_range(None, None)


def put_small(db: Rdict, clicks: Sequence[tuple[bytes, Entry]]) -> None:
    for start in range(0, len(clicks), BATCH):
        batch = WriteBatch(raw_mode=True)
        for user, (place, value) in clicks[start : start + BATCH]:
            batch.put(b"w" + user + b"\x00" + place, value)
        db.write(batch)


def put_whole(db: Rdict, clicks: Sequence[tuple[bytes, Entry]]) -> None:
    for start in range(0, len(clicks), BATCH):
        fresh: dict[bytes, list[Entry]] = defaultdict(list)
        for user, click in clicks[start : start + BATCH]:
            fresh[b"w" + user].append(click)
        batch = WriteBatch(raw_mode=True)
        for key, stored in zip(fresh, db.get(list(fresh)), strict=True):
            window = dict(split(stored))
            window.update(fresh[key])
            batch.put(key, join(sorted(window.items())[:WINDOW]))
        db.write(batch)


def read_small(db: Rdict, users: Sequence[bytes]) -> None:
    view = db.iter()
    for user in users:
        prefix, window = b"w" + user + b"\x00", list[Entry]()
        view.seek(prefix)
        while len(window) < WINDOW and (key := view.key()) is not None and key.startswith(prefix):
            window.append((key[len(prefix) :], view.value()))
            view.next()
        assert len(window) == WINDOW


def read_whole(db: Rdict, users: Sequence[bytes]) -> None:
    for start in range(0, len(users), READ_AT_ONCE):
        for stored in db.get([b"w" + user for user in users[start : start + READ_AT_ONCE]]):
            assert len(split(stored)) == WINDOW


def join(window: Sequence[Entry]) -> bytes:
    return b"".join(_SIZES.pack(len(place), len(value)) + place + value for place, value in window)


def split(stored: bytes) -> list[Entry]:
    window, start = list[Entry](), 0
    while start < len(stored):
        middle = start + 2 + stored[start]
        end = middle + stored[start + 1]
        window.append((stored[start + 2 : middle], stored[middle:end]))
        start = end
    return window


def cpu_us(work: Callable[[Rdict, Any], None], db: Rdict, argument: object, *, each: int) -> float:
    began_s = time.process_time()
    work(db, argument)
    return (time.process_time() - began_s) / each * 1e6


if __name__ == "__main__":
    main()
