"""The engine's decoder and the auditor's, written apart, must agree on which bytes are a click and on its values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.audit.messages import Entry, Refused, Rules, partition_of, read_click
from engine.errors import MalformedEvent
from engine.events import decode_click
from tests.builders import NOON_MS

RULES = Rules(partitions=1, max_clicks=50, max_message_bytes=4_096)
USER = "u42"
GOOD: dict[str, Any] = {"user_id": USER, "item_id": "85123A", "clicked_at_ms": NOON_MS}

KNOWN_TEXTS = [
    *("", " ", "\u2003", "a\x00b", "a\x7f", "\x85", "\u202e", "é", "e\u0301", "🎉", "../x", '"', "a" * 256, "é" * 129),
    *("x" * 64, "x" * 65, "x" * 257),
]
INTEGERS = st.sampled_from([0, 1, -1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, NOON_MS // 1000, NOON_MS * 1000])
TIMES = st.one_of(
    INTEGERS,
    st.integers(NOON_MS - 100, NOON_MS + 60_100),
    st.integers(NOON_MS // 1000 - 20 * 366 * 86_400 - 2, NOON_MS // 1000 + 62),
)
NUMBERS = st.one_of(TIMES, st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, 1e6, 1e6 + 1, 5e-324]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.sampled_from(KNOWN_TEXTS))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", *KNOWN_TEXTS]), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = st.dictionaries(
    st.sampled_from(["user_id", "item_id", "clicked_at_ms", "event_id", "event_type", "weight", "profile", "extra"]),
    VALUES,
    max_size=3,
)
LIKELY = st.fixed_dictionaries(
    {"clicked_at_ms": TIMES},
    optional={
        "event_id": st.sampled_from(KNOWN_TEXTS),
        "event_type": st.sampled_from(KNOWN_TEXTS),
        "weight": NUMBERS,
        "profile": st.dictionaries(st.sampled_from(KNOWN_TEXTS), SCALARS, max_size=3),
    },
)
PIECES = [
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b" ", b"\n", b"\t", b"\x00", b"\xff", b"\xc3", b"\xef\xbb\xbf"),
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"-0.0", b"1.0", b"00", b"+1", b"1.", b".5", b"1E5"),
    *(b"null", b"true", b"\\ud800", b"\\udc00", b"\\ud83c\\udf89", b"\\u0000", b"\\x", b'"user_id":"u42",'),
    *(b'"extra":{"a":1,"a":2},', b'"a":1,"\\u0061":2,', b"[" * 31, b"9" * 400, b"9" * 5_000, b"0." + b"1" * 50, b"//"),
]


def engine_reads(value: bytes, key: bytes | None = USER.encode()) -> tuple[object, ...] | None:
    try:
        click = decode_click(
            value, key=key, recorded_at_ms=NOON_MS, future_tolerance_ms=60_000, max_message_bytes=4_096
        )
    except MalformedEvent:
        return None
    values = (click.user_id, click.item_id, click.clicked_at_ms, click.event_id, click.event_type, click.weight)
    return *values, tuple((click.profile or {}).items())


def auditor_reads(value: bytes, key: bytes | None = USER.encode()) -> tuple[object, ...] | None:
    try:
        return tuple(read_click(Entry(0, 0, NOON_MS, key, value), RULES))
    except Refused:
        return None


@settings(max_examples=200, deadline=None)
@given(FIELDS)
@example({"event_id": None})
@example({"profile": {}})
@example({"weight": -0.0})
@example({"clicked_at_ms": 1.0})
@example({"profile": {"x": 10**400}})
def test_both_decoders_agree_on_fields_of_any_value(fields: dict[str, Any]):
    value = json.dumps({**GOOD, **fields}).encode()

    assert auditor_reads(value) == engine_reads(value)


@settings(max_examples=200, deadline=None)
@given(LIKELY, st.booleans())
def test_both_decoders_agree_on_fields_near_their_limits(fields: dict[str, Any], as_ascii: bool):
    value = json.dumps({**GOOD, **fields}, ensure_ascii=as_ascii).encode()

    assert auditor_reads(value) == engine_reads(value)


@settings(max_examples=400, deadline=None)
@given(
    LIKELY,
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 6), st.sampled_from(PIECES)), min_size=1, max_size=3),
)
def test_both_decoders_agree_on_mutated_bytes(fields: dict[str, Any], mutations: list[tuple[int, int, bytes]]):
    value = json.dumps({**GOOD, **fields}).encode()
    for place, cut, piece in mutations:
        at = place % (len(value) + 1)
        value = value[:at] + piece + value[at + cut :]

    assert auditor_reads(value) == engine_reads(value)


@pytest.mark.parametrize("name", [*GOOD, "event_id", "weight", "profile", "extra"])
def test_both_decoders_agree_on_a_field_with_raw_bytes_for_a_value(name: str):
    rest = json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()[1:]
    frames = [b"%s", b'"%s"', b'{"a": %s}', b'{"a": "%s"}', b"[%s]"]
    values = [b'{"' + name.encode() + b'": ' + frame % raw + b", " + rest for frame in frames for raw in PIECES]

    assert [value for value in values if auditor_reads(value) != engine_reads(value)] == []


@pytest.mark.parametrize("depth", [1, 29, 30, 31, 32, 33, 900, 1_900])
@pytest.mark.parametrize("shape", ["[{}]", '{{"a":{}}}'])
def test_both_decoders_agree_on_depth(depth: int, shape: str):
    nested = "1"
    for _ in range(depth):
        nested = shape.replace("{}", nested).replace("{{", "{").replace("}}", "}")
    value = json.dumps({**GOOD, "extra": 0}).replace('"extra": 0', f'"extra": {nested}').encode()

    assert auditor_reads(value) == engine_reads(value)


@given(st.one_of(st.none(), st.sampled_from([b"", b"u42", b"u4", b"U42", b"\xff", b'"u42"'])))
def test_both_decoders_agree_on_keys(key: bytes | None):
    value = json.dumps(GOOD).encode()

    assert auditor_reads(value, key) == engine_reads(value, key)


def test_partition_is_the_one_kafkas_client_chooses():
    from kafka.partitioner.default import murmur2

    keys = [f"user-{n}".encode() * (n % 5 + 1) for n in range(200)]

    assert [partition_of(key, 7) for key in keys] == [(murmur2(key) & 0x7FFFFFFF) % 7 for key in keys]
