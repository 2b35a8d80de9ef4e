"""Click and item events: the two messages that come in from outside, decoded strictly.

First of the files one click passes through. Producers send JSON (the contract stands in docs/events.md); `decode_click`
and `decode_item` turn a Kafka record into a frozen value or raise `MalformedEvent` with a reason from a closed set.
Nothing is coerced: an id is a string, a time is an integer, a number is finite. Ids are compared as bytes, so two
Unicode spellings of one name are two ids.

A good message is parsed once, by msgspec. What msgspec lets pass silently, above all a key given twice, takes a second
and slower reading; the number of colons in the message tells, exactly, when that is needed. Nearly every click is plain
ASCII: `_decode_simple` takes those at once and names no errors; what it doesn't take goes the careful way.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from engine.errors import MalformedEvent
from engine.event_types import NEGATIVE_EVENT_TYPES

REASONS = (
    "empty",
    "size",
    "encoding",
    "json",
    "depth",
    "type",
    "missing",
    "duplicate_key",
    "number",
    "range",
    "user_id",
    "item_id",
    "event_id",
    "event_type",
    "profile",
    "text",
    "features",
    "ts_unit",
    "future",
    "key",
    "key_mismatch",
    "partition",
)
"""Every reason a message may be refused for; docs/events.md says what each means."""

MAX_ID_BYTES = 256
MAX_NAME_BYTES = 64
"""Longest event type, attribute name or feature name."""
MAX_TEXT_BYTES = 1_024
"""Longest title, category, brand or shop of an item."""
MAX_ATTRIBUTES = 32
"""Attributes of a profile, and features of an item."""
MAX_WEIGHT = 1e6
MAX_TIME_MS = 2**63 - 1
MAX_DEPTH = 32
"""Deepest nesting of a message; ours need two levels, unknown fields may have more."""
PLAUSIBLE_MS = 20 * 366 * 24 * 3_600_000
"""A time in another unit is recognized if it then lies at most this long before its record."""


class ClickEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One user, one item, one event time.

    `clicked_at_ms` is event time in UTC milliseconds; it orders the window. `event_id` tells two clicks on one item
    apart; without it two clicks of one item in the same millisecond are one click.
    """

    user_id: str
    item_id: str
    clicked_at_ms: int
    event_id: str | None = None
    event_type: str = "click"
    weight: float = 1.0
    profile: dict[str, str | float] | None = None

    @property
    def identity(self) -> bytes:
        """What tells clicks of one millisecond apart: the event id, or the item id where there is none."""
        return (self.event_id if self.event_id is not None else self.item_id).encode()

    @property
    def is_negative(self) -> bool:
        """Whether the click says what the user does not want."""
        return self.event_type in NEGATIVE_EVENT_TYPES


class ItemEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One catalog entry, or its removal; the last record of an item wins."""

    item_id: str
    title: str | None = None
    category: str | None = None
    brand: str | None = None
    shop: str | None = None
    features: dict[str, str | float] = {}
    available: bool = True
    removed: bool = False


class _ClickMessage(msgspec.Struct, kw_only=True, gc=False):
    """A click as sent; UNSET tells an absent field from a null, which is a wrong type."""

    user_id: str
    item_id: str
    clicked_at_ms: int
    event_id: str | UnsetType = UNSET
    event_type: str | UnsetType = UNSET
    weight: float | UnsetType = UNSET
    profile: dict[str, str | float] | UnsetType = UNSET


class _ItemMessage(msgspec.Struct, kw_only=True):
    """An item as sent."""

    item_id: str
    title: str | UnsetType = UNSET
    category: str | UnsetType = UNSET
    brand: str | UnsetType = UNSET
    shop: str | UnsetType = UNSET
    features: dict[str, str | float] | UnsetType = UNSET
    available: bool | UnsetType = UNSET
    removed: bool | UnsetType = UNSET


_Message = TypeVar("_Message", _ClickMessage, _ItemMessage)
_CLICKS = msgspec.json.Decoder(_ClickMessage)
_ITEMS = msgspec.json.Decoder(_ItemMessage)
_decode_message = _CLICKS.decode
_ENCODER = msgspec.json.Encoder()

_BACKSLASH, _DELETE = b"\\\x7f"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # Unicode category Cc
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)', re.DOTALL)  # possessive: no backtracking on hostile input
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[{]}")))


def decode_click(
    value: bytes, *, key: bytes | None, recorded_at_ms: int, future_tolerance_ms: int, max_message_bytes: int
) -> ClickEvent:
    """Return the click that one record of `clicks` holds.

    Args:
        value: the record's value.
        key: the record's key; must be the user id.
        recorded_at_ms: when the log accepted the record; -1, where it doesn't say, leaves out the checks of the time
            against it, for no rule here reads a clock.
        future_tolerance_ms: how far the click's time may lie after that, inclusive.
        max_message_bytes: a longer value is refused unread.

    Raises:
        MalformedEvent: with one of `REASONS`; never anything else, whatever the bytes.
    """
    simple = _decode_simple(value, key, recorded_at_ms, future_tolerance_ms, max_message_bytes)
    if simple is not None:
        return simple
    message = _decode(_CLICKS, value, max_message_bytes, required=3)
    user = _check_id(message.user_id, "user_id")
    _check_id(message.item_id, "item_id")
    click = ClickEvent(user_id=message.user_id, item_id=message.item_id, clicked_at_ms=message.clicked_at_ms)
    if not _is_plain(message):
        click = _check_options(message)
    _check_time(message.clicked_at_ms, recorded_at_ms=recorded_at_ms, future_tolerance_ms=future_tolerance_ms)
    _check_key(key, user, "user_id")
    return click


def _decode_simple(
    value: bytes, key: bytes | None, recorded_at_ms: int, future_tolerance_ms: int, max_message_bytes: int
) -> ClickEvent | None:
    """Return the click of a sound record in ASCII without escapes or profile; None for any other, sound or not.

    In such a message a character is a byte, and none is a control character: JSON allows them in strings as escapes
    only, but for 7F. As many colons as fields leave no room for a key given twice or for one that we don't know.
    """
    # A byte is found seven times as fast by its number.
    if len(value) > max_message_bytes or not value.isascii() or _BACKSLASH in value or _DELETE in value:
        return None
    try:
        message = _decode_message(value)
    except (msgspec.MsgspecError, RecursionError):
        return None
    user_id, item_id, clicked_at_ms = message.user_id, message.item_id, message.clicked_at_ms
    event_id, event_type, weight = message.event_id, message.event_type, message.weight
    given = 3 + (event_id is not UNSET) + (event_type is not UNSET) + (weight is not UNSET)
    latest_ms = recorded_at_ms + future_tolerance_ms
    if (
        message.profile is not UNSET
        or latest_ms > MAX_TIME_MS
        or value.count(b":") != given
        or not 0 <= recorded_at_ms - PLAUSIBLE_MS <= clicked_at_ms <= latest_ms < clicked_at_ms * 1_000
        or key != user_id.encode()
        or not 0 < len(user_id) <= MAX_ID_BYTES >= len(item_id) > 0
        or user_id.isspace()
        or item_id.isspace()
    ):
        return None
    if given == 3:
        return ClickEvent(user_id=user_id, item_id=item_id, clicked_at_ms=clicked_at_ms)
    name = None if event_id is UNSET else event_id
    kind = "click" if event_type is UNSET else event_type
    worth = 1.0 if weight is UNSET else weight
    if (
        (name is not None and _is_no_name(name, MAX_ID_BYTES))
        or (kind != "click" and _is_no_name(kind, MAX_NAME_BYTES))
        or not 0 <= worth <= MAX_WEIGHT
    ):
        return None
    return ClickEvent(
        user_id=user_id,
        item_id=item_id,
        clicked_at_ms=clicked_at_ms,
        event_id=name,
        event_type=kind,
        weight=worth + 0.0,  # -0.0 is 0.0
    )


def _is_no_name(text: str, max_bytes: int) -> bool:
    return not 0 < len(text) <= max_bytes or text.isspace()


def decode_item(value: bytes, *, key: bytes | None, max_message_bytes: int) -> ItemEvent:
    """Return the item that one record of `items` holds; its key must be the item id.

    Raises:
        MalformedEvent: with one of `REASONS`; never anything else, whatever the bytes.
    """
    message = _decode(_ITEMS, value, max_message_bytes, required=1)
    item = _check_id(message.item_id, "item_id")
    given: dict[str, Any] = msgspec.structs.asdict(message)
    given = {name: value for name, value in given.items() if value is not UNSET}
    for name in ("title", "category", "brand", "shop"):
        if name in given:
            _check_text(given[name], "text", max_bytes=MAX_TEXT_BYTES, field=name)
    _check_attributes(given.get("features", {}), "features")
    _check_key(key, item, "item_id")
    return ItemEvent(**given)


def encode_click(click: ClickEvent) -> bytes:
    """Return *click* as producers send it, defaults left out."""
    return _ENCODER.encode(click)


def encode_item(item: ItemEvent) -> bytes:
    """Return *item* as producers send it, defaults left out."""
    return _ENCODER.encode(item)


def _decode(
    decoder: msgspec.json.Decoder[_Message], value: bytes, max_message_bytes: int, *, required: int
) -> _Message:
    if not value:
        raise MalformedEvent("empty", "the value has no bytes")
    if len(value) > max_message_bytes:
        raise MalformedEvent("size", f"the value has {len(value)} bytes, at most {max_message_bytes} are read")
    try:
        message = decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _read_slowly(value)
        _translate(error)
    # Each key takes a colon, so as many colons as distinct keys prove that there is no other key and none twice.
    colons = value.count(b":")
    if colons != required and colons != _count_keys(message):
        _read_slowly(value)
    return message


def _count_keys(message: _ClickMessage | _ItemMessage) -> int:
    count = 0
    for name in message.__struct_fields__:
        given = getattr(message, name)
        if given is not UNSET:
            count += 1 + len(given) if isinstance(given, dict) else 1
    return count


def _translate(error: Exception) -> NoReturn:
    """Raise what *error* of msgspec means for a message that is sound JSON; its wording names fields of ours only."""
    text = str(error)
    if "missing required field" in text:
        raise MalformedEvent("missing", text) from None
    if "Integer value out of range" in text:
        raise MalformedEvent("range", text) from None
    if "out of range" in text:
        raise MalformedEvent("number", text) from None
    if isinstance(error, msgspec.ValidationError):
        raise MalformedEvent("type", text) from None
    raise MalformedEvent("json", text) from None


def _read_slowly(value: bytes) -> None:
    """Check what the fast decoder doesn't: encoding, depth, keys given twice, in unknown fields too."""
    if json.detect_encoding(value) != "utf-8":
        raise MalformedEvent("encoding", "the value is not UTF-8, or starts with a byte order mark")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise MalformedEvent("encoding", f"byte {error.start} is not UTF-8") from None
    _check_depth(value)
    try:
        content = _SLOW.decode(text)
    except ValueError as error:
        position = error.pos if isinstance(error, json.JSONDecodeError) else 0
        raise MalformedEvent("json", f"the value is not JSON at character {position}") from None
    if "\\u" in text:
        _check_surrogates(content)


