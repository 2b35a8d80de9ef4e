"""The windows of one partition of `clicks`, in one RocksDB store.

Third of the files one click passes through. Ingest writes: a micro-batch of clicks is one WriteBatch with the windows'
clicks, the profile attributes, the dirty marks of its users and the greatest applied offset, so a crash at any byte
leaves a state that some prefix of the log explains. The refresh loop reads: it takes dirty users together with a view
of the store as it is then, and settles them once their lists are acknowledged. Keys and values are laid out in `codec`.

A click is one put and no read; who waits for a list is kept by `marks`. A window is a scan of at most `max_clicks`
entries, newest first, and as many negative ones; clicks behind those can never come back into the window and are
deleted, a range at a time, once there are `max_clicks` of them. One batch in eight looks for them.

Every method may be called from any thread. One lock guards who waits; it is held while a batch is written, so that the
view of `take_dirty` always holds the clicks of the marks it takes.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
from rocksdict import Rdict, WriteBatch

from engine.events import ClickEvent
from engine.store import codec
from engine.store.codec import CLICKS, DERIVED, NO_ACTIVATION, NO_LIST, PROFILES, DerivedRow, Mark, ProfileValue
from engine.store.header import StoreHeader, check_header
from engine.store.marks import DirtyUser, StoredMarks, Waiting
from engine.store.rocksdb import close, compact, copy, open_for_writing, read, scan_keys, write
from engine.store.scans import (
    DirtyBatch,
    KeyRange,
    read_offset,
    read_offset_of,
    scan_derived,
    scan_profile,
    scan_users,
    scan_window,
)
from engine.window import BehaviorWindow, SeenRule

TRIM_EVERY = 8
"""One batch of so many looks for surplus clicks; in the others a full window costs no look behind it."""


class LoggedClick(msgspec.Struct, frozen=True, gc=False):
    """A click and its place in the log; `recorded_at_ms` is when the log accepted it, -1 where it doesn't say."""

    offset: int
    recorded_at_ms: int
    click: ClickEvent


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A user of a batch who is done with: event time of the newest click in the window, and the model's activation."""

    user_id: str
    last_activity_ms: int
    activation: int
    is_published: bool
    """False where no list was due, or none could be made; an earlier one stays out then."""
    has_window: bool = True
    """False where nothing is left of the user, who was erased: with the empty list published, all is done."""


