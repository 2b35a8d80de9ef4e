"""Queries: what a client asks for, read strictly from path, query string and body.

Nothing is guessed or cut to fit: `limit=1e3`, an empty value, a repeated or unknown parameter are refused with the name
of the parameter. Ids are percent-decoded once, as UTF-8.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.events import MAX_ID_BYTES, MAX_TEXT_BYTES
from engine.log import Position
from engine.serving import refusals
from engine.settings import Settings

DEFAULT_LIMIT = 50
MAX_OFFSET = 100_000
MAX_EXCLUDED = 1_000
DEFAULT_WAIT_MS = 1_000
MAX_WAIT_MS = 10_000
MAX_BATCH_USERS = 1_000
DIGITS = re.compile(rb"[0-9]{1,9}")
BROKEN_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")
WITHOUT = b"without"
A_FLAG = 'true, false or "without"'
A_CATEGORY = f"a string of 1 to {MAX_TEXT_BYTES} bytes of UTF-8, not blank and without control characters"
PLACE = re.compile(rb"([0-9]{1,9}):([0-9]{1,18})")
PARAMETERS = (b"limit", b"offset", b"explain", b"category", b"min_offset", b"wait_ms")
FLAGS = {b"true": True, b"1": True, b"false": False, b"0": False}
NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON it was asked for."""
AN_ID = f"a string of 1 to {MAX_ID_BYTES} bytes of UTF-8, not blank and without control characters"