def _check_depth(value: bytes) -> None:
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _STRING.sub(b"", value).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise MalformedEvent("depth", f"the value nests deeper than {MAX_DEPTH} levels")


def _check_surrogates(content: object) -> None:
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise MalformedEvent("encoding", "a string holds half of a surrogate pair") from None


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    distinct = dict(pairs)
    if len(distinct) != len(pairs):
        raise MalformedEvent("duplicate_key", "a key is given twice in one object")
    return distinct


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedEvent("number", f"{name} is not a JSON number")


# Numbers are not converted here: a number of 5,000 digits would cost, and msgspec has judged the ones we take.
_SLOW = json.JSONDecoder(
    object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant, parse_int=len, parse_float=len
)


def _is_plain(message: _ClickMessage) -> bool:
    return (
        message.event_id is UNSET
        and message.event_type is UNSET
        and message.weight is UNSET
        and message.profile is UNSET
    )


def _check_options(message: _ClickMessage) -> ClickEvent:
    event_id = None if message.event_id is UNSET else message.event_id
    if event_id is not None:
        _check_id(event_id, "event_id")
    event_type = "click" if message.event_type is UNSET else message.event_type
    _check_text(event_type, "event_type", max_bytes=MAX_NAME_BYTES, field="event_type")
    weight = 1.0 if message.weight is UNSET else message.weight
    if not 0 <= weight <= MAX_WEIGHT:
        raise MalformedEvent("range", f"weight must be between 0 and {MAX_WEIGHT:g}")
    profile = None if message.profile is UNSET else message.profile
    if profile is not None:
        _check_attributes(profile, "profile")
    return ClickEvent(
        user_id=message.user_id,
        item_id=message.item_id,
        clicked_at_ms=message.clicked_at_ms,
        event_id=event_id,
        event_type=event_type,
        weight=weight + 0.0,  # -0.0 is 0.0
        profile=profile or None,
    )


