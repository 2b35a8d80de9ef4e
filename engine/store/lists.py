"""The list store: the newest recall list of every user, as the query service answers from it.

`recall-lists` is compacted, and compaction keeps the last record of a user, not the greatest; so the rule that orders
lists stands here as well. Each record carries `epoch`, `window_offset` and `activation` in its Kafka headers. Within
one epoch the greater `(window_offset, activation)` wins and the later record on a tie; between epochs the later record
wins. A record with no value removes the user's list.

Layout of one RocksDB, raw bytes:

    "h"                     header: JSON with the format and the topic that the store follows
    "p" + partition, >I     next offset of that partition, >q
    "t"                     Kafka timestamp of the newest applied record, milliseconds, >q
    "v" + activation, >q    how many of the kept lists carry that activation, >q
    "l" + user id, UTF-8    order (window_offset >q, activation >q, epoch length >H, epoch), then the list's JSON

A batch of records is one WriteBatch with the offsets behind it, so a killed process resumes exactly where its data end.
The store is derived: whenever it doesn't fit the topic it is emptied, and the topic is read from its beginning again.
"""

from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import msgspec
import structlog
from rocksdict import Options, Rdict, WriteBatch

from engine import metrics
from engine.errors import DamagedStore, StoreBusy
from engine.store.rocksdb import close, write

FORMAT = 1
MAX_EPOCH_BYTES = 65_535
ABSENT_AT_MOST_MS = 6 * 24 * 3_600_000
"""A store that missed more than this starts afresh: the topic keeps tombstones for 7 days, then forgets removals."""

HEADER, NEWEST, OFFSET, VERSION, LIST = b"h", b"t", b"p", b"v", b"l"
ORDER = struct.Struct(">qqH")
NUMBER = struct.Struct(">q")
PARTITION = struct.Struct(">I")
MEMTABLE_BYTES = 32 * 1024 * 1024

log = structlog.get_logger()


IsHidden = Callable[[bytes, bytes, int], bool]
"""Of a user id, an epoch, both as bytes, and a window offset."""


