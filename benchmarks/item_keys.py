"""Two ways to name the item of a stored click: its id, or a key of 8 bytes with a dictionary beside it.

The figures behind docs/decisions/0010. A dictionary entry is written in the batch of the first click on its item; a
collision would be found by comparing it. Both sides know what was looked up before, as far as `KNOWN` items. CPU time
of the whole process; clicks are not decoded on either side.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import struct
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from rocksdict import Rdict, WriteBatch
from window_layouts import BATCH, READ_AT_ONCE, WINDOW, cpu_us

from engine.store.rocksdb import open_for_writing

ITEMS, KNOWN = 100_000, 20_000
HEAD = b"\x01\x01" + struct.pack(">d", 1.0) + b"\x05click"

Click = tuple[bytes, bytes]
"""Key and item id."""


class ById:
    """The value of a click names the item."""

    def __init__(self, db: Rdict) -> None:
        self._db = db

    def put(self, clicks: Sequence[Click]) -> None:
        for start in range(0, len(clicks), BATCH):
            batch = WriteBatch(raw_mode=True)
            for key, item in clicks[start : start + BATCH]:
                batch.put(key, HEAD + item)
            self._db.write(batch)

    def read(self, prefixes: Sequence[bytes]) -> None:
        for values in windows(self._db, prefixes):
            assert len([value[len(HEAD) :] for value in values]) == WINDOW


class ByKey:
    """The value holds a key of 8 bytes, the dictionary what it stands for."""

    def __init__(self, db: Rdict) -> None:
        self._db = db
        self._key_of = lru_cache(KNOWN)(self._find_key)
        self._names: dict[bytes, bytes] = {}
        self._new: dict[bytes, bytes] = {}

    def _find_key(self, item: bytes) -> bytes:
        key = hashlib.blake2b(item, digest_size=8).digest()
        held = self._new.get(key) or self._db.get(b"i" + key)
        if held is None:
            self._new[key] = item
        elif held != item:
            raise ValueError(f"{item!r} and {held!r} have one key")
        return key

    def put(self, clicks: Sequence[Click]) -> None:
        for start in range(0, len(clicks), BATCH):
            batch = WriteBatch(raw_mode=True)
            for key, item in clicks[start : start + BATCH]:
                batch.put(key, HEAD + self._key_of(item))
            for item_key, item in self._new.items():
                batch.put(b"i" + item_key, item)
            self._db.write(batch)
            self._new.clear()

    def read(self, prefixes: Sequence[bytes]) -> None:
        for start in range(0, len(prefixes), READ_AT_ONCE):
            found = list(windows(self._db, prefixes[start : start + READ_AT_ONCE]))
            keys = [[value[len(HEAD) :] for value in values] for values in found]
            unknown = [key for key in {key for window in keys for key in window} if key not in self._names]
            if len(self._names) > KNOWN:
                self._names.clear()
                unknown = list({key for window in keys for key in window})
            names = self._db.get([b"i" + key for key in unknown])
            self._names.update(zip(unknown, names, strict=True))
            for window in keys:
                assert len([self._names[key] for key in window]) == WINDOW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10_000, help="how many full windows there are")
    parser.add_argument("--clicks", type=int, default=60_000, help="how many clicks are put on top")
    parser.add_argument("--windows", type=int, default=4_000, help="how many windows are read")
    arguments = parser.parse_args()
    print(f"{'':30}{'bytes a click':>14}{'us a click put':>16}{'us a window read':>18}")
    for length in (8, 16, 36):
        rng = random.Random(20_261_128)
        items = [b"%0*x" % (length, rng.getrandbits(4 * length)) for _ in range(ITEMS)]
        shares = list(accumulate(1.0 / (place + 10) for place in range(ITEMS)))
        users = [b"w" + b"%016x" % rng.getrandbits(64) + b"\x00" for _ in range(arguments.users)]
        filled = [(user + place(rng, at), item) for user in users for at, item in enumerate(draw(rng, items, shares))]
        fresh = draw(rng, items, shares, arguments.clicks)
        on_top = [(rng.choice(users) + place(rng, 1_000 + at), item) for at, item in enumerate(fresh)]
        chosen = rng.sample(users, min(arguments.windows, len(users)))
        for kind in (ById, ByKey):
            with tempfile.TemporaryDirectory() as directory:
                db = open_for_writing(Path(directory) / "store")
                way = kind(db)
                way.put(filled)
                db.flush()
                db.compact_range(None, None)
                size = sum(path.stat().st_size for path in Path(directory).rglob("*.sst")) / len(filled)
                put_us = cpu_us(lambda _db, clicks: way.put(clicks), db, on_top, each=len(on_top))  # noqa: B023
                read_us = cpu_us(lambda _db, users: way.read(users), db, chosen, each=len(chosen))  # noqa: B023
                name = {ById: "ids", ByKey: "keys and a dictionary"}[kind]
                print(f"{name + f', {length} characters':30}{size:14.1f}{put_us:16.2f}{read_us:18.1f}", flush=True)
                db.close()


def draw(rng: random.Random, items: Sequence[bytes], shares: Sequence[float], count: int = WINDOW) -> list[bytes]:
    """Return items, some more often than others."""
    return rng.choices(items, cum_weights=shares, k=count)


def place(rng: random.Random, at: int) -> bytes:
    return struct.pack(">Q", 2**64 - 1 - at) + b"%08x\xff" % rng.getrandbits(32)


def windows(db: Rdict, prefixes: Sequence[bytes]) -> list[list[bytes]]:
    view, found = db.iter(), []
    for prefix in prefixes:
        values: list[bytes] = []
        view.seek(prefix)
        while len(values) < WINDOW and (key := view.key()) is not None and key.startswith(prefix):
            values.append(view.value())
            view.next()
        found.append(values)
    return found


if __name__ == "__main__":
    main()
