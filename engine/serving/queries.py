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

from engine.events import MAX_ID_BYTES
from engine.serving import refusals
from engine.settings import Settings

DEFAULT_LIMIT = 50
MAX_OFFSET = 100_000
MAX_EXCLUDED = 1_000
MAX_BATCH_USERS = 1_000
DIGITS = re.compile(rb"[0-9]{1,9}")
BROKEN_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")
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
    if not isinstance(value, str) or not value or value.isspace():
        return False
    if value.isascii():
        return len(value) <= MAX_ID_BYTES and value.isprintable()
    try:
        size = len(value.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return size <= MAX_ID_BYTES and not any(unicodedata.category(character) == "Cc" for character in value)


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
        elif name not in (b"limit", b"offset", b"explain"):
            raise refusals.Refusal(
                400, "unknown_parameter", "the query knows the parameters limit, offset, exclude and explain"
            )
        elif name in found:
            raise refusals.bad(name.decode(), "given once")
        else:
            found[name] = value
    limit, offset = found.get(b"limit"), found.get(b"offset")
    if len(exclude) > MAX_EXCLUDED:
        raise refusals.bad("exclude", f"given at most {MAX_EXCLUDED} times")
    return RecallQuery(
        limit=_limit(_whole(limit), settings) if limit is not None else min(DEFAULT_LIMIT, settings.max_query_items),
        offset=_offset(_whole(offset)) if offset is not None else 0,
        exclude=frozenset(map(_excluded, exclude)),
        explain=_flag(found[b"explain"]) if b"explain" in found else False,
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
    try:
        return read_id(decode_component(value, plus_is_space=True), "exclude")
    except refusals.Refusal as error:
        raise refusals.bad("exclude", f"{AN_ID}, percent-encoded as UTF-8") from error


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
        raise refusals.bad("explain", "true or false")
    return FLAGS[value]