def _check_id(text: str, reason: str) -> bytes:
    return _check_text(text, reason, max_bytes=MAX_ID_BYTES, field=reason)


def _check_text(text: str, reason: str, *, max_bytes: int, field: str) -> bytes:
    encoded = text.encode()
    if not 1 <= len(encoded) <= max_bytes:
        raise MalformedEvent(reason, f"{field} must have 1 to {max_bytes} bytes, got {len(encoded)}")
    if _CONTROL.search(text):
        raise MalformedEvent(reason, f"{field} holds a control character")
    if text.isspace():
        raise MalformedEvent(reason, f"{field} is blank")
    return encoded


def _check_attributes(attributes: dict[str, str | float], reason: str) -> None:
    if len(attributes) > MAX_ATTRIBUTES:
        raise MalformedEvent(reason, f"{reason} has {len(attributes)} attributes, at most {MAX_ATTRIBUTES} are taken")
    for name, value in attributes.items():
        _check_text(name, reason, max_bytes=MAX_NAME_BYTES, field=f"a name in {reason}")
        if isinstance(value, str):
            if len(value.encode()) > MAX_ID_BYTES or _CONTROL.search(value):
                raise MalformedEvent(
                    reason, f"a value in {reason} has more than {MAX_ID_BYTES} bytes or a control character"
                )
        elif not math.isfinite(value):
            raise MalformedEvent("number", f"a value in {reason} is not finite")


def _check_time(clicked_at_ms: int, *, recorded_at_ms: int, future_tolerance_ms: int) -> None:
    if not 0 <= clicked_at_ms <= MAX_TIME_MS:
        raise MalformedEvent("range", f"clicked_at_ms must be between 0 and {MAX_TIME_MS}")
    if recorded_at_ms < 0:
        return
    latest_ms = recorded_at_ms + future_tolerance_ms
    earliest_ms = recorded_at_ms - PLAUSIBLE_MS
    if clicked_at_ms > latest_ms:
        for unit, divisor in (("microseconds", 1_000), ("nanoseconds", 1_000_000)):
            if earliest_ms <= clicked_at_ms // divisor <= latest_ms:
                raise MalformedEvent("ts_unit", f"clicked_at_ms looks like {unit}; send milliseconds")
        ahead_ms = clicked_at_ms - recorded_at_ms
        raise MalformedEvent(
            "future", f"clicked_at_ms is {ahead_ms} ms after the record, allowed {future_tolerance_ms}"
        )
    if earliest_ms <= clicked_at_ms * 1_000 <= latest_ms:
        raise MalformedEvent("ts_unit", "clicked_at_ms looks like seconds; send milliseconds")


def _check_key(key: bytes | None, expected: bytes, field: str) -> None:
    if key is None:
        raise MalformedEvent("key", f"the record has no key; it must be the {field}")
    if key != expected:
        raise MalformedEvent("key_mismatch", f"the record's key is not its {field}")