class PartitionStore:
    """One partition's windows, profiles, dirty marks and derived rows; made by `open`."""

    def __init__(self, db: Rdict, header: StoreHeader, *, seen: SeenRule | None = None) -> None:
        self.header, self._seen_rule = header, seen
        self._db, self._path = db, db.path()
        self._lock = threading.Lock()
        self._applied_offset = read_offset(db)
        stored = read(db, codec.ERASED_KEY, path=self._path)
        self._erased = (-1, "") if stored is None else codec.decode_erased(stored)
        marks = StoredMarks(db.iter())
        self._refreshed: Counter[int] = Counter()  # users by the activation that refreshed them last
        self._lists: Counter[int] = Counter()  # of those the ones with a list
        for user_id, row in scan_derived(db.iter()):
            self._count(row, +1)
            marks.leave_out(user_id, row)
        self._waiting = Waiting(marks)
        self._behind: deque[str] = deque()
        self._behind_activation: int | None = None
        self._outstanding: set[DirtyBatch] = set()
        self._batches_taken = 0
        self._is_closed = False
        self._copying = threading.Lock()

    @classmethod
    def open(cls, path: Path, header: StoreHeader, *, seen: SeenRule | None = None) -> Self:
        """Open the store at *path*, made if there is none.

        Args:
            path: its directory.
            header: what it is for.
            seen: which clicks behind the windows stay for the items they saw; None: none.

        Raises:
            StoreFormatError: it was written for another header.
            StoreBusy: another process, or another object of this one, holds it.
            DamagedStore: RocksDB refuses it.
        """
        db = open_for_writing(path)
        try:
            check_header(db, path, header)
            return cls(db, header, seen=seen)
        except BaseException:
            db.close()
            raise

    @property
    def applied_offset(self) -> int:
        """The greatest offset of the log that is in the store; -1 before the first."""
        return self._applied_offset

    def close(self) -> None:
        """Flush and close; batches still out are dropped, and their marks stay for the next start.

        Closing again does nothing.

        Raises:
            StoreNotWritten: RocksDB can't write; what was applied is in its log.
        """
        with self._copying, self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for batch in self._outstanding:
                batch.close()
            self._outstanding.clear()
            close(self._db, path=self._path)

    def copy_to(self, folder: Path) -> int:
        """Make *folder* a copy of the store as it is now, on the same file system, and return its applied offset.

        Tables are linked, not copied; clicks are applied meanwhile. -1 of a closed store, and of one that has applied
        nothing: there is no copy then.

        Raises:
            StoreNotWritten: RocksDB can't write it.
        """
        with self._copying:
            if self._is_closed or self._applied_offset < 0:
                return -1
            copy(self._db, folder)
            return read_offset_of(folder)

    # --- ingest

    def apply(self, clicks: Sequence[LoggedClick], *, through_offset: int) -> int:
        """Write one micro-batch and return how many of its clicks were new.

        Clicks at or before `applied_offset` are redelivered ones and change nothing.

        Args:
            clicks: the good clicks, in log order.
            through_offset: offset of the last record of the micro-batch, good or bad.

        Raises:
            StoreNotWritten: RocksDB can't write; the store stays as it was.
        """
        with self._lock:
            fresh = [logged for logged in clicks if logged.offset > self._applied_offset]
            batch = WriteBatch(raw_mode=True)
            marks = self._put_clicks(batch, fresh)
            self._put_profiles(batch, [logged for logged in fresh if logged.click.profile])
            through = max(self._applied_offset, through_offset)
            if through >= 0:
                batch.put(codec.OFFSET_KEY, codec.encode_offset(through))
            self._write_and_mark(batch, marks)
            if self._waiting.backlog:
                self._waiting.bring_forward(logged.click.user_id for logged in fresh)
            self._applied_offset = through
            return len(fresh)

    def _write_and_mark(self, batch: WriteBatch, marks: Sequence[Mark]) -> None:
        """Write *batch*, and in it *marks* of users who don't wait yet."""
        self._waiting.put(batch, marks)
        write(self._db, batch, path=self._path)
        self._waiting.add(marks)

    def _put_clicks(self, batch: WriteBatch, fresh: Sequence[LoggedClick]) -> list[Mark]:
        """Put each click, and mark each user once; one whose mark still waits needs no second, as refresh reads later.

        Runs once for every click there is: one loop, and no more objects than it must make.
        """
        put, waiting, marks = batch.put, self._waiting, dict[str, Mark]()
        order_of, value_of = codec.click_order, codec.encode_click
        for logged in fresh:
            click = logged.click
            user_id = click.user_id
            put(CLICKS + user_id.encode() + b"\x00" + order_of(click), value_of(click))
            if user_id not in marks and user_id not in waiting:
                accepted_at_ms = logged.recorded_at_ms
                marks[user_id] = Mark(user_id, logged.offset, accepted_at_ms if accepted_at_ms >= 0 else None)
        return [*marks.values()]

    def _put_profiles(
        self,
        batch: WriteBatch,
        fresh: Sequence[LoggedClick],
        *,
        held_row: Callable[[bytes], ProfileValue | None] | None = None,
    ) -> None:
        held_row = held_row or self._read_profile_row
        rows: dict[bytes, ProfileValue] = {}
        for logged in fresh:
            click = logged.click
            prefix = codec.user_prefix(PROFILES, click.user_id.encode())
            for name, value in (click.profile or {}).items():
                key = prefix + name.encode()
                offered = ProfileValue(click.clicked_at_ms, click.identity, value)
                held = rows.get(key) or held_row(key)
                if held is None or offered[:2] >= held[:2]:
                    rows[key] = offered
        for key, row in rows.items():
            batch.put(key, codec.encode_profile(row))

    def _read_profile_row(self, key: bytes) -> ProfileValue | None:
        stored = read(self._db, key, path=self._path)
        return None if stored is None else codec.decode_profile(stored)

    # --- erasures

    @property
    def erasures_done(self) -> int:
        """Place on the topic `erasures` up to which they are carried out here; -1 before any."""
        return self._erased[0]

    def erased_through(self, topic_id: str) -> int:
        """Return `erasures_done` for the topic of that id: of a topic made anew none is."""
        place, of_topic = self._erased
        return place if of_topic == topic_id else -1

    def holds(self, user_id: str) -> bool:
        """Return whether the store has a click of the user."""
        prefix = _clicks_of(user_id)
        return next(scan_keys(self._db.iter(), prefix, start=prefix), None) is not None

    def erase(
        self, until: Mapping[str, int], newer: Sequence[LoggedClick], *, topic_id: str = "", place: int = 0
    ) -> None:
        """Forget users in one write: clicks, profile and what came of the last refresh.

        Each is marked dirty and counts as one with a list, so that an empty list takes the place of what is out. No
        batch taken from the store may be out meanwhile.

        Args:
            until: by user id, the last offset of the log that is erased.
            newer: all clicks of these users that the store has applied and that are not erased, in log order.
            topic_id: id of the topic `erasures`.
            place: of the last of these erasures on it.

        Raises:
            StoreNotWritten: RocksDB can't write; the store stays as it was.
        """
        with self._lock:
            assert not self._outstanding, "a refresh is under way"
            batch, at = WriteBatch(raw_mode=True), max(self._applied_offset, 0)
            row, held = DerivedRow(0, NO_ACTIVATION, at), list[DerivedRow | None]()
            for user_id in until:
                user = user_id.encode()
                for kind in (CLICKS, PROFILES):
                    batch.delete_range(codec.user_prefix(kind, user), codec.after_user(kind, user))
                held.append(self._read_derived(user_id))
                batch.put(DERIVED + user, codec.encode_derived(row))
            for logged in newer:
                click = logged.click
                batch.put(_clicks_of(click.user_id) + codec.click_order(click), codec.encode_click(click))
            self._put_profiles(batch, [one for one in newer if one.click.profile], held_row=lambda _key: None)
            batch.put(codec.ERASED_KEY, codec.encode_erased(place, topic_id))
            self._write_and_mark(batch, self._waiting.marks_for(until))
            for before in held:
                self._count(before, -1)
                self._count(row, +1)
            self._erased = place, topic_id

    def compact(self, user_ids: Sequence[str]) -> None:
        """Have what was deleted of these users leave the disk; a store that is closed is left alone.

        Raises:
            StoreNotWritten: RocksDB can't write.
        """
        with self._copying:
            if not self._is_closed:
                users = [user_id.encode() for user_id in user_ids]
                kinds = (CLICKS, PROFILES)
                ranges = [(codec.user_prefix(k, user), codec.after_user(k, user)) for user in users for k in kinds]
                compact(self._db, ranges, path=self._path)

    # --- refresh

    def count_dirty(self) -> int:
        """Return how many users wait for a refresh, those in batches not yet settled left out."""
        return len(self._waiting)

    def count_lists(self, activation: int) -> tuple[int, int]:
        """Return how many users with a list *activation* refreshed last, and how many have a list at all."""
        with self._lock:
            return self._lists[activation], self._lists.total()

    def count_behind(self, activation: int) -> int:
        """Return how many users another activation refreshed last, those without a list among them."""
        with self._lock:
            return self._refreshed.total() - self._refreshed[activation]

    def set_back(self) -> None:
        """Count all who wait for a list now as backlog: those who click from now on go before them."""
        with self._lock:
            self._waiting.set_back()

    def take_dirty(self, limit: int) -> DirtyBatch:
        """Take at most *limit* dirty users, the oldest waiting click first, but live ones before the backlog."""
        with self._lock:
            return self._new_batch(self._waiting.take(limit))

    def take_behind(self, activation: int, limit: int) -> DirtyBatch:
        """Take at most *limit* users whom another activation refreshed last, the most recently active first.

        The first call with a new activation scans all derived rows, some 4 microseconds each, while clicks are applied;
        the following ones take from that queue.
        """
        if activation != self._behind_activation:
            self._start_sweep(activation)
        with self._lock:
            users: dict[str, DirtyUser] = {}
            while self._behind and len(users) < limit:
                user_id = self._behind.popleft()
                row = self._read_derived(user_id)
                if row is not None and row.activation != activation:
                    users[user_id] = DirtyUser(user_id, None)
            return self._new_batch(list(users.values()))

    def settle(self, batch: DirtyBatch, refreshed: Sequence[Refreshed]) -> None:
        """Note that the lists of *batch* are acknowledged: delete its marks, write derived rows, drop surplus clicks.

        A user clicked meanwhile has a mark of its own, which stays.

        Raises:
            StoreNotWritten: RocksDB can't write; the batch is as good as never taken once it is released.
        """
        with self._lock:
            surplus = self._give_up(batch)
            changes = WriteBatch(raw_mode=True)
            left = self._waiting.delete(changes, batch.users)
            for start, end in surplus:
                changes.delete_range(start, end)
            rows = [self._derive(done, batch.applied_offset) for done in refreshed]
            for done, (_, row) in zip(refreshed, rows, strict=True):
                if row is None:
                    changes.delete(DERIVED + done.user_id.encode())
                else:
                    changes.put(DERIVED + done.user_id.encode(), codec.encode_derived(row))
            write(self._db, changes, path=self._path)
            self._waiting.settle(left)
            for held, row in rows:
                self._count(held, -1)
                self._count(row, +1)
            # A list made by the version before the swap, settled after the sweep's scan, would else be missed.
            if self._behind_activation is not None:
                self._behind.extend(r.user_id for r in refreshed if r.activation < self._behind_activation)

    def _derive(self, done: Refreshed, applied_offset: int) -> tuple[DerivedRow | None, DerivedRow | None]:
        """Return the user's derived row and the one that takes its place; a list that was published stays out."""
        held = self._read_derived(done.user_id)
        if done.is_published and not done.has_window:
            return held, None
        listed_at = NO_LIST if held is None else held.window_offset
        window_offset = applied_offset if done.is_published else listed_at
        return held, DerivedRow(done.last_activity_ms, done.activation, window_offset)

    def _count(self, row: DerivedRow | None, change: int) -> None:
        if row is not None:
            self._refreshed[row.activation] += change
            self._lists[row.activation] += change if row.has_list else 0

    def listed(self, user_id: str) -> tuple[int, int] | None:
        """Return window offset and activation of the newest list that is out of the user; None where none is."""
        with self._copying:
            row = None if self._is_closed else self._read_derived(user_id)
        return None if row is None or not row.has_list else (row.window_offset, row.activation)

    def mark_again(self, user_ids: Sequence[str]) -> None:
        """Have users refreshed who were, those not waiting already: what is out of them is not their newest list.

        Raises:
            StoreNotWritten: RocksDB can't write; nobody is marked.
        """
        with self._copying, self._lock:
            if self._is_closed:
                return
            self._write_and_mark(WriteBatch(raw_mode=True), self._waiting.marks_for(user_ids))

    def release(self, batch: DirtyBatch) -> None:
        """Offer the users of *batch* again, before all others: their lists were not published."""
        with self._lock:
            self._give_up(batch)
            self._waiting.give_back([user for user in batch.users if user.marks])
            self._behind.extendleft(user.user_id for user in reversed(batch.users) if not user.marks)

    def _new_batch(self, users: Sequence[DirtyUser]) -> DirtyBatch:
        view = self._db.iter() if users else None
        looks_behind = self._batches_taken % TRIM_EVERY == 0
        self._batches_taken += 1
        batch = DirtyBatch(
            users, self._applied_offset, self.header.max_clicks, view, self._seen_rule, _looks_behind=looks_behind
        )
        self._outstanding.add(batch)
        return batch

    def _give_up(self, batch: DirtyBatch) -> list[KeyRange]:
        self._outstanding.discard(batch)
        return batch.close()

    def _start_sweep(self, activation: int) -> None:
        with self._lock:
            view = self._db.iter()
            # From here on `settle` queues what this view doesn't show.
            self._behind.clear()
            self._behind_activation = activation
        try:
            rows = [(row.last_activity_ms, user) for user, row in scan_derived(view) if row.activation != activation]
        except BaseException:
            self._behind_activation = None
            raise
        rows.sort(key=lambda row: row[0], reverse=True)
        with self._lock:
            self._behind.extendleft(user for _, user in reversed(rows))

    def _read_derived(self, user_id: str) -> DerivedRow | None:
        stored = read(self._db, DERIVED + user_id.encode(), path=self._path)
        return None if stored is None else codec.decode_derived(stored)

    # --- reading outside a batch

    def users(self) -> Iterator[str]:
        """Yield every user that has a window, in byte order."""
        return scan_users(self._db.iter())

    def read_window(self, user_id: str) -> BehaviorWindow:
        """Return the user's window as it is now; empty for a user never seen."""
        return scan_window(self._db.iter(), user_id, max_clicks=self.header.max_clicks, seen=self._seen_rule)[0]

    def read_profile(self, user_id: str) -> dict[str, str | float]:
        """Return the user's whole profile as it is now."""
        return {name: held.value for name, held in scan_profile(self._db.iter(), user_id).items()}


def _clicks_of(user_id: str) -> bytes:
    return codec.user_prefix(CLICKS, user_id.encode())
