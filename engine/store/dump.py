"""The windows of this machine's partition stores as plain values, for `mindstream windows dump` and the auditor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rocksdict import Rdict

from engine.events import ClickEvent
from engine.settings import Settings
from engine.store import codec
from engine.store.codec import DerivedRow
from engine.store.header import stores_dir
from engine.store.marks import StoredMarks, read_old_marks
from engine.store.rocksdb import open_for_reading, read
from engine.store.scans import read_offset, scan_derived, scan_profile, scan_users, scan_window


def dump_windows(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield every user's window from this system's partition stores, without writing; an engine may be running.

    A data directory may hold stores of other topics too, made under another prefix; those are left out.

    Yields:
        `{"user_id", "clicks": [{...}, oldest first], "profile", "partition", "applied_offset", "waiting", "refreshed",
        "log"}`, described in docs/audit.md.
    """
    for path in sorted(stores_dir(settings).glob("*/CURRENT")):
        db = open_for_reading(path.parent)
        try:
            stored = read(db, codec.HEADER_KEY, path=path.parent)
            header = {} if stored is None else json.loads(stored)
            if header.get("topic") == settings.topic("clicks"):
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
        yield {
            "user_id": user_id,
            "clicks": [_click_fields(click) for click in window.clicks],
            "profile": scan_profile(view, user_id),
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
