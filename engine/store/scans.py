"""What is read from a partition store, as values: dirty users, derived rows, a window, a profile.

A `DirtyBatch` is what a refresh reads from. Each function takes an iterator of the database, which is one consistent
view of it, and reads one kind of the keys laid out in `codec`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rocksdict import Rdict, RdictIter

from engine.events import ClickEvent
from engine.store import codec
from engine.store.codec import CLICKS, DERIVED, PROFILES, DerivedRow, ProfileValue
from engine.store.marks import DirtyUser
from engine.store.rocksdb import check_status, open_for_reading, read, read_value, scan, scan_keys
from engine.window import BehaviorWindow, SeenRule, window_order

KeyRange = tuple[bytes, bytes]
"""First key, and the first one behind."""


@dataclass(slots=True, eq=False)
class DirtyBatch:
    """Users taken together for refresh, and the one view of the store that all of them are read from."""

    users: Sequence[DirtyUser]
    applied_offset: int
    max_clicks: int
    _view: RdictIter | None
    _seen_rule: SeenRule | None = None
    _looks_behind: bool = True
    """Whether clicks behind the windows are looked for, to be trimmed."""
    _surplus: list[KeyRange] = field(default_factory=list)

    def read_window(self, user_id: str) -> BehaviorWindow:
        """Return the user's window as of `applied_offset`; clicks come back without their profile."""
        view = self._open_view()
        window, surplus = scan_window(
            view, user_id, max_clicks=self.max_clicks, seen=self._seen_rule, looks_behind=self._looks_behind
        )
        self._surplus += surplus
        return window

    def read_profile(self, user_id: str, names: Iterable[str]) -> dict[str, str | float]:
        """Return those of the attributes *names* that the user's profile had as of `applied_offset`."""
        return read_attributes(self._open_view(), user_id, names)

    def has_list(self, user_id: str) -> bool:
        """Return whether a list of the user was published before."""
        return has_list(self._open_view(), user_id)

    def _open_view(self) -> RdictIter:
        assert self._view is not None, "a dirty batch is read before it is settled or released"
        return self._view

    def close(self) -> list[KeyRange]:
        """Let go of the view, which would keep RocksDB open, and return the ranges of the users' surplus clicks."""
        self._view = None
        surplus, self._surplus = self._surplus, []
        return surplus


def read_offset(db: Rdict) -> int:
    """Return the greatest applied offset; -1 in a new store."""
    stored = read(db, codec.OFFSET_KEY, path=db.path())
    return -1 if stored is None else codec.decode_offset(stored)


def read_offset_of(path: Path) -> int:
    """Return the greatest applied offset of the store at *path*, which is only read.

    Raises:
        DamagedStore: RocksDB refuses it.
    """
    db = open_for_reading(path)
    try:
        return read_offset(db)
    finally:
        db.close()


def scan_derived(view: RdictIter) -> Iterator[tuple[str, DerivedRow]]:
    """Yield every user that was refreshed, with what came of it, in byte order."""
    for key, value in scan(view, DERIVED):
        yield key[1:].decode(), codec.decode_derived(value)


def has_list(view: RdictIter, user_id: str) -> bool:
    """Return whether a list of the user was ever published."""
    stored = read_value(view, DERIVED + user_id.encode())
    return stored is not None and codec.decode_derived(stored).has_list


def scan_users(view: RdictIter) -> Iterator[str]:
    """Yield every user that has a window, in byte order."""
    start = CLICKS
    while (key := next(scan_keys(view, CLICKS, start=start), None)) is not None:
        user = key[1 : key.index(0)]
        yield user.decode()
        start = codec.after_user(CLICKS, user)


def scan_window(
    view: RdictIter, user_id: str, *, max_clicks: int, seen: SeenRule | None = None, looks_behind: bool = True
) -> tuple[BehaviorWindow, list[KeyRange]]:
    """Return the user's window, and the ranges of surplus clicks: those behind it that no *seen* rule keeps.

    Surplus counts once there are `max_clicks` of it: each range deleted costs the scans that pass it. Without
    *looks_behind* none is looked for, and a full window costs no look at what lies behind it.
    """
    prefix, first, after = codec.clicks_range(user_id.encode())
    view.seek(prefix)
    key = view.key()
    if key is None or key >= first:  # as of nearly everybody: no negative click
        kept, behind, surplus = _read_newest(view, user_id, len(prefix), after, max_clicks, seen, looks_behind)
        return BehaviorWindow(tuple(reversed(kept)), behind), surplus
    negative, _, negative_surplus = _read_newest(view, user_id, len(prefix), first, max_clicks, None, looks_behind)
    view.seek(first)
    kept, behind, surplus = _read_newest(view, user_id, len(prefix), after, max_clicks, seen, looks_behind)
    return BehaviorWindow(tuple(sorted(kept + negative, key=window_order)), behind), negative_surplus + surplus


def _read_newest(
    view: RdictIter,
    user_id: str,
    prefix_size: int,
    end: bytes,
    max_clicks: int,
    seen: SeenRule | None,
    looks_behind: bool,
) -> tuple[list[ClickEvent], tuple[str, ...], list[KeyRange]]:
    """Return the clicks from where *view* stands up to the key *end*, newest first, and what lies behind them.

    That is the distinct items that *seen* still counts, and the range of the clicks that nobody needs.
    """
    orders: list[bytes] = []
    values: list[bytes] = []
    while (key := view.key()) is not None and key < end:  # most of a refresh's reading is this loop
        if len(orders) == max_clicks:
            break
        orders.append(key[prefix_size:])
        values.append(view.value())
        if len(orders) == max_clicks and seen is None and not looks_behind:
            return codec.decode_clicks(user_id, orders, values), (), []  # the next may be behind thousands of deleted
        view.next()
    kept = codec.decode_clicks(user_id, orders, values)
    behind: dict[str, None] = {}
    if seen is not None and kept:
        oldest_ms, left = kept[0].clicked_at_ms - seen.within_ms, seen.max_clicks - len(kept)
        while key is not None and key < end and left > 0:
            click = codec.decode_click(user_id, key[prefix_size:], view.value())
            if click.clicked_at_ms < oldest_ms:
                break
            behind[click.item_id] = None
            left -= 1
            view.next()
            key = view.key()
    start, surplus = key, 0
    while key is not None and key < end and surplus < max_clicks:
        surplus += 1
        view.next()
        key = view.key()
    if key is None:
        check_status(view)
    return kept, tuple(behind), [(start, end)] if surplus == max_clicks and start is not None else []


def scan_profile(view: RdictIter, user_id: str) -> dict[str, ProfileValue]:
    """Return the user's whole profile, however long it is, attributes in byte order."""
    prefix = codec.user_prefix(PROFILES, user_id.encode())
    return {key[len(prefix) :].decode(): codec.decode_profile(value) for key, value in scan(view, prefix)}


def read_attributes(view: RdictIter, user_id: str, names: Iterable[str]) -> dict[str, str | float]:
    """Return those of *names* that the user's profile has; one look for each, whatever else the profile holds."""
    prefix = codec.user_prefix(PROFILES, user_id.encode())
    found = {name: read_value(view, prefix + name.encode()) for name in names}
    return {name: codec.decode_profile(value).value for name, value in found.items() if value is not None}
