"""The byte layout of a partition store: every key and value that RocksDB holds, and nothing else.

One column family; the first byte of a key is its kind, so that one scan meets one kind only. All integers are big
endian, so that bytes sort as numbers do.

    h                                           -> header, JSON: what the store was made for
    o                                           -> u64, the greatest applied offset
    e                                           -> u64, place of the last erasure carried out; the topic's id
    w user 00 inverted-time inverted-identity   -> one click of a window
    p user 00 attribute                         -> one profile attribute and the click that set it
    m number                                    -> the dirty marks of one write, MessagePack
    r user                                      -> what came of the user's last refresh

A click's time and identity are stored inverted (all bits flipped), so that a forward scan of a user's prefix meets the
newest click first and, of one millisecond, the greatest identity first. No time has the highest bit, so that every
inverted one has it, and without it stands the time of a negative click: those come before all others of the user.
Ids hold no control characters: no byte below 0x20 ever stands in one, so 00 ends a user id, and FF, which no inverted
id byte reaches, ends an inverted identity and puts "ab" before "a".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

import msgspec

from engine.errors import WindowDecodeError
from engine.event_types import NEGATIVE_EVENT_TYPES
from engine.events import ClickEvent

FORMAT = 1
"""Format of the values below; stored in each of them."""
STORE_FORMAT = 3
"""Format of a store, in its header. In 2 every dirty mark had a key of its own, which opening rewrites; in 1 negative
clicks stood among the others and took their places, which is refused."""
HEADER_KEY = b"h"
OFFSET_KEY = b"o"
ERASED_KEY = b"e"
CLICKS, PROFILES, MARKS, DERIVED = b"w", b"p", b"m", b"r"
FORMAT_OF_OLD_MARKS = 2
OLD_MARKS, AFTER_OLD_MARKS = b"d", b"e"
"""In store format 2: a key a mark, with an offset and the user."""

GREATEST_MS = 2**63 - 1
"""Greatest event time a click may carry."""

_FLIP = bytes(255 - byte for byte in range(256))
_U64 = struct.Struct(">Q")
_ALL_ONES = 2**64 - 1
_FORMAT_BYTE = bytes([FORMAT])
_CLICKS_FROM = b"\x80"
_CLICK = struct.Struct(">BBdB")  # format, carries an event id, weight, bytes of the event type
_CLICK_SIZE = _CLICK.size
_PROFILE = struct.Struct(">BQH")  # format, clicked_at_ms, bytes of the identity
_OLD_MARK = struct.Struct(">Bq")  # format, accepted_at_ms
_DERIVED = struct.Struct(">Bqqq")  # format, last_activity_ms, activation, window_offset
_NO_TIME = -1
NO_LIST = -1
NO_CLICK = 2**63 - 1
"""Stands for the offset of a click, behind all of them."""
NO_ACTIVATION = -1
"""Of a user whom no model version has refreshed since the erasure."""


def user_prefix(kind: bytes, user: bytes) -> bytes:
    """Return what every key of *kind* of this user starts with."""
    return kind + user + b"\x00"


def after_user(kind: bytes, user: bytes) -> bytes:
    """Return the first key that lies behind all keys of *kind* of this user."""
    return kind + user + b"\x01"


def clicks_range(user: bytes) -> tuple[bytes, bytes, bytes]:
    """Return where the keys of this user's clicks begin, where those of clicks that aren't negative do, and their end.

    The first is the user's prefix, too.
    """
    start = CLICKS + user
    return start + b"\x00", start + b"\x00" + _CLICKS_FROM, start + b"\x01"


def encode_offset(offset: int) -> bytes:
    """Return the value of `OFFSET_KEY`."""
    return _U64.pack(offset)


def decode_offset(value: bytes) -> int:
    """Return the offset that `OFFSET_KEY` holds."""
    return int(_U64.unpack(value)[0])


def encode_erased(place: int, topic_id: str) -> bytes:
    """Return the value of `ERASED_KEY`."""
    return _U64.pack(place) + topic_id.encode()


def decode_erased(value: bytes) -> tuple[int, str]:
    """Return the place on `erasures`, and the id of that topic, that `ERASED_KEY` holds."""
    return int(_U64.unpack_from(value)[0]), value[8:].decode()


def click_order(click: ClickEvent) -> bytes:
    """Return what follows the user's prefix in a click's key: its place in the window, newest first."""
    identity = click.item_id if click.event_id is None else click.event_id
    newest = GREATEST_MS if click.event_type in NEGATIVE_EVENT_TYPES else _ALL_ONES
    return _U64.pack(newest - click.clicked_at_ms) + identity.encode().translate(_FLIP) + b"\xff"


def encode_click(click: ClickEvent) -> bytes:
    """Return the value of a click: what its key does not say."""
    has_event_id = click.event_id is not None
    if click.weight == 1.0 and click.event_type == "click":  # nearly all of them, and a look-up takes longer
        head = _PLAIN_HEADS[has_event_id]
    else:
        head = _click_head(has_event_id, click.event_type, click.weight)
    return head + click.item_id.encode() if has_event_id else head


@lru_cache(maxsize=1_000)  # clicks come in few types and weights
def _click_head(has_event_id: bool, event_type: str, weight: float) -> bytes:
    name = event_type.encode()
    return _CLICK.pack(FORMAT, has_event_id, weight, len(name)) + name


_PLAIN_HEADS = _click_head(False, "click", 1.0), _click_head(True, "click", 1.0)
_PLAIN_SIZE = len(_PLAIN_HEADS[True])
_MANY = 5
"""From so many clicks on they are decoded together."""


def decode_click(user_id: str, order: bytes, value: bytes) -> ClickEvent:
    """Return the click stored at *order* (the key without its user prefix); its profile is kept elsewhere.

    Raises:
        WindowDecodeError: the value has a format that this build doesn't read.
    """
    if value[0] != FORMAT:  # `_check_format`, without its call: this runs fifty times a window
        raise WindowDecodeError(format_version=value[0], readable=str(FORMAT))
    _, has_event_id, weight, type_size = _CLICK.unpack_from(value)
    type_end = _CLICK_SIZE + type_size
    identity = order[8:-1].translate(_FLIP).decode()
    return ClickEvent(
        user_id=user_id,
        item_id=value[type_end:].decode() if has_event_id else identity,
        clicked_at_ms=~_U64.unpack_from(order)[0] & GREATEST_MS,
        event_id=identity if has_event_id else None,
        event_type=value[_CLICK_SIZE:type_end].decode(),
        weight=weight,
    )


def decode_clicks(user_id: str, orders: Sequence[bytes], values: Sequence[bytes]) -> list[ClickEvent]:
    """Return the clicks stored at *orders*, as `decode_click` does.

    Most of what a list is made of is read here, and nearly all clicks have an event id, one type and one weight: where
    all of them do, they are taken apart together.

    Raises:
        WindowDecodeError: a value has a format that this build doesn't read.
    """
    if len(values) < _MANY or {value[:_PLAIN_SIZE] for value in values} != {_PLAIN_HEADS[True]}:
        return [*map(decode_click, repeat(user_id), orders, values)]
    times = struct.unpack(f">{len(orders)}Q", b"".join([order[:8] for order in orders]))
    event_ids = [order[8:-1].translate(_FLIP).decode() for order in orders]
    return [
        ClickEvent(
            user_id=user_id,
            item_id=value[_PLAIN_SIZE:].decode(),
            clicked_at_ms=GREATEST_MS - (time & GREATEST_MS),
            event_id=event_id,
        )
        for value, time, event_id in zip(values, times, event_ids, strict=True)
    ]


class ProfileValue(NamedTuple):
    """One profile attribute: its value, and the (time, identity) of the click that set it."""

    clicked_at_ms: int
    identity: bytes
    value: str | float


def encode_profile(row: ProfileValue) -> bytes:
    """Return the value of a profile row."""
    head = _PROFILE.pack(FORMAT, row.clicked_at_ms, len(row.identity))
    return head + row.identity + msgspec.json.encode(row.value)


_PROFILE_VALUE = msgspec.json.Decoder(str | float)


def decode_profile(value: bytes) -> ProfileValue:
    """Return the stored attribute.

    Raises:
        WindowDecodeError: the value has a format that this build doesn't read.
    """
    _check_format(value)
    _, clicked_at_ms, size = _PROFILE.unpack_from(value)
    end = _PROFILE.size + size
    return ProfileValue(clicked_at_ms, value[_PROFILE.size : end], _PROFILE_VALUE.decode(value[end:]))


def marks_key(number: int) -> bytes:
    """Return the key of the dirty marks with this number; a scan meets them in the order they were written."""
    return MARKS + _U64.pack(number)


def decode_marks_key(key: bytes) -> int:
    """Return the number of dirty marks."""
    return int(_U64.unpack_from(key, 1)[0])


class Mark(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """That a user is dirty: since the log accepted the click at *offset*, at *accepted_at_ms*."""

    user_id: str
    offset: int
    """`NO_CLICK` where something else than a click makes the user dirty: no list that is out takes that away."""
    accepted_at_ms: int | None
    """None without a click, or of a record without a timestamp."""


_encode_marks = msgspec.msgpack.Encoder().encode
_MARKS = msgspec.msgpack.Decoder(list[Mark])


def encode_marks(marks: Sequence[Mark]) -> bytes:
    """Return the value of the dirty marks of one write."""
    return _FORMAT_BYTE + _encode_marks(marks)


def decode_marks(value: bytes) -> list[Mark]:
    """Return the marks that one write put.

    Raises:
        WindowDecodeError: the value has a format that this build doesn't read.
    """
    _check_format(value)
    return _MARKS.decode(memoryview(value)[1:])


def decode_old_mark(key: bytes, value: bytes) -> Mark:
    """Return a mark of store format 2, which doesn't say what made the user dirty."""
    _check_format(value)
    accepted_at_ms = int(_OLD_MARK.unpack(value)[1])
    return Mark(key[9:].decode(), NO_CLICK, None if accepted_at_ms == _NO_TIME else accepted_at_ms)


class DerivedRow(NamedTuple):
    """What came of a user's last refresh, and whether a list of the user is out."""

    last_activity_ms: int
    """Event time of the newest click of the window that was refreshed."""
    activation: int
    """Of the model version that refreshed it."""
    window_offset: int
    """Applied offset that the newest published list was made at; `NO_LIST` while none was ever published."""

    @property
    def has_list(self) -> bool:
        """True once a list was published."""
        return self.window_offset != NO_LIST


def encode_derived(row: DerivedRow) -> bytes:
    """Return the value of a derived row."""
    return _DERIVED.pack(FORMAT, *row)


def decode_derived(value: bytes) -> DerivedRow:
    """Return the stored derived row."""
    _check_format(value)
    return DerivedRow(*_DERIVED.unpack(value)[1:])


def _check_format(value: bytes) -> None:
    if value[0] != FORMAT:
        raise WindowDecodeError(format_version=value[0], readable=str(FORMAT))
