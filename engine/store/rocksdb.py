"""How this project opens RocksDB: bounded memory, the write-ahead log on, library errors translated.

A store is one directory, held by one process at a time; others may open it for reading. Keys and values are bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    WriteBatch,
    WriteBufferManager,
)

from engine.errors import DamagedStore, StoreBusy, StoreNotWritten

# Shared by all stores of a process: by default each would have a cache and 64 MB write buffers of its own.
_CACHE = Cache(64 * 2**20)
_WRITE_BUFFERS = WriteBufferManager(64 * 2**20, False)
_READ_ATTEMPTS = 5


def open_for_writing(path: Path) -> Rdict:
    """Open the store at *path*, made if there is none.

    Raises:
        StoreBusy: another process, or another object of this one, holds it.
        DamagedStore: RocksDB refuses it.
    """
    path.mkdir(parents=True, exist_ok=True)
    return _open(path, AccessType.read_write())


def open_for_reading(path: Path) -> Rdict:
    """Open the store at *path* as it is now, while its owner may go on writing.

    Raises:
        DamagedStore: RocksDB refuses it, again and again.
    """
    for attempt in range(1, _READ_ATTEMPTS):
        try:
            return _open(path, AccessType.read_only(False))
        except DamagedStore:  # the owner replaced its files between two of our looks at them
            time.sleep(0.05 * attempt)
    return _open(path, AccessType.read_only(False))


def read(db: Rdict, key: bytes, *, path: object) -> bytes | None:
    """Return the value of *key* in the store at *path* as it is now, or None.

    Raises:
        DamagedStore: RocksDB met a block that it can't read.
    """
    try:
        value: bytes | None = db.get(key)
    except Exception as error:  # rocksdict raises plain Exception for everything
        raise DamagedStore(path, cause=str(error)) from error
    return value


def write(db: Rdict, batch: WriteBatch, *, path: object) -> None:
    """Write *batch* in one step to the store at *path*.

    Raises:
        StoreNotWritten: the disk is full or failing, or the store is closed; nothing of *batch* is in it.
        DamagedStore: RocksDB met a block that it can't read while it compacted, and takes no more.
    """
    try:
        db.write(batch)
    except Exception as error:  # rocksdict raises plain Exception for everything
        if "Corruption" in str(error):
            raise DamagedStore(path, cause=str(error)) from error
        raise StoreNotWritten(path, cause=str(error)) from error


def close(db: Rdict, *, path: object) -> None:
    """Flush the store at *path* and let go of it.

    Raises:
        StoreNotWritten: what was still to be flushed can't be; the write-ahead log has it all the same.
    """
    try:
        db.close()
    except Exception as error:  # rocksdict raises plain Exception for everything
        raise StoreNotWritten(path, cause=str(error)) from error


def copy(db: Rdict, folder: Path) -> None:
    """Make *folder*, which must not exist, a copy of the open store; its tables are links to the store's own.

    Raises:
        StoreNotWritten: the disk is full or failing, or *folder* is on another file system.
    """
    try:
        Checkpoint(db).create_checkpoint(str(folder))
    except Exception as error:  # rocksdict raises plain Exception for everything
        raise StoreNotWritten(folder, cause=str(error)) from error


def compact(db: Rdict, ranges: Iterable[tuple[bytes, bytes]], *, path: object) -> None:
    """Have the bytes of deleted keys in *ranges*, each from the first to before the second, leave the disk.

    Raises:
        StoreNotWritten: RocksDB can't write.
    """
    try:
        db.flush()
        for start, end in ranges:
            db.compact_range(start, end)
    except Exception as error:  # rocksdict raises plain Exception for everything
        raise StoreNotWritten(path, cause=str(error)) from error


def verify(path: Path) -> int:
    """Read the whole store at *path*, checksums and all, and return how many keys it has.

    Raises:
        DamagedStore: RocksDB refuses it, or a block of it.
    """
    db = open_for_reading(path)
    try:
        return sum(1 for _ in scan(db.iter(), b""))
    finally:
        db.close()


def scan(view: RdictIter, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys that start with *prefix*, in byte order, and their values.

    *view* is one consistent view of the store for as long as it lives, whatever is written meanwhile. rocksdict's own
    `Snapshot` is not: in 0.3.29 its iterators read the newest state.

    Raises:
        DamagedStore: RocksDB met a block that it can't read; without this check the scan would just end early.
    """
    view.seek(prefix)
    while (key := view.key()) is not None and key.startswith(prefix):
        yield key, view.value()
        view.next()
    if key is None:
        check_status(view)


def scan_keys(view: RdictIter, prefix: bytes, *, start: bytes) -> Iterator[bytes]:
    """Yield the keys that start with *prefix*, from *start* on, in byte order.

    Raises:
        DamagedStore: RocksDB met a block that it can't read.
    """
    view.seek(start)
    while (key := view.key()) is not None and key.startswith(prefix):
        yield key
        view.next()
    if key is None:
        check_status(view)


def read_value(view: RdictIter, key: bytes) -> bytes | None:
    """Return the value of *key* as *view* shows it, or None.

    Raises:
        DamagedStore: RocksDB met a block that it can't read.
    """
    view.seek(key)
    found: bytes | None = view.key()
    if found is None:
        check_status(view)
    return view.value() if found == key else None


def check_status(view: RdictIter) -> None:
    """Raise DamagedStore if *view* ended because of an error, and not because there was nothing more."""
    try:
        view.status()
    except Exception as error:
        raise DamagedStore("scan", cause=str(error)) from error


def _open(path: Path, access: AccessType) -> Rdict:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(16 * 2**20)
    options.set_write_buffer_manager(_WRITE_BUFFERS)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_compression_type(DBCompressionType.lz4())
    blocks = BlockBasedOptions()
    blocks.set_block_cache(_CACHE)
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_bloom_filter(10, False)
    # In parts: a whole table's filter is larger than a shard of the cache, so that it would be read for every look-up
    # again. With ten million users a click cost ten times the CPU.
    blocks.set_index_type(BlockBasedIndexType.two_level_index_search())
    blocks.set_partition_filters(True)
    blocks.set_metadata_block_size(4096)
    blocks.set_pin_top_level_index_and_filter(True)
    options.set_block_based_table_factory(blocks)
    try:
        return Rdict(str(path), options, access_type=access)
    except Exception as error:  # rocksdict raises plain Exception for everything
        if "LOCK" in str(error):
            raise StoreBusy(path) from error
        raise DamagedStore(path, cause=str(error)) from error
