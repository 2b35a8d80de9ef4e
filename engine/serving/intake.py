"""Intake: request bodies, clicks and items that come in over HTTP, checked by the rules that the stream applies.

Each click or item is handed to the decoder of `engine/events.py` as bytes, as if it had come off the log; so what this
interface accepts, the engine takes. All of a request is checked before any of it is sent.
"""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request

from engine.errors import MalformedEvent
from engine.events import ItemEvent, decode_click, decode_item, encode_click, encode_item
from engine.log import Message
from engine.serving import refusals
from engine.serving.queries import NOT_JSON
from engine.settings import Settings

MAX_CLICKS = 1_000
BODY_WITHIN_S = 10.0
A_CLICK = 'a click such as {"user_id": "u1", "item_id": "i1"}, or a list of 1 to 1000 of them'


class _ClickPeek(msgspec.Struct):
    """The two fields of a click that matter before it is decoded; empty where they are absent."""

    user_id: msgspec.Raw = msgspec.Raw(b"")
    clicked_at_ms: msgspec.Raw = msgspec.Raw(b"")


class _ItemPeek(msgspec.Struct):
    item_id: msgspec.Raw = msgspec.Raw(b"")


_SPLIT = msgspec.json.Decoder(list[msgspec.Raw]).decode
_PEEK_CLICK = msgspec.json.Decoder(_ClickPeek).decode
_PEEK_ITEM = msgspec.json.Decoder(_ItemPeek).decode


async def read_body(request: Request, settings: Settings) -> bytes:
    """Return the request's body.

    Raises:
        Refusal: it is not JSON by its headers, larger than allowed, or doesn't arrive in time.
    """
    _check_headers(request, settings)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > settings.max_body_bytes:
                    raise refusals.body_too_large(settings.max_body_bytes)
                chunks.append(chunk)
    except TimeoutError as error:
        raise refusals.body_too_slow(BODY_WITHIN_S) from error
    return b"".join(chunks)


def read_clicks(body: bytes, settings: Settings, *, now_ms: int) -> list[Message]:
    """Return the messages that carry the clicks of *body*, one or a list; a click without a time was made now.

    Raises:
        Refusal: the body is neither, or one of the clicks can't be taken; it is named by its index.
    """
    topic = settings.topic("clicks")
    return [_click_message(raw, topic, settings, index=index, now_ms=now_ms) for index, raw in enumerate(_split(body))]


def read_item(body: bytes, item_id: str, settings: Settings) -> Message:
    """Return the message that carries the item *item_id* with the fields of *body*.

    Raises:
        Refusal: the body is no object, names another item, or has a field that can't be taken.
    """
    value = body.strip()
    try:
        peek = _PEEK_ITEM(value)
        if not bytes(peek.item_id):
            value = with_field(value, b"item_id", msgspec.json.encode(item_id))
        item = decode_item(value, key=item_id.encode(), max_message_bytes=settings.max_message_bytes)
    except NOT_JSON as error:
        raise refusals.bad("body", 'a JSON object such as {"title": "Lamp", "category": "lighting"}') from error
    except MalformedEvent as error:
        raise refusals.bad_item(error.reason, error.detail) from error
    return _item_message(item, settings)


def removal(item_id: str, settings: Settings) -> Message:
    """Return the message that removes *item_id* from the catalog."""
    return _item_message(ItemEvent(item_id=item_id, removed=True), settings)


def _check_headers(request: Request, settings: Settings) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    plain = request.headers.get("content-encoding", "identity").strip().lower() == "identity"
    if media_type.strip().lower() != "application/json" or charset not in ("", "charset=utf-8") or not plain:
        raise refusals.not_json()
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > settings.max_body_bytes:
        raise refusals.body_too_large(settings.max_body_bytes)


def _split(body: bytes) -> list[bytes]:
    value = body.strip()
    if not value.startswith(b"["):
        return [value]
    try:
        clicks = [bytes(click) for click in _SPLIT(value)]
    except NOT_JSON as error:
        raise refusals.bad("body", A_CLICK) from error
    if not clicks:
        raise refusals.bad("body", A_CLICK)
    if len(clicks) > MAX_CLICKS:
        raise refusals.too_many("clicks", limit=MAX_CLICKS)
    return clicks


def _click_message(value: bytes, topic: str, settings: Settings, *, index: int, now_ms: int) -> Message:
    try:
        peek = _PEEK_CLICK(value)
    except NOT_JSON:
        peek = _ClickPeek()  # the decoder says what is wrong
    else:
        if not bytes(peek.clicked_at_ms):
            value = with_field(value, b"clicked_at_ms", str(now_ms).encode())
    try:
        click = decode_click(
            value,
            key=_text(bytes(peek.user_id)),
            recorded_at_ms=now_ms,
            future_tolerance_ms=settings.future_tolerance_ms,
            max_message_bytes=settings.max_message_bytes,
        )
    except MalformedEvent as error:
        raise refusals.bad_click(index, error.reason, error.detail) from error
    return Message(topic, encode_click(click), click.user_id.encode())


def _item_message(item: ItemEvent, settings: Settings) -> Message:
    return Message(settings.topic("items"), encode_item(item), item.item_id.encode())


def with_field(value: bytes, name: bytes, field: bytes) -> bytes:
    """Return the JSON object *value* with one field more."""
    rest = value[1:].lstrip()
    comma = b"" if rest.startswith(b"}") else b","
    return b'{"' + name + b'":' + field + comma + rest


def _text(raw: bytes) -> bytes:
    """Return the UTF-8 of a raw JSON string; something that is a key but no id where it is not one."""
    try:
        return msgspec.json.decode(raw, type=str).encode()
    except (*NOT_JSON, UnicodeEncodeError):
        return b"?"
