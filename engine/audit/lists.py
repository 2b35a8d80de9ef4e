"""The auditor's reading of `recall-lists`, and what it holds against the log and the dump.

Compaction keeps the last record of a user, and a reader keeps the greatest it has met; an honest log makes the two one.
Each list names the offset up to which it reflects the log, so the window it must show can be computed from the log.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from engine.audit.messages import Click, Entry, Order, newest, partition_of
from engine.audit.report import LIST_CLASSES

Place = tuple[int, int]
"""`(window_offset, activation)`: the greater of two lists of a user counts."""
Shown = tuple[object, object, object]
"""Item, time and event type of one click of a list's window."""
History = Sequence[tuple[int, Click]]
"""A user's good clicks in log order, each with its offset, without the erased ones."""
Differ = Callable[[str, str, str], None]
"""Notes a difference: kind, user id, detail."""


class Published(NamedTuple):
    """What the auditor understood of one list."""

    user_id: str
    partition: int
    offset: int
    epoch: str
    place: Place
    model_version: object
    window: tuple[Shown, ...]


class Unreadable(Exception):
    """The record is no list that a reader could use."""


class Mixed(Exception):
    """Two parts of one list come from two versions, or from two lists."""


def epoch_of(log: Mapping[str, Any]) -> str:
    """Return the name of the epoch that a dump's line describes: 16 hex digits, as docs/events.md says."""
    text = f"{log['cluster_id']}/{log['topic_id']}/{log['partitions']}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_list(entry: Entry) -> Published:
    """Return the list that a record with a key and a value holds.

    Raises:
        Unreadable: it has no usable order, or its value is no list.
        Mixed: its parts contradict each other.
    """
    headers = dict(entry.headers)
    try:
        user_id = (entry.key or b"").decode()
        epoch, place = headers["epoch"].decode(), (int(headers["window_offset"]), int(headers["activation"]))
        body = json.loads(entry.value or b"")
        window = tuple((each["item_id"], each["clicked_at_ms"], each["event_type"]) for each in body.get("window", ()))
        hash(window)  # raises on a value that no click has
        _refuse_mixed(body, (epoch, *place), window)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    if body.get("user_id", user_id) != user_id:
        raise Unreadable("the key is not the user of the value")
    return Published(user_id, entry.partition, entry.offset, epoch, place, body.get("model_version"), window)


def _refuse_mixed(body: Mapping[str, Any], order: tuple[object, ...], window: Sequence[Shown]) -> None:
    for name, value in zip(("epoch", "window_offset", "activation"), order, strict=True):
        if body.get(name, value) != value:
            raise Mixed(f"{name} is {value} in the header and {body[name]} in the value")
    interests = body.get("interests", ())
    numbers = {each["interest"] for each in interests}
    for item in body.get("items", ()):
        if item["interest"] is not None and item["interest"] not in numbers:
            raise Mixed(f"an item was found by interest {item['interest']}, which the list does not have")
    clicked = {item_id for item_id, _, _ in window}
    for each in interests:
        if not all(click["item_id"] in clicked for click in each["clicks"]):
            raise Mixed(f"interest {each['interest']} was formed by clicks that are not in the list's window")


