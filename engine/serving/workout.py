"""Answers that take more than reading a list: filters, what-ifs, ad-hoc clicks and an item's neighbors.

Each asks `Spot` for the routing and search, and builds its answer from what comes back with the catalog and clock of
the event loop. A stored list holds the window with its weights but no profile: lists made of it take none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine.adhoc import AdHocLists, Filter
from engine.events import ClickEvent
from engine.recall import RankedItem, RecallList
from engine.serving import answers, refusals
from engine.serving.adhoc import AdHocQuery
from engine.serving.answers import Answer, Titles
from engine.serving.queries import RecallQuery
from engine.serving.spot import Spot
from engine.window import BehaviorWindow

UNDONE_CLICKS = 10
"""So many of the newest clicks are undone, one by one, to explain a list."""


async def fill_short(
    answer: Answer, stored: bytes, query: RecallQuery, spot: Spot, *, catalog: Titles, now_ms: int
) -> Answer:
    """Return the page that a search under the filter of *query* finds, in place of the short *answer*.

    Raises:
        Refusal: as `Spot.run`.
    """
    held = answers.decode_held(stored)
    assert answer.user_id is not None
    window, keep = _window_of(answer.user_id, held), Filter(query.category, query.exclude)
    made = await spot.run(lambda lists: lists.recall_filtered(window, {}, keep))
    if made is None:
        return answer
    made = msgspec.structs.replace(made, window_offset=held.window_offset, epoch=held.epoch)
    return answers.answer_made(made, query, user_id=answer.user_id, source="searched", catalog=catalog, now_ms=now_ms)


async def tell_without(
    user_id: str, stored: bytes | None, query: RecallQuery, spot: Spot, *, catalog: Titles
) -> list[dict[str, Any]]:
    """Return for each of the user's newest clicks which items leave the list when it is undone, newest first.

    Raises:
        Refusal: as `Spot.run`.
    """
    window = _window_of(user_id, answers.decode_held(stored)) if stored is not None else BehaviorWindow()
    clicks = _newest(window)
    left = await spot.run(lambda lists: lists.recall_without(window, {}, clicks, reach=query.reach)) if clicks else []
    return answers.tell_without(clicks, left, catalog)


async def answer_ad_hoc(asked: AdHocQuery, spot: Spot, *, catalog: Titles, now_ms: int) -> Answer:
    """Return the list of clicks that no log holds.

    Raises:
        Refusal: the clicks form no interest, or as `Spot.run`.
    """
    clicks = _newest(asked.window) if asked.query.explain_without else ()
    made, left = await spot.run(lambda lists: _make(lists, asked, clicks))
    answer = answers.answer_made(made, asked.query, user_id=None, source="ad_hoc", catalog=catalog, now_ms=now_ms)
    if not asked.is_timed:
        answer.as_of_ms = None
    if asked.query.explain_without:
        answer.without = answers.tell_without(clicks, left, catalog)
    return answer


async def find_neighbors(item_id: str, limit: int, spot: Spot, *, catalog: Titles) -> dict[str, Any]:
    """Return the items nearest to *item_id*, as they are answered.

    Raises:
        Refusal: the version has no vector of the item, or as `Spot.run`.
    """
    version, found = await spot.run(lambda lists: _find(lists, item_id, limit))
    items = []
    for item in found:
        known = catalog.get(item.item_id)
        title = {"title": known.title} if known is not None and known.title is not None else {}
        items.append({"item_id": item.item_id, "score": item.score, **title})
    return {"item_id": item_id, "items": items, "model_version": version}


def _make(lists: AdHocLists, asked: AdHocQuery, clicks: Sequence[ClickEvent]) -> tuple[RecallList, list[list[str]]]:
    window, query, profile = asked.window, asked.query, asked.profile
    made = (
        lists.recall_filtered(window, profile, Filter(query.category, query.exclude))
        if query.is_filtered
        else lists.recall(window, profile)
    )
    if made is None:
        raise refusals.no_interests(lists.snapshot.model_version)
    return made, lists.recall_without(window, profile, clicks, reach=query.reach) if clicks else []


def _find(lists: AdHocLists, item_id: str, limit: int) -> tuple[str, list[RankedItem]]:
    version = lists.snapshot.model_version
    found = lists.neighbors(item_id, limit)
    if found is None:
        raise refusals.unknown_item(version)
    return version, found


def _newest(window: BehaviorWindow) -> Sequence[ClickEvent]:
    return window.clicks[: -UNDONE_CLICKS - 1 : -1]


def _window_of(user_id: str, held: answers.Held) -> BehaviorWindow:
    return BehaviorWindow(
        tuple(
            ClickEvent(
                user_id=user_id,
                item_id=click.item_id,
                clicked_at_ms=click.clicked_at_ms,
                event_type=click.event_type,
                weight=click.weight,
            )
            for click in held.window
        ),
        held.seen,
    )
