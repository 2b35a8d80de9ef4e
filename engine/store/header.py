"""What a partition store was made for, and where it stands: the first record that is read when a store is opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rocksdict import Rdict, WriteBatch

from engine.errors import StoreFormatError
from engine.settings import Settings
from engine.store import codec
from engine.store.marks import read_old_marks
from engine.store.rocksdb import read, write


@dataclass(frozen=True, slots=True)
class StoreHeader:
    """What a store was made for; a store is only ever opened for the same again."""

    cluster_id: str
    topic: str
    topic_id: str
    partitions: int
    partition: int
    max_clicks: int
    format: int = codec.STORE_FORMAT


def stores_dir(settings: Settings) -> Path:
    """Return the directory that holds one store per partition."""
    return settings.data_dir / "engine" / "partitions"


def check_header(db: Rdict, path: Path, header: StoreHeader) -> None:
    """Compare the store's header with *header*, which a new store is given; a store of format 2 becomes one of 3.

    Raises:
        StoreFormatError: the store was written for another header.
        DamagedStore: a block with the header or marks can't be read.
        StoreNotWritten: RocksDB can't write.
    """
    stored = read(db, codec.HEADER_KEY, path=path)
    expected = asdict(header)
    if stored is None:
        db.put(codec.HEADER_KEY, json.dumps(expected).encode())
        return
    found: dict[str, object] = json.loads(stored)
    name = first_difference(found, header)
    if name is not None:
        raise StoreFormatError(path, field=name, stored=found.get(name), expected=expected[name], remedy=_remedy(name))
    if found["format"] == codec.FORMAT_OF_OLD_MARKS:
        _rewrite_marks(db, path, expected)


def first_difference(stored: Mapping[str, object], header: StoreHeader) -> str | None:
    """Return the field that keeps a store with the header *stored* from being opened for *header*; None for none."""
    readable = {"format": (codec.STORE_FORMAT, codec.FORMAT_OF_OLD_MARKS)}
    return next(
        (name for name, value in asdict(header).items() if stored.get(name) not in readable.get(name, (value,))), None
    )


def _rewrite_marks(db: Rdict, path: Path, header: Mapping[str, object]) -> None:
    """Write the marks of format 2 as those of format 3, and the header with them."""
    batch, old = WriteBatch(raw_mode=True), read_old_marks(db.iter())
    if old:
        batch.put(codec.marks_key(0), codec.encode_marks(old))
        batch.delete_range(codec.OLD_MARKS, codec.AFTER_OLD_MARKS)
    batch.put(codec.HEADER_KEY, json.dumps(header).encode())
    write(db, batch, path=path)


def _remedy(field_name: str) -> str:
    if field_name == "max_clicks":
        return "set MINDSTREAM_WINDOW_MAX_CLICKS back, or move the store aside and let the log rebuild it"
    if field_name == "format":
        return "move the store aside and let the log rebuild it, or run the release that wrote it"
    return (
        "move the store aside, the next start rebuilds it from the log, or point this engine at the cluster it was on"
    )
