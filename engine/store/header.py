"""What a partition store was made for, and where it stands: the first record that is read when a store is opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rocksdict import Rdict

from engine.errors import StoreFormatError
from engine.settings import Settings
from engine.store import codec
from engine.store.rocksdb import read


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
    """Compare the store's header with *header*, which a new store is given.

    Raises:
        StoreFormatError: the store was written for another header.
        DamagedStore: the block with the header can't be read.
    """
    stored = read(db, codec.HEADER_KEY, path=path)
    expected = asdict(header)
    if stored is None:
        db.put(codec.HEADER_KEY, json.dumps(expected).encode())
        return
    found: Mapping[str, object] = json.loads(stored)
    for name, value in expected.items():
        if found.get(name) != value:
            raise StoreFormatError(path, field=name, stored=found.get(name), expected=value, remedy=_remedy(name))


def _remedy(field_name: str) -> str:
    if field_name == "max_clicks":
        return "set MINDSTREAM_WINDOW_MAX_CLICKS back, or move the store aside and let the log rebuild it"
    if field_name == "format":
        return "move the store aside and let the log rebuild it, or run the release that wrote it"
    return (
        "move the store aside, the next start rebuilds it from the log, or point this engine at the cluster it was on"
    )
