"""What is read from a partition store, as values: marks, derived rows, users, a window, a profile.

Each function takes an iterator of the database, which is one consistent view of it, and reads one kind of the keys laid
out in `codec`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from rocksdict import Rdict, RdictIter

from engine.events import ClickEvent
from engine.store import codec
from engine.store.codec import CLICKS, DERIVED, MARKS, PROFILES, DerivedRow
from engine.store.rocksdb import scan, scan_keys


@dataclass(frozen=True, slots=True)
class DirtyUser:
    """A user whose list is due: `accepted_at_ms` is when the log accepted the oldest click that no list reflects yet.

    None: no click waits (the list is only behind the model), or its record carried no timestamp.
    """

    user_id: str
    accepted_at_ms: int | None
    marks: tuple[int, ...] = ()


def read_offset(db: Rdict) -> int:
    """Return the greatest applied offset; -1 in a new store."""
    stored = db.get(codec.OFFSET_KEY)
    return -1 if stored is None else codec.decode_offset(stored)


def read_marks(view: RdictIter) -> dict[str, DirtyUser]:
    """Return the marks on disk, one entry a user; two marks of a user are a refresh that a crash cut off."""
    pending: dict[str, DirtyUser] = {}
    for key, value in scan(view, MARKS):
        offset, user = codec.decode_mark_key(key)
        mark = DirtyUser(user.decode(), codec.decode_mark(value), (offset,))
        older = pending.get(mark.user_id)
        pending[mark.user_id] = mark if older is None else joined(older, mark)
    return pending


def joined(older: DirtyUser, newer: DirtyUser) -> DirtyUser:
    """Return one entry for the marks of both; the older one's time counts."""
    accepted_at_ms = older.accepted_at_ms if older.accepted_at_ms is not None else newer.accepted_at_ms
    return DirtyUser(older.user_id, accepted_at_ms, older.marks + newer.marks)


def scan_derived(view: RdictIter) -> Iterator[tuple[str, DerivedRow]]:
    """Yield every user that has a list, with what it was derived from, in byte order."""
    for key, value in scan(view, DERIVED):
        yield key[1:].decode(), codec.decode_derived(value)


def has_derived(view: RdictIter, user_id: str) -> bool:
    """Return whether the user has a derived row."""
    key = DERIVED + user_id.encode()
    return next(scan_keys(view, key, start=key), None) == key


def scan_users(view: RdictIter) -> Iterator[str]:
    """Yield every user that has a window, in byte order."""
    start = CLICKS
    while (key := next(scan_keys(view, CLICKS, start=start), None)) is not None:
        user = key[1 : key.index(0)]
        yield user.decode()
        start = codec.after_user(CLICKS, user)


def scan_window(view: RdictIter, user_id: str, *, max_clicks: int) -> tuple[tuple[ClickEvent, ...], bytes | None]:
    """Return the user's kept clicks, oldest first, and where the surplus begins.

    The second is the key of the first click behind the window, once there are `max_clicks` of those; else None.
    """
    prefix = codec.user_prefix(CLICKS, user_id.encode())
    kept: list[ClickEvent] = []
    for key, value in scan(view, prefix):
        if len(kept) == max_clicks:
            surplus = list(islice(scan_keys(view, prefix, start=key), max_clicks))
            return tuple(reversed(kept)), surplus[0] if len(surplus) == max_clicks else None
        kept.append(codec.decode_click(user_id, key[len(prefix) :], value))
    return tuple(reversed(kept)), None


def scan_profile(view: RdictIter, user_id: str) -> dict[str, str | float]:
    """Return the user's profile, attributes in byte order."""
    prefix = codec.user_prefix(PROFILES, user_id.encode())
    return {key[len(prefix) :].decode(): codec.decode_profile(value).value for key, value in scan(view, prefix)}