@dataclass(frozen=True, slots=True)
class RecallQuery:
    """Which part of a user's list is asked for, and how much is told about it."""

    limit: int = DEFAULT_LIMIT
    offset: int = 0
    exclude: frozenset[str] = frozenset()
    explain: bool = False
    category: str | None = None
    explain_without: bool = False
    """Whether to tell which items leave without each of the newest clicks; `explain` is then true as well."""
    min_offset: Position | None = None
    """A place in `clicks` that the answer should reflect."""
    wait_ms: int = DEFAULT_WAIT_MS
    """How long to wait for that, in milliseconds."""

    @property
    def is_filtered(self) -> bool:
        """Whether some items are not wanted."""
        return bool(self.exclude) or self.category is not None

    @property
    def reach(self) -> int:
        """How many of the best items the answer's page ends at."""
        return self.offset + self.limit


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/recall:batch, before its values are checked."""

    user_ids: Any
    limit: Any = None
    offset: Any = 0
    exclude: Any = ()
    explain: Any = False


def decode_component(raw: bytes, *, plus_is_space: bool = False) -> str:
    """Return *raw*, one path segment or query value, percent-decoded once.

    Raises:
        Refusal: an escape is broken, or the bytes are not UTF-8.
    """
    if BROKEN_PERCENT.search(raw):
        raise refusals.bad_path("holds a % that no two hexadecimal digits follow")
    if plus_is_space:
        raw = raw.replace(b"+", b" ")
    if b"%" in raw:
        raw = ENCODED.sub(lambda found: bytes([int(found[1], 16)]), raw)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise refusals.bad_path("is not UTF-8") from error


def is_id(value: object) -> bool:
    """Return whether *value* is an id by the contract: 1 to 256 bytes of UTF-8, not blank, no control characters."""
    return is_name(value, max_bytes=MAX_ID_BYTES)


def is_name(value: object, *, max_bytes: int) -> bool:
    """Return whether *value* is 1 to *max_bytes* bytes of UTF-8, not blank, without control characters."""
    if not isinstance(value, str) or not value or value.isspace():
        return False
    if value.isascii():
        return len(value) <= max_bytes and value.isprintable()
    try:
        size = len(value.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return size <= max_bytes and not any(unicodedata.category(character) == "Cc" for character in value)


def read_id(value: object, name: str) -> str:
    """Return *value* if it is an id.

    Raises:
        Refusal: it is not; *name* says of what.
    """
    if not isinstance(value, str) or not is_id(value):
        raise refusals.bad(name, AN_ID)
    return value


def read_query(query_string: bytes, settings: Settings) -> RecallQuery:
    """Return what the query string of a recall request asks for.

    Raises:
        Refusal: a parameter is unknown, repeated or outside its range.
    """
    if not query_string:
        return RecallQuery(limit=min(DEFAULT_LIMIT, settings.max_query_items))
    found: dict[bytes, bytes] = {}
    exclude: list[bytes] = []
    for pair in query_string.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name == b"exclude":
            exclude.append(value)
        elif name not in PARAMETERS:
            raise refusals.unknown_parameter("limit, offset, exclude, category, explain, min_offset and wait_ms")
        elif name in found:
            raise refusals.bad(name.decode(), "given once")
        else:
            found[name] = value
    limit, offset = found.get(b"limit"), found.get(b"offset")
    if len(exclude) > MAX_EXCLUDED:
        raise refusals.bad("exclude", f"given at most {MAX_EXCLUDED} times")
    explain = found.get(b"explain")
    is_without = explain == WITHOUT
    category, wait = found.get(b"category"), found.get(b"wait_ms")
    if wait is not None and b"min_offset" not in found:
        raise refusals.bad("wait_ms", "given together with min_offset")
    return RecallQuery(
        limit=_limit(_whole(limit), settings) if limit is not None else min(DEFAULT_LIMIT, settings.max_query_items),
        offset=_offset(_whole(offset)) if offset is not None else 0,
        exclude=frozenset(map(_excluded, exclude)),
        explain=is_without or (_flag(explain) if explain is not None else False),
        category=_category(decode_value(category, "category")) if category is not None else None,
        explain_without=is_without,
        min_offset=_place(found[b"min_offset"]) if b"min_offset" in found else None,
        wait_ms=_wait(_whole(wait)) if wait is not None else DEFAULT_WAIT_MS,
    )


def read_limit(query_string: bytes, settings: Settings) -> int:
    """Return the one parameter that a request for neighbors takes.

    Raises:
        Refusal: it is no limit, or there is another one.
    """
    if not query_string:
        return min(DEFAULT_LIMIT, settings.max_query_items)
    name, _, value = query_string.partition(b"=")
    if name != b"limit":
        raise refusals.unknown_parameter("limit")
    return _limit(_whole(value), settings)


def no_parameters(query_string: bytes) -> None:
    """Return if a request that takes no parameters has none.

    Raises:
        Refusal: it has one.
    """
    if query_string:
        raise refusals.unknown_parameter("none")


def recall_query(
    settings: Settings, *, limit: object, offset: object, exclude: object, category: object, explain: object
) -> RecallQuery:
    """Return what the values of a JSON body ask for; *limit* and *category* None where they are left out.

    Raises:
        Refusal: one of them is wrong.
    """
    excluded = _list(exclude, "exclude", limit=MAX_EXCLUDED)
    if not isinstance(explain, bool) and explain != WITHOUT.decode():
        raise refusals.bad("explain", A_FLAG)
    return RecallQuery(
        limit=_limit(limit, settings) if limit is not None else min(DEFAULT_LIMIT, settings.max_query_items),
        offset=_offset(offset),
        exclude=frozenset(excluded),
        explain=bool(explain),
        category=_category(category) if category is not None else None,
        explain_without=explain == WITHOUT.decode(),
    )


def read_batch(body: bytes, settings: Settings) -> tuple[list[str], RecallQuery]:
    """Return the users and the query of a batch request.

    Raises:
        Refusal: the body is no such object, or one of its values is wrong; a wrong user id is named by its index.
    """
    try:
        batch = msgspec.json.decode(body, type=BatchBody)
    except NOT_JSON as error:
        raise refusals.bad("body", 'a JSON object such as {"user_ids": ["u1", "u2"], "limit": 50}') from error
    exclude = _list(batch.exclude, "exclude", limit=MAX_EXCLUDED)
    limit = batch.limit if batch.limit is not None else min(DEFAULT_LIMIT, settings.max_query_items)
    if not isinstance(batch.explain, bool):
        raise refusals.bad("explain", "true or false")
    users = _list(batch.user_ids, "user_ids", limit=MAX_BATCH_USERS)
    if not users:
        raise refusals.bad("user_ids", f"a list of 1 to {MAX_BATCH_USERS} user ids")
    query = RecallQuery(_limit(limit, settings), _offset(batch.offset), frozenset(exclude), batch.explain)
    return users, query


def _list(value: object, name: str, *, limit: int) -> list[str]:
    if not isinstance(value, list | tuple):
        raise refusals.bad(name, "a list of ids")
    if len(value) > limit:
        raise refusals.too_many(name, limit=limit)
    for index, entry in enumerate(value):
        if not is_id(entry):
            raise refusals.bad_at(name, index, AN_ID)
    return list(value)


def _excluded(value: bytes) -> str:
    return read_id(decode_value(value, "exclude"), "exclude")


def decode_value(value: bytes, name: str) -> str:
    """Return the percent-decoded *value* of the parameter *name*.

    Raises:
        Refusal: it is not percent-encoded UTF-8.
    """
    try:
        return decode_component(value, plus_is_space=True)
    except refusals.Refusal as error:
        raise refusals.bad(name, "text, percent-encoded as UTF-8") from error


def _category(value: object) -> str:
    if not isinstance(value, str) or not is_name(value, max_bytes=MAX_TEXT_BYTES):
        raise refusals.bad("category", A_CATEGORY)
    return value


def _place(value: bytes) -> Position:
    place = PLACE.fullmatch(value)
    if place is None:
        raise refusals.bad("min_offset", "partition:offset, as POST /v1/clicks answers them, given once")
    return Position(int(place[1]), int(place[2]))


def _wait(value: int) -> int:
    if not 0 <= value <= MAX_WAIT_MS:
        raise refusals.bad("wait_ms", f"a whole number from 0 to {MAX_WAIT_MS}, given once")
    return value


def _whole(value: bytes) -> int:
    return int(value) if DIGITS.fullmatch(value) else -1


def _limit(value: object, settings: Settings) -> int:
    if type(value) is not int or not 1 <= value <= settings.max_query_items:
        raise refusals.bad("limit", f"a whole number from 1 to {settings.max_query_items}, given once")
    return value


def _offset(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_OFFSET:
        raise refusals.bad("offset", f"a whole number from 0 to {MAX_OFFSET}, given once")
    return value


def _flag(value: bytes) -> bool:
    if value not in FLAGS:
        raise refusals.bad("explain", A_FLAG)
    return FLAGS[value]