class ListBook:
    """The lists of a topic: of each user the last and the greatest, and which version each activation stands for."""

    def __init__(self, entries: Iterable[Entry], differ: Differ, *, partitions: int) -> None:
        self.counts = Counter(dict.fromkeys(LIST_CLASSES, 0))
        self._differ, self._partitions = differ, partitions
        self._last: dict[str, Published] = {}
        self._greatest: dict[str, Published] = {}
        self._versions: dict[tuple[str, int], object] = {}
        for entry in entries:
            self._enter(entry)

    @property
    def users(self) -> set[str]:
        """The users with a list."""
        return set(self._last)

    def _enter(self, entry: Entry) -> None:
        user_id = (entry.key or b"").decode("utf-8", "replace")
        if entry.value is None:
            self._last.pop(user_id, None)
            self._greatest.pop(user_id, None)
            return
        try:
            published = read_list(entry)
        except (Unreadable, Mixed) as problem:
            kind = "list_version" if isinstance(problem, Mixed) else "list_unreadable"
            self._differ(kind, user_id, f"list at {entry.partition}:{entry.offset}: {problem}")
            return
        if entry.partition != partition_of(entry.key or b"", self._partitions):
            self._differ("list_partition", user_id, f"a list lies in partition {entry.partition}, not its key's")
        self._check_version(published)
        self._last[user_id] = published
        greatest = self._greatest.get(user_id)
        if greatest is None or greatest.epoch != published.epoch or published.place >= greatest.place:
            self._greatest[user_id] = published

    def _check_version(self, published: Published) -> None:
        activation = published.place[1]
        version = self._versions.setdefault((published.epoch, activation), published.model_version)
        if version != published.model_version:
            detail = f"activation {activation} stands for version {version}, and here for {published.model_version}"
            self._differ("list_version", published.user_id, detail)

    def compare(
        self,
        user_id: str,
        history: History,
        erased: frozenset[Shown],
        *,
        epoch: str | None,
        since: int,
        end: int,
        max_clicks: int,
    ) -> None:
        """Compare the user's lists with the log.

        Args:
            user_id: whose.
            history: all the user's clicks that count, also those after the dump.
            erased: the clicks that must not come back.
            epoch: of the log; None where no dump names it.
            since: the offset behind which the history is known; -1 for all of it.
            end: offset after the last of the user's partition.
            max_clicks: size of a window.
        """
        last, greatest = self._last[user_id], self._greatest[user_id]
        if last.epoch != epoch:
            self.counts["foreign"] += 1  # of an earlier life of the topic, or of one that the dump does not name
            return
        if last.place < greatest.place:
            self._compare_order(last, greatest, history)
        for published in [last] if last is greatest else [last, greatest]:
            if not erased.isdisjoint(published.window):
                self._differ("erased_back", user_id, f"the list at {_told(published.place)} shows erased clicks")
            elif published.place[0] >= end:
                self._differ("list_window", user_id, f"the list is of {_told(published.place)}, the log ends at {end}")
            elif published.place[0] < since:
                self.counts["before"] += 1
            elif published.window != window_at(history, published.place[0], max_clicks):
                detail = f"the list of {_told(published.place)} does not show the window of that offset"
                self._differ("list_window", user_id, detail)
            else:
                self.counts["checked"] += 1

    def _compare_order(self, last: Published, greatest: Published, history: History) -> None:
        """Name the older list that compaction would keep, unless it says all that the newer one says."""
        (since, activation), (through, newest) = last.place, greatest.place
        if activation < newest or any(since < offset <= through for offset, _ in history):
            detail = f"the last list is of {_told(last.place)}, an earlier one of {_told(greatest.place)}"
            self._differ("list_older", last.user_id, detail)
        else:
            self.counts["older_alike"] += 1

    def expect(self, user_id: str, line: Mapping[str, Any], epoch: str | None, last_click: int, newest_ms: int) -> None:
        """Check that the user's clicks are in a list, or wait for one, or can have none.

        Args:
            user_id: whose.
            line: the user's line of the dump.
            epoch: of the log; None where the dump does not name it.
            last_click: offset of the user's last click that the dump's store has applied.
            newest_ms: event time of the newest click of the window.
        """
        refreshed = line.get("refreshed")
        if "waiting" not in line or epoch is None:
            self.counts["untold"] += 1
        elif line["waiting"]:
            self.counts["waiting"] += 1
        elif refreshed is None:
            self._differ("list_missing", user_id, "there are clicks, no mark, and no refresh ever")
        elif refreshed["as_of_ms"] is None:
            self.counts["given_up"] += 1
        elif refreshed["window_offset"] is not None:
            self._expect_list(user_id, epoch, (refreshed["window_offset"], refreshed["activation"]), last_click)
        elif refreshed["as_of_ms"] < newest_ms:
            detail = f"refreshed as of {refreshed['as_of_ms']} ms, clicked at {newest_ms} ms, and no mark"
            self._differ("list_missing", user_id, detail)
        else:
            self.counts["not_due"] += 1

    def _expect_list(self, user_id: str, epoch: str, said: Place, last_click: int) -> None:
        published = self._greatest.get(user_id)
        place = (-1, -1) if published is None or published.epoch != epoch else published.place
        if place < said:
            detail = f"the store says that a list of {_told(said)} is out, the topic's greatest is of {_told(place)}"
            self._differ("list_missing", user_id, detail)
        elif place[0] < last_click:
            detail = f"clicked at offset {last_click}, no mark, and the greatest list is of {_told(place)}"
            self._differ("list_missing", user_id, detail)


def window_at(history: History, offset: int, max_clicks: int) -> tuple[Shown, ...]:
    """Return the window of a user at *offset*, oldest first, as a list shows it."""
    clicks: dict[Order, Click] = {click.order: click for at, click in history if at <= offset}
    return tuple(shown(clicks[order]) for order in newest(clicks, max_clicks))


def shown(click: Click) -> Shown:
    """Return of *click* what a list shows."""
    return click.item_id, click.clicked_at_ms, click.event_type


def _told(place: Place) -> str:
    return "nothing" if place == (-1, -1) else f"offset {place[0]} and activation {place[1]}"
