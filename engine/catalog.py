"""The catalog: what the topic `items` says of each item; the last record of an item wins.

Every engine and query service follows the topic whole, from its beginning, and keeps it in memory: titles and
categories for answers, availability for lists. A bad record is counted and logged and changes nothing. An item that the
catalog doesn't know is available: clicks may come before their item.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from itertools import islice

import structlog

from engine import metrics
from engine.errors import MalformedEvent
from engine.events import ItemEvent, decode_item
from engine.log import Follower, Record
from engine.settings import Settings

TOPIC = "items"

REMEMBERED_CHANGES = 100_000
"""Who asks for changes that lie further back is given the whole catalog."""

log = structlog.get_logger()


class Catalog:
    """Follows `items` and answers what is known of an item.

    Records come in on the event loop's thread; it may be read from any.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._follower = Follower(settings, TOPIC, self.apply)
        self._items: dict[str, ItemEvent] = {}
        self._removed: set[str] = set()
        self._unavailable: set[str] = set()
        self._in_category: dict[str, set[str]] = {}
        self._changed: deque[str] = deque(maxlen=REMEMBERED_CHANGES)
        self._changes = 0
        self._lock = threading.Lock()

    async def start(self) -> None:
        """Start to follow the topic from its beginning."""
        await self._follower.start()

    async def stop(self) -> None:
        """Stop to follow; what is known stays readable."""
        await self._follower.stop()

    async def wait(self) -> None:
        """Wait for the follower to end and raise what ended it."""
        await self._follower.wait()

    @property
    def caught_up(self) -> asyncio.Event:
        """Set once everything is in that the topic held at the start."""
        return self._follower.caught_up

    def __len__(self) -> int:
        return len(self._items)

    def get(self, item_id: str) -> ItemEvent | None:
        """Return the item's last record; None for an item never seen, or removed."""
        return self._items.get(item_id)

    def category(self, item_id: str) -> str | None:
        """Return the item's category; None where it has none or the item is unknown."""
        item = self._items.get(item_id)
        return None if item is None else item.category

    def title(self, item_id: str) -> str | None:
        """Return the item's title; None where it has none or the item is unknown."""
        item = self._items.get(item_id)
        return None if item is None else item.title

    def is_available(self, item_id: str) -> bool:
        """Return False for an item that is removed or not available."""
        return item_id not in self._unavailable

    def is_removed(self, item_id: str) -> bool:
        """Return True for an item whose last record removed it."""
        return item_id in self._removed

    def removed_among(self, item_ids: Iterable[str]) -> set[str]:
        """Return those of *item_ids* whose last record removed them."""
        return self._removed.intersection(item_ids)

    def unavailable_ids(self) -> frozenset[str]:
        """Return the items that are removed or not available, as they are now; any thread may call this."""
        return frozenset(self._unavailable)  # one step of the interpreter, so no change comes between

    def items_in(self, category: str) -> frozenset[str]:
        """Return the items of *category*, as they are now; any thread may call this."""
        return frozenset(self._in_category.get(category, ()))  # one step of the interpreter, as above

    def changes_since(self, mark: int | None) -> tuple[Collection[str], int]:
        """Return the items that changed behind *mark*, and the mark to ask with the next time.

        None, or a mark too far back, gives every item that anything is known of.
        """
        with self._lock:
            behind = self._changes if mark is None else self._changes - mark
            if mark is not None and behind <= len(self._changed):
                changed = set(islice(reversed(self._changed), behind))
            else:
                changed = self._items.keys() | self._removed | self._unavailable
            return changed, self._changes

    async def apply(self, records: Sequence[Record]) -> None:
        """Take in records of `items`, in log order; a bad one changes nothing."""
        for record in records:
            if record.value is None:
                with self._lock:
                    self._forget((record.key or b"").decode(errors="replace"))
                continue
            try:
                item = decode_item(record.value, key=record.key, max_message_bytes=self._settings.max_message_bytes)
            except MalformedEvent as error:
                self._reject(record, error)
                continue
            with self._lock:
                self._put(item)
        metrics.CATALOG_ITEMS.set(len(self._items))

    def _put(self, item: ItemEvent) -> None:
        self._leave_category(item.item_id)
        if item.removed:
            self._items.pop(item.item_id, None)
            self._removed.add(item.item_id)
        else:
            self._items[item.item_id] = item
            if item.category is not None:
                self._in_category.setdefault(item.category, set()).add(item.item_id)
            self._removed.discard(item.item_id)
        self._set_available(item.item_id, item.available and not item.removed)
        self._note_change(item.item_id)

    def _forget(self, item_id: str) -> None:
        """Know nothing of the item, as who starts after compaction; a removal is a record of its own, and stays."""
        self._leave_category(item_id)
        self._items.pop(item_id, None)
        self._removed.discard(item_id)
        self._set_available(item_id, True)
        self._note_change(item_id)

    def _leave_category(self, item_id: str) -> None:
        category = self.category(item_id)
        if category is not None:
            members = self._in_category[category]
            members.discard(item_id)
            if not members:
                del self._in_category[category]

    def _set_available(self, item_id: str, available: bool) -> None:
        if available:
            self._unavailable.discard(item_id)
        else:
            self._unavailable.add(item_id)

    def _note_change(self, item_id: str) -> None:
        self._changed.append(item_id)
        self._changes += 1

    def _reject(self, record: Record, error: MalformedEvent) -> None:
        metrics.ITEMS_REJECTED.labels(error.reason).inc()
        log.warning(
            "item_rejected",
            reason=error.reason,
            detail=error.detail,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )
