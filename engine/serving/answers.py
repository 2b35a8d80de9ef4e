"""Answers: from the stored list of a user to the JSON of one HTTP answer.

The hot path of the query service. A stored list is the contract's JSON; only what an answer can change is decoded, the
rest passes through as raw bytes. At query time excluded and unavailable items are dropped, titles added, and the
freshness told: `age_ms` is wall time minus `computed_at_ms`. A user without a list, or with nothing left of it, gets
the popular items of the version in service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from engine.events import ClickEvent, ItemEvent
from engine.popular import ItemFacts, PopularItems, PopularSnapshot, popular_list
from engine.recall import InterestSummary, RecallList, WindowClick, encode_list
from engine.serving import refusals
from engine.serving.queries import RecallQuery


class Titles(ItemFacts, Protocol):
    """What an answer needs of the catalog: categories, availability and titles."""

    def get(self, item_id: str) -> ItemEvent | None:
        """Return the item; None where it is unknown."""


class StoredItem(msgspec.Struct, gc=False):
    """One item of a stored list."""

    item_id: str
    score: float
    interest: int | None = None


class StoredList(msgspec.Struct, gc=False):
    """A stored list with everything raw that most answers leave out."""

    user_id: str
    items: list[StoredItem]
    computed_at_ms: int
    model_version: str
    interests: msgspec.Raw = msgspec.Raw(b"[]")
    window: msgspec.Raw = msgspec.Raw(b"[]")
    as_of_ms: int | None = None
    accepted_at_ms: int | None = None
    window_offset: int = -1
    activation: int = -1
    epoch: str = ""
    source: str = "personal"


class AnswerItem(msgspec.Struct, gc=False, omit_defaults=True):
    """One item of an answer; `title` where the catalog knows it."""

    item_id: str
    score: float
    interest: int | None
    title: str | None = None


class Answer(msgspec.Struct, gc=False, omit_defaults=True):
    """A recall list over HTTP; `interests` and `window` only where the query asks to explain.

    `user_id` is None for clicks that are nobody's.
    """

    user_id: str | None
    items: list[AnswerItem]
    as_of_ms: int | None
    accepted_at_ms: int | None
    computed_at_ms: int
    age_ms: int
    window_offset: int
    activation: int
    epoch: str
    model_version: str
    source: str
    interests: list[dict[str, Any]] | None = None
    window: list[dict[str, Any]] | None = None
    without: list[dict[str, Any]] | None = None
    """By click, newest first: which of the items leave when it is undone."""
    min_offset_reached: bool | None = None


class Held(msgspec.Struct, gc=False):
    """The part of a stored list that tells of the user and not of the items."""

    window: list[WindowClick] = []
    seen: tuple[str, ...] = ()
    interests: msgspec.Raw = msgspec.Raw(b"[]")
    as_of_ms: int | None = None
    computed_at_ms: int | None = None
    window_offset: int = -1
    activation: int = -1
    epoch: str = ""
    model_version: str | None = None


_DECODE_LIST = msgspec.json.Decoder(StoredList).decode
_DECODE_INTERESTS = msgspec.json.Decoder(list[InterestSummary]).decode
_DECODE_WINDOW = msgspec.json.Decoder(list[WindowClick]).decode
decode_held = msgspec.json.Decoder(Held).decode
encode_answer = msgspec.json.Encoder().encode


def answer_query(
    stored: bytes | None,
    query: RecallQuery,
    *,
    user_id: str,
    snapshot: PopularSnapshot | None,
    catalog: Titles,
    now_ms: int,
) -> Answer:
    """Return what *user_id* gets: the personal list, or popular items where nothing personal can be recalled.

    Args:
        stored: the user's list as the list store keeps it, None where there is none.
        query: the part of the list that is asked for.
        user_id: whom the answer is for.
        snapshot: the version in service, None where none has been loaded yet.
        catalog: titles, categories and availability.
        now_ms: wall time in milliseconds.

    Raises:
        Refusal: popular items are due, and there is no version to take them from.
    """
    personal = _DECODE_LIST(stored) if stored is not None else None
    if personal is not None:
        items = _keep(personal.items, query, catalog)
        if items:
            return _assemble(personal, _slice(items, query), query, catalog, now_ms)
    if snapshot is None:
        if personal is None:
            raise refusals.no_lists_yet()
        return _assemble(personal, [], query, catalog, now_ms)
    return _popular(personal, query, user_id=user_id, snapshot=snapshot, catalog=catalog, now_ms=now_ms)


def answer_made(
    made: RecallList, query: RecallQuery, *, user_id: str | None, source: str, catalog: Titles, now_ms: int
) -> Answer:
    """Return the page of a list that was made on the spot; its items are those that the list's bytes hold."""
    listed = _DECODE_LIST(encode_list(made))
    answer = _assemble(listed, _slice(_keep(listed.items, query, catalog), query), query, catalog, now_ms)
    answer.user_id, answer.source = user_id, source
    return answer


def is_cut_short(stored: bytes, query: RecallQuery, catalog: Titles) -> bool:
    """Return whether the filter of *query* takes so much of the stored list that its page is not full."""
    items = _DECODE_LIST(stored).items
    wanted = min(query.reach, sum(catalog.is_available(item.item_id) for item in items))
    return len(_keep(items, query, catalog)) < wanted


def explain_held(stored: bytes | None, catalog: Titles) -> tuple[Held, list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what a stored list tells of the user, the window oldest click first, and the interests, with titles."""
    held = decode_held(stored) if stored is not None else Held()
    return held, _titled_window(held.window, catalog), _titled_interests(held.interests, catalog)


def tell_without(clicks: Sequence[ClickEvent], left: Sequence[Sequence[str]], catalog: Titles) -> list[dict[str, Any]]:
    """Return for each of *clicks* the items that leave when it is undone."""
    return [
        _titled({"item_id": click.item_id, "clicked_at_ms": click.clicked_at_ms, "leave": list(items)}, catalog)
        for click, items in zip(clicks, left, strict=True)
    ]


def _keep(items: Sequence[StoredItem], query: RecallQuery, catalog: Titles) -> list[AnswerItem]:
    """Return the items that may be shown, best first, no more than the query reaches."""
    kept: list[AnswerItem] = []
    reach, category, exclude = query.reach, query.category, query.exclude
    is_available, get = catalog.is_available, catalog.get
    for item in items:
        item_id = item.item_id
        if item_id in exclude or not is_available(item_id):
            continue
        known = get(item_id)
        if category is not None and (known is None or known.category != category):
            continue
        kept.append(AnswerItem(item_id, item.score, item.interest, known.title if known is not None else None))
        if len(kept) == reach:
            break
    return kept


def _slice(items: list[AnswerItem], query: RecallQuery) -> list[AnswerItem]:
    return items[query.offset : query.offset + query.limit]


def _assemble(
    recalled: StoredList, items: list[AnswerItem], query: RecallQuery, catalog: Titles, now_ms: int
) -> Answer:
    return Answer(
        user_id=recalled.user_id,
        items=items,
        as_of_ms=recalled.as_of_ms,
        accepted_at_ms=recalled.accepted_at_ms,
        computed_at_ms=recalled.computed_at_ms,
        age_ms=max(0, now_ms - recalled.computed_at_ms),
        window_offset=recalled.window_offset,
        activation=recalled.activation,
        epoch=recalled.epoch,
        model_version=recalled.model_version,
        source=recalled.source,
        interests=_explain_interests(recalled, catalog) if query.explain else None,
        window=_explain_window(recalled, catalog) if query.explain else None,
    )


def _popular(
    personal: StoredList | None,
    query: RecallQuery,
    *,
    user_id: str,
    snapshot: PopularSnapshot,
    catalog: Titles,
    now_ms: int,
) -> Answer:
    window = _DECODE_WINDOW(personal.window) if personal is not None else []
    if query.category is not None:
        snapshot = _Narrowed(snapshot, query.category)
    recalled = popular_list(
        snapshot,
        catalog,
        user_id=user_id,
        limit=query.reach,
        window_item_ids=[click.item_id for click in window],
        exclude=query.exclude,
    )
    found = [StoredItem(item.item_id, item.score, item.interest) for item in recalled.items]
    listed = StoredList(
        user_id=user_id,
        items=found,
        computed_at_ms=recalled.computed_at_ms,
        model_version=recalled.model_version,
        window=personal.window if personal is not None else msgspec.Raw(b"[]"),
        activation=recalled.activation,
        source=recalled.source,
    )
    return _assemble(listed, _slice(_keep(found, query, catalog), query), query, catalog, now_ms)


def _explain_interests(recalled: StoredList, catalog: Titles) -> list[dict[str, Any]]:
    return _titled_interests(recalled.interests, catalog)


def _explain_window(recalled: StoredList, catalog: Titles) -> list[dict[str, Any]]:
    return _titled_window(_DECODE_WINDOW(recalled.window), catalog)


def _titled_interests(interests: msgspec.Raw, catalog: Titles) -> list[dict[str, Any]]:
    return [
        {
            "interest": interest.interest,
            "weight": interest.weight,
            "clicks": [_titled(msgspec.structs.asdict(click), catalog) for click in interest.clicks],
        }
        for interest in _DECODE_INTERESTS(interests)
    ]


def _titled_window(window: Sequence[WindowClick], catalog: Titles) -> list[dict[str, Any]]:
    return [_titled(msgspec.to_builtins(click), catalog) for click in window]


def _titled(fields: dict[str, Any], catalog: Titles) -> dict[str, Any]:
    known = catalog.get(fields["item_id"])
    return {**fields, "title": known.title} if known is not None and known.title is not None else fields


class _Narrowed:
    """A version whose popular items are those of one category."""

    def __init__(self, snapshot: PopularSnapshot, category: str) -> None:
        self.model_version, self.activation = snapshot.model_version, snapshot.activation
        self.trained_at_ms = snapshot.trained_at_ms
        self.popular: PopularItems = _OneCategory(snapshot.popular.by_category.get(category, ()))


class _OneCategory:
    def __init__(self, item_ids: Sequence[str]) -> None:
        self.overall: Sequence[str] = item_ids
        self.by_category: Mapping[str, Sequence[str]] = {}
