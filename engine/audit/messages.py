"""The auditor's own reading of one message: its own JSON rules, its own partitioner, its own verdict.

Everything that docs/events.md says of a click is written here a second time, from the page and not from the engine's
code: the two must agree on which messages are clicks, and a test mutates messages until they don't.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

Order = tuple[int, bytes, bool]
NEGATIVE = {"dislike", "hide"}
MAX_DEPTH = 32
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
TWENTY_YEARS_MS = 20 * 366 * 86_400_000
"""A number that is a time within so long before its record, when read as seconds, is in seconds."""


class Entry(NamedTuple):
    """One record of a topic, as it lies in the log."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


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
        """Place in a window: event time, then the identity's bytes, then whether it is negative."""
        identity = self.item_id if self.event_id is None else self.event_id
        return self.clicked_at_ms, identity.encode(), self.event_type in NEGATIVE


def newest(orders: Iterable[Order], max_clicks: int) -> list[Order]:
    """Return, ascending, which of *orders* a window keeps: the greatest that are negative, and those that are not."""
    ascending = sorted(orders)
    negative = [order for order in ascending if order[2]][-max_clicks:]
    return sorted(negative + [order for order in ascending if not order[2]][-max_clicks:])


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
    event_id = _id(fields, "event_id") if "event_id" in fields else None
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


@lru_cache(maxsize=100_000)
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
    _check_depth(read)
    return read


def _check_depth(read: dict[str, Any]) -> None:
    level: list[Any] = [read]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise Refused(f"it nests deeper than {MAX_DEPTH} levels")
        inside = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
        for text in [*inside, *(key for node in level if isinstance(node, dict) for key in node)]:
            if isinstance(text, str):
                _utf8(text)
        level = [child for child in inside if isinstance(child, dict | list)]


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Refused("a key stands there twice")
    return fields


def _no_number(word: str) -> None:
    raise Refused(f"{word} is no JSON number")


def _integer(digits: str) -> int | float:
    # Python refuses to read integers of thousands of digits, and no time has more than 19.
    return int(digits) if len(digits) <= 40 else float(digits)


def _id(fields: Mapping[str, Any], name: str) -> str:
    return _text(fields.get(name), name, longest=256)


def _text(value: object, name: str, *, longest: int, may_be_blank: bool = False) -> str:
    if not isinstance(value, str):
        raise Refused(f"{name} is missing or no string")
    if len(_utf8(value)) > longest:
        raise Refused(f"{name} is longer than {longest} bytes")
    if CONTROL.search(value):
        raise Refused(f"{name} holds a control character")
    if not may_be_blank and not value.strip():
        raise Refused(f"{name} is blank")
    return value


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused("a string holds half a surrogate pair") from error


def _time(fields: Mapping[str, Any], entry: Entry, rules: Rules) -> int:
    value = fields.get("clicked_at_ms")
    if type(value) is not int:
        raise Refused("clicked_at_ms is missing or no integer")
    if not 0 <= value < 2**63:
        raise Refused("clicked_at_ms is out of range")
    if entry.timestamp_ms >= 0:
        latest = entry.timestamp_ms + rules.future_tolerance_ms
        if value > latest:
            raise Refused("clicked_at_ms lies after the record, or is in a smaller unit")
        if entry.timestamp_ms - TWENTY_YEARS_MS <= value * 1_000 <= latest:
            raise Refused("clicked_at_ms is in seconds")
    return value


def _event_type(fields: Mapping[str, Any]) -> str:
    return _text(fields["event_type"], "event_type", longest=64) if "event_type" in fields else "click"


def _weight(fields: Mapping[str, Any]) -> float:
    value = fields.get("weight", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("weight is no number")
    if not 0 <= value <= 1e6:
        raise Refused("weight is out of range")
    return float(value)


def _profile(fields: Mapping[str, Any]) -> tuple[tuple[str, str | float], ...]:
    attributes = fields.get("profile", {})
    if not isinstance(attributes, dict) or len(attributes) > 32:
        raise Refused("profile is no object of at most 32 attributes")
    return tuple(
        (_text(name, "an attribute's name", longest=64), _attribute(value)) for name, value in attributes.items()
    )


def _attribute(value: object) -> str | float:
    if isinstance(value, str):
        return _text(value, "an attribute", longest=256, may_be_blank=True)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused("an attribute is neither a string nor a finite number")
    return float(value)
