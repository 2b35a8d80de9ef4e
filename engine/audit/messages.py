"""The auditor's own reading of one message: its own JSON rules, its own partitioner, its own verdict.

Everything that docs/events.md says of a click is written here a second time, from the page and not from the engine's
code: the two must agree on which messages are clicks, and a test mutates messages until they don't.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Order = tuple[int, bytes]


class Entry(NamedTuple):
    """One record of `clicks`, as it lies in the log."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class Click(NamedTuple):
    """What the auditor understood of a message it accepts."""

    user_id: str
    item_id: str
    clicked_at_ms: int
    event_id: str | None
    event_type: str
    weight: float
    profile: tuple[tuple[str, str | float], ...] = ()

    @property
    def order(self) -> Order:
        """Place in a window: event time, then the identity's bytes."""
        return self.clicked_at_ms, (self.item_id if self.event_id is None else self.event_id).encode()


class Refused(Exception):
    """The auditor's own verdict that a message is no click; its words need not be the engine's."""


@dataclass(frozen=True)
class Rules:
    """What a verdict depends on besides the message."""

    partitions: int
    max_clicks: int
    future_tolerance_ms: int = 60_000
    max_message_bytes: int = 65_536


def read_click(entry: Entry, rules: Rules) -> Click:
    """Return the click that *entry* holds, or say why it is none.

    Raises:
        Refused: the message breaks a rule of docs/events.md.
    """
    fields = _read_object(entry.value or b"", rules)
    user_id, item_id = _id(fields, "user_id"), _id(fields, "item_id")
    event_id = _id(fields, "event_id") if fields.get("event_id") is not None else None
    click = Click(
        user_id, item_id, _time(fields, entry, rules), event_id, _event_type(fields), _weight(fields), _profile(fields)
    )
    if entry.key is None:
        raise Refused("it has no key")
    if entry.key != user_id.encode():
        raise Refused("its key is not its user")
    if entry.partition != partition_of(entry.key, rules.partitions):
        raise Refused("its key belongs to another partition")
    return click


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's default partitioner gives *key*: murmur2 (Appleby), its sign bit cleared."""
    return (_murmur2(key) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    state = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * multiplier & mask
        word = (word ^ word >> 24) * multiplier & mask
        state = (state * multiplier & mask) ^ word
    if whole < len(data):
        state = (state ^ int.from_bytes(data[whole:], "little")) * multiplier & mask
    state = (state ^ state >> 13) * multiplier & mask
    return state ^ state >> 15


def _read_object(value: bytes, rules: Rules) -> dict[str, Any]:
    if not value:
        raise Refused("it is empty")
    if len(value) > rules.max_message_bytes:
        raise Refused(f"it has {len(value)} bytes")
    try:
        read = json.loads(
            value.decode("utf-8"), object_pairs_hook=_once_each, parse_int=_integer, parse_constant=_no_number
        )
    except UnicodeDecodeError as error:
        raise Refused("it is not UTF-8") from error
    except RecursionError as error:
        raise Refused("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise Refused("it is not JSON") from error
    if not isinstance(read, dict):
        raise Refused("it is no JSON object")
    return read


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Refused("a key stands there twice")
    return fields


def _no_number(word: str) -> None:
    raise Refused(f"{word} is no JSON number")


def _integer(digits: str) -> int | float:
    # Python refuses to read integers of thousands of digits; no field may be near as large.
    return int(digits) if len(digits) <= 40 else math.inf


def _id(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise Refused(f"{name} is missing or no string")
    size = len(_utf8(value, name))
    if not 1 <= size <= 256:
        raise Refused(f"{name} has {size} bytes")
    if any(ord(letter) < 0x20 or 0x7F <= ord(letter) < 0xA0 for letter in value):
        raise Refused(f"{name} holds a control character")
    return value


def _utf8(text: str, name: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused(f"{name} holds half a surrogate pair") from error


def _time(fields: Mapping[str, Any], entry: Entry, rules: Rules) -> int:
    value = fields.get("clicked_at_ms")
    if type(value) is not int:
        raise Refused("clicked_at_ms is missing or no integer")
    if value < 0:
        raise Refused("clicked_at_ms is negative")
    if value > entry.timestamp_ms + rules.future_tolerance_ms:
        raise Refused("clicked_at_ms lies after the record")
    return value


def _event_type(fields: Mapping[str, Any]) -> str:
    return _id(fields, "event_type") if "event_type" in fields else "click"


def _weight(fields: Mapping[str, Any]) -> float:
    value = fields.get("weight", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("weight is no number")
    if not 0 <= value <= 1e6:
        raise Refused("weight is out of range")
    return float(value)


def _profile(fields: Mapping[str, Any]) -> tuple[tuple[str, str | float], ...]:
    value = fields.get("profile")
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > 32:
        raise Refused("profile is no object of at most 32 attributes")
    return tuple((name, _attribute(name, attribute)) for name, attribute in value.items())


def _attribute(name: str, value: object) -> str | float:
    if isinstance(value, str):
        _utf8(value, "profile")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused("a profile attribute is neither a string nor a finite number")
    return float(value)
