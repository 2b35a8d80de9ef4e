"""One micro-batch: windows to interests, interests to lists, under one snapshot.

`engine/refresh.py` takes the users, has a `ListMaker` make their lists, and publishes them. Everything here runs in the
refresh thread. A list depends on the user's window and profile, the snapshot and the catalog; who else is in the batch
changes nothing but the last bits of a score.

A window that no list can be made of, because the model raises on it or the list is too large for the log, costs its own
user a list and nobody else: where a batch fails and a sound window passes, the users are taken one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import structlog
from msgspec import UNSET

from engine import metrics
from engine.catalog import Catalog
from engine.errors import ListTooLarge, StoreError, UnusableInterests
from engine.events import ClickEvent
from engine.log import Message
from engine.log.publisher import MAX_MESSAGE_BYTES
from engine.logs import user_tag
from engine.model import InterestModel, Interests, UserInput
from engine.recall import (
    InterestSummary,
    RankedItem,
    RecallList,
    describe_window,
    encode_list,
    summarize_interests,
)
from engine.recaller import Recaller, Wishes
from engine.served_items import ServedItems
from engine.settings import Settings
from engine.snapshot import ServingSnapshot
from engine.store.marks import DirtyUser
from engine.store.scans import DirtyBatch
from engine.store.windows import PartitionStore, Refreshed
from engine.window import BehaviorWindow

TOPIC = "recall-lists"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Taken:
    """Users of one partition in the micro-batch."""

    partition: int
    store: PartitionStore
    batch: DirtyBatch


@dataclass(frozen=True, slots=True)
class Made:
    """What came of one partition's users: their lists, and for every one of them what is to be noted in the store."""

    taken: Taken
    lists: Sequence[MadeList]
    refreshed: Sequence[Refreshed]
    unknown_clicks: int
    """Clicks on items that the version doesn't know, or that the catalog has removed."""

    def to_messages(self, topic: str) -> list[Message]:
        """Return the lists as records of *topic*, in the partition that the users' clicks are in."""
        return [_to_message(topic, self.taken.partition, made) for made in self.lists]


@dataclass(frozen=True, slots=True)
class MadeList:
    """A list, its JSON, and the wall time at which the interests that it was searched with were there."""

    recall_list: RecallList
    encoded: bytes
    routed_at_ms: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one user; no list where none is due, or where none can be made."""

    refreshed: Refreshed
    made: MadeList | None = None
    unknown_clicks: int = 0


@dataclass(frozen=True, slots=True)
class Behavior:
    """One user of the micro-batch with everything that the list is made of."""

    user_id: str
    accepted_at_ms: int | None
    window_offset: int
    window: BehaviorWindow
    standing: Sequence[ClickEvent]
    """The window without its clicks on removed items: what interests are made of, and what their positions count."""
    item_ids: Sequence[str]
    """Of the standing clicks."""
    profile: Mapping[str, str | float]
    has_list: bool

    def to_input(self) -> UserInput:
        """Return the behavior in the model's words."""
        return UserInput(
            item_ids=self.item_ids,
            weights=[click.weight for click in self.standing],
            profile=self.profile,
            event_types=[click.event_type for click in self.standing],
        )


