"""Ad-hoc requests: a list of clicks in a body, checked by the rules of the stream and never logged.

The clicks of an anonymous session, or of a what-if. Each is checked by the decoder of `engine/events.py`, as if it had
come off the log. Clicks without times stand in the order given; no clock is read, so the same body is the same window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from engine.errors import MalformedEvent
from engine.events import ClickEvent, decode_click
from engine.serving import queries, refusals
from engine.serving.intake import MAX_CLICKS, with_field
from engine.serving.queries import NOT_JSON, RecallQuery
from engine.settings import Settings
from engine.window import BehaviorWindow, SeenRule

NOBODY = b"ad-hoc"
"""Stands for the user id, which these clicks have none of, while they are checked."""
A_BODY = 'a JSON object such as {"clicks": [{"item_id": "i1"}, {"item_id": "i2"}], "limit": 50}'


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    clicks: msgspec.Raw
    profile: msgspec.Raw = msgspec.Raw(b"{}")
    limit: Any = None
    offset: Any = 0
    exclude: Any = ()
    category: Any = None
    explain: Any = False


class _ClickPeek(msgspec.Struct):
    """Whether a click has a time; empty where it has none."""

    clicked_at_ms: msgspec.Raw = msgspec.Raw(b"")


_DECODE_BODY = msgspec.json.Decoder(_Body).decode
_PEEK_CLICK = msgspec.json.Decoder(_ClickPeek).decode
_SPLIT = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class AdHocQuery:
    """A window that no log holds, and what is asked of it."""

    window: BehaviorWindow
    profile: dict[str, str | float]
    query: RecallQuery
    is_timed: bool
    """False where the clicks came without times; those of the window then are their places."""


def read_ad_hoc(body: bytes, settings: Settings) -> AdHocQuery:
    """Return what *body* asks for.

    Raises:
        Refusal: it is no such object, or one of its values is wrong; a wrong click is named by its index.
    """
    try:
        given = _DECODE_BODY(body)
        raw_clicks = _SPLIT(given.clicks)
    except NOT_JSON as error:
        raise refusals.bad("body", A_BODY) from error
    if not raw_clicks:
        raise refusals.bad("clicks", f"a list of 1 to {MAX_CLICKS} clicks")
    if len(raw_clicks) > MAX_CLICKS:
        raise refusals.too_many("clicks", limit=MAX_CLICKS)
    query = queries.recall_query(
        settings,
        limit=given.limit,
        offset=given.offset,
        exclude=given.exclude,
        category=given.category,
        explain=given.explain,
    )
    profile = _read_profile(bytes(given.profile), settings)
    timed = [_is_timed(raw, index) for index, raw in enumerate(raw_clicks)]
    if any(timed) and not all(timed):
        raise refusals.bad("clicks", "given a clicked_at_ms each, or none of them one")
    clicks = [_click(bytes(raw), index, settings, is_timed=timed[0]) for index, raw in enumerate(raw_clicks)]
    window = BehaviorWindow.of(clicks, max_clicks=settings.window_max_clicks, seen=SeenRule.of(settings))
    attributes = {name: value for click in window.clicks for name, value in (click.profile or {}).items()}
    return AdHocQuery(window, attributes | profile, query, is_timed=timed[0])


def _read_profile(raw: bytes, settings: Settings) -> dict[str, str | float]:
    try:
        click = b'{"item_id":"-","clicked_at_ms":0,"profile":' + raw + b"}"
        return _decode(click, settings).profile or {}
    except MalformedEvent as error:
        raise refusals.bad_profile(error.reason, error.detail) from error


def _is_timed(raw: msgspec.Raw, index: int) -> bool:
    try:
        return bool(bytes(_PEEK_CLICK(raw).clicked_at_ms))
    except NOT_JSON as error:
        raise refusals.bad_at("clicks", index, 'a click such as {"item_id": "i1"}') from error


def _click(raw: bytes, index: int, settings: Settings, *, is_timed: bool) -> ClickEvent:
    value = raw.strip()
    try:
        return _decode(value if is_timed else with_field(value, b"clicked_at_ms", str(index).encode()), settings)
    except MalformedEvent as error:
        raise refusals.bad_click(index, error.reason, error.detail) from error


def _decode(value: bytes, settings: Settings) -> ClickEvent:
    return decode_click(
        with_field(value, b"user_id", b'"' + NOBODY + b'"'),
        key=NOBODY,
        recorded_at_ms=-1,
        future_tolerance_ms=0,
        max_message_bytes=settings.max_message_bytes,
    )
