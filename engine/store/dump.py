"""The windows of partition stores and checkpoints as plain values, for `mindstream windows dump` and the auditor."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from rocksdict import Rdict

from engine.errors import DamagedCheckpoint
from engine.events import ClickEvent
from engine.settings import Settings
from engine.store import codec
from engine.store.checkpoints import Checkpoint, Checkpoints
from engine.store.codec import DerivedRow
from engine.store.header import stores_dir
from engine.store.marks import StoredMarks, read_old_marks
from engine.store.rocksdb import open_for_reading, read
from engine.store.scans import read_offset, scan_derived, scan_profile, scan_users, scan_window

log = structlog.get_logger()


def dump_windows(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield every user's window from this system's partition stores, without writing; an engine may be running.

    A data directory may hold stores of other topics too, made under another prefix; those are left out.

    Yields:
        `{"user_id", "clicks": [{...}, oldest first], "profile", "profile_set_at", "partition", "applied_offset",
        "waiting", "refreshed", "log"}`, described in docs/audit.md.
    """
    for path in sorted(stores_dir(settings).glob("*/CURRENT")):
        yield from _dump_folder(path.parent, topic=settings.topic("clicks"))


def dump_checkpoints(
    settings: Settings, checkpoints: Checkpoints, found: Sequence[Sequence[Checkpoint]]
) -> Iterator[dict[str, Any]]:
    """Yield what `dump_windows` does of one checkpoint of each partition: the first in *found* that is not damaged.

    Each is copied to the data directory while it is read; nothing is changed where it lies.

    Raises:
        CheckpointsUnusable: the place can't be read, or the data directory not written.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    for of_partition in found:
        for checkpoint in of_partition:
            try:
                checkpoints.verify(checkpoint)
            except DamagedCheckpoint as error:
                log.warning("checkpoint_refused", path=checkpoint.path, error=str(error))
                continue
            log.info("checkpoint_dumping", path=checkpoint.path, applied_offset=checkpoint.applied_offset)
            with tempfile.TemporaryDirectory(prefix="dump-", dir=settings.data_dir) as place:
                checkpoints.fetch(checkpoint, Path(place) / "store")
                yield from _dump_folder(Path(place) / "store", topic=settings.topic("clicks"))
            break


def _dump_folder(folder: Path, *, topic: str) -> Iterator[dict[str, Any]]:
    db = open_for_reading(folder)
    try:
        stored = read(db, codec.HEADER_KEY, path=folder)
        header = {} if stored is None else json.loads(stored)
        if header.get("topic") == topic:
            yield from _dump_store(db, header)
    finally:
        db.close()


def _dump_store(db: Rdict, header: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    applied_offset, view = read_offset(db), db.iter()
    marks, refreshed = StoredMarks(db.iter()), dict(scan_derived(db.iter()))
    for user_id, row in refreshed.items():
        marks.leave_out(user_id, row)
    waiting = {user.user_id for user in marks.users()} | {mark.user_id for mark in read_old_marks(db.iter())}
    log = {name: header[name] for name in ("cluster_id", "topic_id", "partitions")}
    for user_id in scan_users(db.iter()):
        window, _ = scan_window(view, user_id, max_clicks=header["max_clicks"])
        profile = scan_profile(view, user_id)
        yield {
            "user_id": user_id,
            "clicks": [_click_fields(click) for click in window.clicks],
            "profile": {name: held.value for name, held in profile.items()},
            "profile_set_at": {name: (held.clicked_at_ms, held.identity.decode()) for name, held in profile.items()},
            "partition": header["partition"],
            "applied_offset": applied_offset,
            "waiting": user_id in waiting,
            "refreshed": _refresh_fields(refreshed.get(user_id)),
            "log": log,
        }


def _refresh_fields(row: DerivedRow | None) -> dict[str, int | None] | None:
    if row is None:
        return None
    return {
        "as_of_ms": row.last_activity_ms or None,
        "activation": row.activation,
        "window_offset": row.window_offset if row.has_list else None,
    }


def _click_fields(click: ClickEvent) -> dict[str, Any]:
    names = ("item_id", "clicked_at_ms", "event_id", "event_type", "weight")
    return {name: getattr(click, name) for name in names}