class ListMaker:
    """Makes lists under one snapshot, of its items and those that the catalog has added since."""

    KEEPS_POOLS = True
    """Whether the same users come again and again."""

    def __init__(
        self, settings: Settings, snapshot: ServingSnapshot, catalog: Catalog, *, epoch: str, now_ms: Callable[[], int]
    ) -> None:
        assert snapshot.model is not None
        self.snapshot = snapshot.without_index()
        self._settings, self._catalog, self._epoch, self._now_ms = settings, catalog, epoch, now_ms
        self._model: InterestModel = snapshot.model
        self._served = ServedItems(settings, snapshot, catalog)
        self._served.catch_up()
        self._index, self._items = self._served.index, self._served.rows
        self._known_items = self._model.vocabulary.item_rows.keys()
        self._attributes = [field.name for field in self._model.vocabulary.profile_fields]
        self._recaller = Recaller(
            settings, self._served, interests=self._model.config.interests, keeps_pools=self.KEEPS_POOLS
        )

    def adopt(self, snapshot: ServingSnapshot) -> bool:
        """Make the lists of *snapshot* from now on and return True; False where it is another version.

        The same version announced again has the same parts, and everything that was prepared of them stays.
        """
        if self.snapshot.model is not snapshot.model:
            return False
        self.snapshot = snapshot.without_index()
        return True

    def make(self, taken: Sequence[Taken]) -> list[Made]:
        """Return the lists of all users taken, partition by partition.

        A user without a click on a known item that was not removed gets none, or an empty one in place of the list that
        is out: a query then answers with popular items, and not for ever with what another window or version made.

        A user of whom no list can be made gets none either: logged and counted, and done with like the others, so that
        nobody waits for a window that fails again and again. The next click and the next version try it again.

        Raises:
            StoreError: a window can't be read.
            Exception: whatever the model or the index raises on a sound window too: the fault is theirs.
        """
        users = [(part.batch, user) for part in taken for user in part.batch.users]
        try:
            outcomes = iter(self._make_together(users))
        except StoreError:
            raise
        except Exception:
            self._try_a_sound_window()
            outcomes = iter([self._make_alone(batch, user) for batch, user in users])
        return [_gather(part, list(islice(outcomes, len(part.batch.users)))) for part in taken]

    def _make_alone(self, batch: DirtyBatch, user: DirtyUser) -> Outcome:
        try:
            return self._make_together([(batch, user)])[0]
        except StoreError:
            raise
        except Exception as error:
            metrics.LISTS_FAILED.inc()
            log.error(
                "list_failed",
                user=user_tag(self._settings, user.user_id),
                version=self.snapshot.model_version,
                error=type(error).__name__,
                problem=str(error),
            )
            return Outcome(Refreshed(user.user_id, 0, self.snapshot.activation, is_published=False))

    def _try_a_sound_window(self) -> None:
        """Do what every user's list takes with a window that passed when the version was loaded; raise as it does."""
        vectors = self._route([UserInput(self._items.item_ids[:1].tolist())]).vectors
        self._index.search(vectors[0], 1)

    def _make_together(self, users: Sequence[tuple[DirtyBatch, DirtyUser]]) -> list[Outcome]:
        with metrics.STAGE.labels("route").time():
            behaviors = [self._read(batch, user) for batch, user in users]
            interests = self._route([behavior.to_input() for behavior in behaviors])
        routed_at_ms = self._now_ms()
        with metrics.STAGE.labels("search").time():
            lists = self._make_lists(behaviors, interests)
            return [
                self._conclude(behavior, None if recall_list is None else _encode(recall_list, routed_at_ms))
                for behavior, recall_list in zip(behaviors, lists, strict=True)
            ]

    def _read(self, batch: DirtyBatch, user: DirtyUser) -> Behavior:
        window = batch.read_window(user.user_id)
        standing = self._standing(window.clicks)
        return Behavior(
            user_id=user.user_id,
            accepted_at_ms=user.accepted_at_ms,
            window_offset=batch.applied_offset,
            window=window,
            standing=standing,
            item_ids=[click.item_id for click in standing],
            profile=batch.read_profile(user.user_id, self._attributes),
            has_list=batch.has_list(user.user_id),
        )

    def _standing(self, clicks: Sequence[ClickEvent]) -> Sequence[ClickEvent]:
        """Return those of *clicks* whose items were not removed."""
        removed = self._catalog.removed_among([click.item_id for click in clicks])
        return [click for click in clicks if click.item_id not in removed] if removed else clicks

    def _conclude(self, behavior: Behavior, made: MadeList | None) -> Outcome:
        last_activity_ms = behavior.window.newest_ms or 0
        known = sum(map(self._known_items.__contains__, behavior.item_ids))
        return Outcome(
            Refreshed(
                behavior.user_id,
                last_activity_ms,
                self.snapshot.activation,
                is_published=made is not None,
                has_window=bool(behavior.window.clicks),
            ),
            made,
            unknown_clicks=len(behavior.window) - known,
        )

    def _route(self, users: Sequence[UserInput]) -> Interests:
        interests = self._model.interests(users)
        finite = np.isfinite(interests.vectors).all(axis=(1, 2))
        if not finite.all():
            raise UnusableInterests(self.snapshot.model_version, users=int((~finite).sum()), of=len(users))
        return interests

    def _make_lists(self, behaviors: Sequence[Behavior], interests: Interests) -> list[RecallList | None]:
        self._served.catch_up()
        keys = self._keys(behaviors)
        found = self._recaller.recall(keys, interests, [self._wishes(behavior) for behavior in behaviors])
        lists: list[RecallList | None] = []
        for key, behavior, items, summaries in zip(
            keys, behaviors, found, self._summarize(behaviors, interests), strict=True
        ):
            is_due = bool(summaries) or behavior.has_list
            lists.append(self._describe(behavior, items, summaries) if is_due else None)
            if not behavior.window.clicks:
                self._recaller.forget(key)
        return lists

    def _keys(self, behaviors: Sequence[Behavior]) -> list[str]:
        """Return what the recaller may remember each user by."""
        return [behavior.user_id for behavior in behaviors]

    def _wishes(self, behavior: Behavior) -> Wishes:
        return Wishes.of(behavior.window, behavior.standing, exclude_seen=self._settings.exclude_seen)

    def _summarize(self, behaviors: Sequence[Behavior], interests: Interests) -> list[list[InterestSummary]]:
        """Return what explains each user's interests in use."""
        item_ids = [
            [behavior.item_ids[at] for at in positions if at >= 0]
            for behavior, positions in zip(behaviors, interests.positions.tolist(), strict=True)
        ]
        return summarize_interests(interests.shares, interests.routing_weights, interests.mask, item_ids)

    def _describe(
        self, behavior: Behavior, items: Sequence[RankedItem], summaries: Sequence[InterestSummary]
    ) -> RecallList:
        return RecallList(
            user_id=behavior.user_id,
            items=items,
            interests=summaries,
            window=describe_window(behavior.window),
            seen=behavior.window.seen or UNSET,
            as_of_ms=behavior.window.newest_ms,
            accepted_at_ms=behavior.accepted_at_ms,
            computed_at_ms=self._now_ms(),
            window_offset=behavior.window_offset,
            activation=self.snapshot.activation,
            epoch=self._epoch,
            model_version=self.snapshot.model_version,
        )


def _gather(taken: Taken, outcomes: Sequence[Outcome]) -> Made:
    lists = [outcome.made for outcome in outcomes if outcome.made is not None]
    unknown_clicks = sum(outcome.unknown_clicks for outcome in outcomes)
    return Made(taken, lists, [outcome.refreshed for outcome in outcomes], unknown_clicks)


def _encode(recall_list: RecallList, routed_at_ms: int) -> MadeList:
    encoded = encode_list(recall_list)
    if len(encoded) > MAX_MESSAGE_BYTES:
        raise ListTooLarge(got=len(encoded), allowed=MAX_MESSAGE_BYTES, clicks=len(recall_list.window))
    return MadeList(recall_list, encoded, routed_at_ms)


def _to_message(topic: str, partition: int, made: MadeList) -> Message:
    recall_list = made.recall_list
    return Message(
        topic=topic,
        key=recall_list.user_id.encode(),
        value=made.encoded,
        headers={
            "epoch": recall_list.epoch.encode("ascii"),
            "window_offset": str(recall_list.window_offset).encode("ascii"),
            "activation": str(recall_list.activation).encode("ascii"),
        },
        partition=partition,
    )
