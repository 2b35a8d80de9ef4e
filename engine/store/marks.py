"""Dirty marks: which users wait for a list, in memory and on disk.

A user is marked in the same write as the click that makes the list stale. The marks of one write are one value, under a
running number, and it goes with the last of its users; that the others were settled shows in their derived rows
(docs/decisions/0011). `StoredMarks` reads what a store was closed or killed with, `Waiting` is the present.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from functools import reduce

import msgspec
from rocksdict import RdictIter, WriteBatch

from engine.store import codec
from engine.store.codec import MARKS, NO_ACTIVATION, NO_CLICK, OLD_MARKS, DerivedRow, Mark
from engine.store.rocksdb import scan

BACKLOG_SHARE = 0.25
"""Of those taken for a refresh, the part that the backlog gets while live users could take all."""


class DirtyUser(msgspec.Struct, frozen=True, gc=False):
    """A user whose list is due: `accepted_at_ms` is when the log accepted the oldest click that no list reflects yet.

    None: no click waits (the list is only behind the model), or its record carried no timestamp.
    """

    user_id: str
    accepted_at_ms: int | None
    marks: tuple[int, ...] = ()
    """Numbers of the marks on disk that the user is among."""


class StoredMarks:
    """The marks on disk, and which of them still count."""

    def __init__(self, view: RdictIter) -> None:
        """Read the marks that *view* shows."""
        self.counts: Counter[int] = Counter()
        """How many marks of each number count."""
        self._of_user: dict[str, list[tuple[int, Mark]]] = {}
        for key, value in scan(view, MARKS):
            number = codec.decode_marks_key(key)
            for mark in codec.decode_marks(value):
                self.counts[number] += 1
                self._of_user.setdefault(mark.user_id, []).append((number, mark))

    def leave_out(self, user_id: str, row: DerivedRow) -> None:
        """Count no marks of clicks that a list of the user reflects, as *row* says: they were settled."""
        marks = self._of_user.get(user_id)
        if marks is None or row.activation == NO_ACTIVATION:  # an erased user's list is still to be emptied
            return
        self.counts.subtract(number for number, mark in marks if mark.offset <= row.window_offset)
        self._of_user[user_id] = [(number, mark) for number, mark in marks if mark.offset > row.window_offset]

    def users(self) -> list[DirtyUser]:
        """Return who waits, one entry a user, the oldest mark first."""
        users = [
            [DirtyUser(user_id, mark.accepted_at_ms, (number,)) for number, mark in marks]
            for user_id, marks in self._of_user.items()
            if marks
        ]
        users.sort(key=lambda marks: marks[0].marks)
        return [reduce(_joined, marks) for marks in users]


def read_old_marks(view: RdictIter) -> list[Mark]:
    """Return the marks of a store in format 2, the oldest first."""
    return [codec.decode_old_mark(key, value) for key, value in scan(view, OLD_MARKS)]


class Waiting:
    """Who waits for a list, those taken for a refresh left out; not to be used by two threads at once.

    Two queues, each with the oldest mark first: the backlog, those who waited when they were last `set_back`, and the
    live ones, who clicked since.
    """

    def __init__(self, stored: StoredMarks) -> None:
        self._live = OrderedDict((user.user_id, user) for user in stored.users())
        self._backlog = OrderedDict[str, DirtyUser]()
        self._owed = 0.0  # to the backlog, of what was taken
        self._counts = stored.counts  # by number, how many marks on disk are not settled
        self._next = max(self._counts, default=-1) + 1

    def __len__(self) -> int:
        return len(self._live) + len(self._backlog)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._live or user_id in self._backlog

    @property
    def backlog(self) -> int:
        """How many of those who wait are of the backlog."""
        return len(self._backlog)

    def set_back(self) -> None:
        """Count all who wait now as backlog."""
        if self._backlog:
            self._backlog.update(self._live)
            self._live.clear()
        else:  # there may be a million of them
            self._backlog, self._live = self._live, self._backlog

    def bring_forward(self, user_ids: Iterable[str]) -> None:
        """Count those of the users who are of the backlog as live: they clicked again."""
        for user_id in user_ids:
            if (user := self._backlog.pop(user_id, None)) is not None:
                self._live[user_id] = user

    def marks_for(self, user_ids: Iterable[str]) -> list[Mark]:
        """Return marks for those of the users who don't wait, whatever they clicked."""
        return [Mark(user_id, NO_CLICK, None) for user_id in dict.fromkeys(user_ids) if user_id not in self]

    def put(self, batch: WriteBatch, marks: Sequence[Mark]) -> None:
        """Have *batch* write *marks* of users who don't wait; `add` them once it is written."""
        if marks:
            batch.put(codec.marks_key(self._next), codec.encode_marks(marks))

    def add(self, marks: Sequence[Mark]) -> None:
        """Let the users of *marks*, which are on disk now, wait behind all live ones."""
        if not marks:
            return
        numbers = (self._next,)
        self._counts[self._next] = len(marks)
        self._next += 1
        for mark in marks:
            user_id = mark.user_id
            self._live[user_id] = DirtyUser(user_id, mark.accepted_at_ms, numbers)

    def take(self, limit: int) -> list[DirtyUser]:
        """Take at most *limit* users, who wait no more: live ones first, but of the backlog its share at least."""
        owed = min(self._owed + limit * BACKLOG_SHARE, float(limit))
        of_backlog = min(len(self._backlog), max(int(owed), limit - len(self._live)))
        self._owed = max(0.0, owed - of_backlog) if len(self._backlog) > of_backlog else 0.0
        of_live = min(len(self._live), limit - of_backlog)
        parts = ((self._live, of_live), (self._backlog, of_backlog))
        return [queue.popitem(last=False)[1] for queue, count in parts for _ in range(count)]

    def give_back(self, users: Sequence[DirtyUser]) -> None:
        """Let *users* wait again, before all others."""
        for user in reversed(users):
            newer = self._live.get(user.user_id) or self._backlog.pop(user.user_id, None)
            self._live[user.user_id] = user if newer is None else _joined(user, newer)
            self._live.move_to_end(user.user_id, last=False)

    def delete(self, batch: WriteBatch, users: Sequence[DirtyUser]) -> Counter[int]:
        """Have *batch* delete what no mark is left of without those of *users*; give the answer to `settle` then."""
        left = self._counts.copy()
        left.subtract(number for user in users for number in user.marks)
        for number in [number for number, marks in left.items() if not marks]:
            batch.delete(codec.marks_key(number))
        return left

    def settle(self, left: Counter[int]) -> None:
        """Note that the marks are *left* which `delete` returned: its batch is written."""
        self._counts = +left


def _joined(older: DirtyUser, newer: DirtyUser) -> DirtyUser:
    """Return one entry for the marks of both; the older one's time counts."""
    accepted_at_ms = older.accepted_at_ms if older.accepted_at_ms is not None else newer.accepted_at_ms
    return DirtyUser(older.user_id, accepted_at_ms, older.marks + newer.marks)