class ListRecord(Protocol):
    """What the store reads of a Kafka record of `recall-lists`; `engine.log.Record` is one."""

    @property
    def partition(self) -> int: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp_ms(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Mapping[str, bytes]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class ListOrder:
    """What decides between two lists of one user."""

    epoch: bytes
    window_offset: int
    activation: int

    @classmethod
    def of(cls, headers: Mapping[str, bytes]) -> Self:
        """Return the order that a record's headers name.

        Raises:
            KeyError: a header is missing.
            TypeError: a header has no value.
            ValueError: an offset is not a whole number of 64 bits, or the epoch is longer than any of ours.
        """
        epoch, window_offset, activation = headers["epoch"], int(headers["window_offset"]), int(headers["activation"])
        if len(epoch) > MAX_EPOCH_BYTES or not all(-(2**63) <= n < 2**63 for n in (window_offset, activation)):
            raise ValueError("the order does not fit the store")
        return cls(epoch, window_offset, activation)

    def yields_to(self, later: ListOrder) -> bool:
        """Return whether *later*, which stands behind this one in the log, takes its place."""
        if later.epoch != self.epoch:
            return True
        return (later.window_offset, later.activation) >= (self.window_offset, self.activation)

    def packed(self) -> bytes:
        """Return the bytes that stand before the stored list."""
        return ORDER.pack(self.window_offset, self.activation, len(self.epoch)) + self.epoch


class ListStore:
    """All recall lists of one topic on disk; `get` may run in any thread while one thread applies."""

    def __init__(self, database: Rdict, path: Path, is_hidden: IsHidden) -> None:
        self._database, self._path, self._is_hidden = database, path, is_hidden
        self._lock = threading.Lock()
        self._versions: Counter[int] = Counter()
        for key, value in _scan(database, VERSION):
            self._versions[NUMBER.unpack(key[1:])[0]] = NUMBER.unpack(value)[0]

    @classmethod
    def open(
        cls, path: Path, *, topic: str, now_ms: int, is_hidden: IsHidden = lambda _user, _epoch, _window_offset: False
    ) -> Self:
        """Return the store at *path*, emptied first where it holds another topic's lists or was away too long.

        Args:
            path: the store's directory; made where it is missing.
            topic: what tells this topic from every other one, `engine.log.Epoch.text`.
            now_ms: wall time, to judge how long the store has been away.
            is_hidden: whether a list of this user, made at this offset of this epoch, is not to be shown any more.

        Raises:
            StoreBusy: another process has it open.
            DamagedStore: RocksDB can't open it.
        """
        expected = msgspec.json.encode({"format": FORMAT, "topic": topic})
        path.mkdir(parents=True, exist_ok=True)
        database = _open(path)
        stored = database.get(HEADER)
        newest = database.get(NEWEST)
        problem = None
        if stored is not None and stored != expected:
            problem = "another topic or format"
        elif newest is not None and now_ms - NUMBER.unpack(newest)[0] > ABSENT_AT_MOST_MS:
            problem = "away longer than the topic keeps removals"
        if problem is not None:
            log.warning("list_store_started_afresh", path=str(path), reason=problem)
            database.close()
            Rdict.destroy(str(path))
            path.mkdir(parents=True, exist_ok=True)
            database = _open(path)
        database[HEADER] = expected
        return cls(database, path, is_hidden)

    def apply(self, records: Sequence[ListRecord]) -> list[ListRecord]:
        """Take *records*, in log order, in one atomic write, and return those that moved their user's list forward.

        A record of `recall-lists` that carries no usable order is counted, logged and passed over. Records before the
        stored offset of their partition are passed over silently: they have been taken already.

        Raises:
            StoreNotWritten: RocksDB can't write; nothing of *records* is taken.
        """
        with self._lock:
            fold = _Fold(self._database, self._versions)
            taken = [record for record in records if fold.take(record)]
            write(self._database, fold.batch(), path=self._path)
            self._versions = +fold.versions
        return taken

    def get(self, user_id: str) -> bytes | None:
        """Return the JSON of the user's recall list as it came from the log; None without one, and of a hidden one."""
        user = user_id.encode()
        stored = self._database.get(LIST + user)
        if stored is None:
            return None
        window_offset, _, epoch_length = ORDER.unpack_from(stored)
        start = ORDER.size + epoch_length
        if self._is_hidden(user, stored[ORDER.size : start], window_offset):
            return None
        return bytes(stored[start:])

    def next_offsets(self) -> dict[int, int]:
        """Return by partition the offset of the first record that was not applied yet."""
        return {PARTITION.unpack(key[1:])[0]: NUMBER.unpack(value)[0] for key, value in _scan(self._database, OFFSET)}

    @property
    def count(self) -> int:
        """How many users have a list."""
        return self._versions.total()

    def count_at(self, activation: int) -> int:
        """Return how many of the lists were made under *activation* of a model version."""
        return self._versions[activation]

    def close(self) -> None:
        """Flush and release the store; a closed store answers nothing.

        Raises:
            StoreNotWritten: RocksDB can't write.
        """
        with self._lock:
            close(self._database, path=self._path)


class _Fold:
    """One batch in the making: the lists, counts and offsets that *records* leave behind."""

    def __init__(self, database: Rdict, versions: Mapping[int, int]) -> None:
        self.versions: Counter[int] = Counter(versions)
        self._database = database
        self._orders: dict[bytes, ListOrder | None] = {}
        self._values: dict[bytes, bytes | None] = {}
        self._offsets: dict[int, int] = {}
        self._newest_ms = -1
        self._touched: set[int] = set()

    def take(self, record: ListRecord) -> bool:
        """Fold one record in; return whether it became its user's list."""
        if record.offset < self._next_offset(record.partition):
            return False
        self._offsets[record.partition] = record.offset + 1
        self._newest_ms = max(self._newest_ms, record.timestamp_ms)
        if record.key is None:
            return self._refuse(record, "no key")
        if record.value is None:
            self._replace(record.key, None, None)
            return False
        try:
            order = ListOrder.of(record.headers)
        except (KeyError, TypeError, ValueError):
            return self._refuse(record, "no usable epoch, window_offset and activation headers")
        current = self._order(record.key)
        if current is not None and not current.yields_to(order):
            return False
        self._replace(record.key, order, record.value)
        return True

    def batch(self) -> WriteBatch:
        """Return everything folded in as one write."""
        batch = WriteBatch(raw_mode=True)
        for key, value in self._values.items():
            if value is None:
                batch.delete(LIST + key)
            else:
                batch.put(LIST + key, value)
        for activation in self._touched:
            if self.versions[activation]:
                batch.put(VERSION + NUMBER.pack(activation), NUMBER.pack(self.versions[activation]))
            else:
                batch.delete(VERSION + NUMBER.pack(activation))
        for partition, offset in self._offsets.items():
            batch.put(OFFSET + PARTITION.pack(partition), NUMBER.pack(offset))
        if self._newest_ms >= 0:
            batch.put(NEWEST, NUMBER.pack(self._newest_ms))
        return batch

    def _next_offset(self, partition: int) -> int:
        if partition not in self._offsets:
            stored = self._database.get(OFFSET + PARTITION.pack(partition))
            self._offsets[partition] = NUMBER.unpack(stored)[0] if stored is not None else 0
        return self._offsets[partition]

    def _order(self, key: bytes) -> ListOrder | None:
        if key not in self._orders:
            stored = self._database.get(LIST + key)
            self._orders[key] = _read_order(stored) if stored is not None else None
        return self._orders[key]

    def _replace(self, key: bytes, order: ListOrder | None, value: bytes | None) -> None:
        current = self._order(key)
        if current is not None:
            self._count(current.activation, -1)
        if order is not None:
            self._count(order.activation, +1)
        self._orders[key] = order
        self._values[key] = order.packed() + value if order is not None and value is not None else None

    def _count(self, activation: int, change: int) -> None:
        self.versions[activation] += change
        self._touched.add(activation)

    def _refuse(self, record: ListRecord, problem: str) -> bool:
        metrics.LIST_RECORDS_REFUSED.inc()
        log.warning("list_record_refused", partition=record.partition, offset=record.offset, problem=problem)
        return False


def _read_order(stored: bytes) -> ListOrder:
    window_offset, activation, epoch_length = ORDER.unpack_from(stored)
    return ListOrder(bytes(stored[ORDER.size : ORDER.size + epoch_length]), window_offset, activation)


def _scan(database: Rdict, prefix: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    for key, value in database.items(from_key=prefix):
        if not isinstance(key, bytes) or not key.startswith(prefix):
            break
        found.append((key, value))
    return found


def _open(path: Path) -> Rdict:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(MEMTABLE_BYTES)
    options.set_keep_log_file_num(2)
    try:
        return Rdict(str(path), options=options)
    except Exception as error:  # rocksdict raises bare Exception for every RocksDB status
        if "lock" in str(error).lower():
            raise StoreBusy(path) from error
        raise DamagedStore(path, cause=str(error)) from error
