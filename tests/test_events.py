from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import MalformedEvent
from engine.events import (
    REASONS,
    ClickEvent,
    ItemEvent,
    decode_click,
    decode_item,
    encode_click,
    encode_item,
)
from tests.builders import NOON_MS, make_click

DAY_MS = 86_400_000
GOOD = b'{"user_id":"u1","item_id":"i1","clicked_at_ms":1291204800000}'


def decode(value: bytes, *, key: bytes | None = b"u1", recorded_at_ms: int = NOON_MS) -> ClickEvent:
    return decode_click(
        value, key=key, recorded_at_ms=recorded_at_ms, future_tolerance_ms=60_000, max_message_bytes=65_536
    )


def reason_of(value: bytes, *, key: bytes | None = b"u1", recorded_at_ms: int = NOON_MS) -> str:
    with pytest.raises(MalformedEvent) as caught:
        decode(value, key=key, recorded_at_ms=recorded_at_ms)
    assert caught.value.reason in REASONS
    return caught.value.reason


def click_with(**fields: object) -> bytes:
    return json.dumps({"user_id": "u1", "item_id": "i1", "clicked_at_ms": NOON_MS} | fields).encode()


def raw_with(fragment: str) -> bytes:
    """Return a good click with *fragment* of raw JSON put in as further fields."""
    return GOOD[:-1] + b"," + fragment.encode() + b"}"


def outcome(value: bytes, *, recorded_at_ms: int) -> ClickEvent | str:
    """Return the click that *value* is taken for, or why it is not."""
    try:
        return decode(value, recorded_at_ms=recorded_at_ms)
    except MalformedEvent as error:
        return error.reason


# --- good ones


@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "item_id": st.sampled_from(["i1", "", " ", "x" * 256, "x" * 257, "a\x7fb", "é", 7, None]),
            "event_id": st.sampled_from(["e1", "", "  ", "x" * 257, None]),
            "event_type": st.sampled_from(["buy", "click", "", " ", "x" * 65, None]),
            "weight": st.sampled_from([0, -0.0, 2.5, -1, 1e6, 2e6, "1", None]),
            "clicked_at_ms": st.sampled_from(
                [0, -1, NOON_MS, NOON_MS // 1000, NOON_MS * 1000, NOON_MS + 60_001, 2**63]
            ),
            "page": st.just("home"),
        },
    ),
    recorded_at_ms=st.sampled_from([-1, 0, 5, NOON_MS, 2**63 - 1]),
)
def test_plain_ascii_is_judged_as_the_same_message_with_an_escape_is(
    fields: dict[str, object], recorded_at_ms: int
) -> None:
    plain = click_with(**fields)  # may go the short way; an escape never does
    escaped = plain.replace(b'"u1"', b'"\\u00751"')

    assert escaped != plain
    assert repr(outcome(plain, recorded_at_ms=recorded_at_ms)) == repr(outcome(escaped, recorded_at_ms=recorded_at_ms))


def test_a_click_with_the_required_fields_is_taken_and_the_rest_has_defaults() -> None:
    assert decode(GOOD) == make_click()


def test_a_click_with_every_field_is_taken() -> None:
    click = make_click(event_id="e1", event_type="buy", weight=2.5, profile={"country": "FR", "age": 31.0})

    assert decode(encode_click(click)) == click


@given(
    item_id=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=60).filter(str.strip),
    event_id=st.none() | st.text('abc:{}[]"\\é😀', min_size=1, max_size=20),
    weight=st.floats(0, 1e6),
    profile=st.none()
    | st.dictionaries(
        st.text("ab:", min_size=1, max_size=9),
        st.text('x:"', max_size=9) | st.floats(-1e9, 1e9),
        min_size=1,
        max_size=9,
    ),
)
def test_what_is_encoded_comes_back_whatever_the_text(
    item_id: str, event_id: str | None, weight: float, profile: dict[str, str | float] | None
) -> None:
    click = make_click(item_id=item_id, event_id=event_id, weight=weight, profile=profile)

    assert decode(encode_click(click)) == click


def test_fields_we_do_not_know_are_ignored_whatever_they_hold() -> None:
    assert decode(click_with(schema_version=9, __faust={"ns": "os.system"}, more=[1, {"a": None}])) == make_click()


def test_a_number_of_attributes_is_a_float_and_an_empty_profile_is_none() -> None:
    assert decode(click_with(profile={"age": 31})).profile == {"age": 31.0}
    assert decode(click_with(profile={})).profile is None


@pytest.mark.parametrize(
    "user_id", ["a b", "../etc", "'\"", "😀", "\u202ertl", "\u00e9", "e\u0301", "x" * 256, "é" * 128]
)
def test_ids_of_any_text_without_control_characters_are_taken(user_id: str) -> None:
    assert decode(click_with(user_id=user_id), key=user_id.encode()).user_id == user_id


def test_two_spellings_of_one_name_are_two_ids() -> None:
    composed, decomposed = "\u00e9", "e\u0301"

    assert decode(click_with(item_id=composed)).identity != decode(click_with(item_id=decomposed)).identity


@pytest.mark.parametrize("clicked_at_ms", [0, 1, 10_000_000])
def test_old_clicks_are_taken_the_window_decides(clicked_at_ms: int) -> None:
    assert decode(click_with(clicked_at_ms=clicked_at_ms)).clicked_at_ms == clicked_at_ms


def test_minus_zero_is_zero() -> None:
    click = decode(b'{"user_id":"u1","item_id":"i1","clicked_at_ms":-0,"weight":-0.0}')

    assert click.clicked_at_ms == 0
    assert math.copysign(1, click.weight) == 1


def test_a_record_without_a_timestamp_is_not_judged_by_any_clock() -> None:
    year_9999_ms = 253_370_764_800_000

    assert decode(click_with(clicked_at_ms=year_9999_ms), recorded_at_ms=-1).clicked_at_ms == year_9999_ms


def test_a_click_at_the_edge_of_the_tolerance_is_taken() -> None:
    assert decode(click_with(clicked_at_ms=NOON_MS + 60_000)).clicked_at_ms == NOON_MS + 60_000


# --- bad ones


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(b"", "empty", id="no bytes"),
        pytest.param(GOOD[:-1] + b" " * 65_536 + b"}", "size", id="too long"),
        pytest.param(b"{" * 900_000, "size", id="900 KB of nesting is not read"),
        pytest.param(GOOD[:20], "json", id="half a message"),
        pytest.param(b"}{", "json", id="not JSON"),
        pytest.param(b"hello", "json", id="a word"),
        pytest.param(GOOD + b"{", "json", id="something behind it"),
        pytest.param(GOOD + GOOD, "json", id="two messages"),
        pytest.param(b'{"user_id":"u1","item_id":"i1","clicked_at_ms":01291204800000}', "json", id="a leading zero"),
        pytest.param(b'{"user_id":"u\n1","item_id":"i1","clicked_at_ms":1}', "json", id="a raw line break"),
        pytest.param(b'{"user_id":"\xff","item_id":"i1","clicked_at_ms":1}', "encoding", id="invalid UTF-8"),
        pytest.param(raw_with('"x":"?"').replace(b"?", b"\xff"), "encoding", id="invalid UTF-8 in an unknown field"),
        pytest.param(b"\xef\xbb\xbf" + GOOD, "encoding", id="byte order mark"),
        pytest.param(GOOD.decode().encode("utf-16"), "encoding", id="UTF-16"),
        pytest.param(GOOD.decode().encode("utf-16-le"), "encoding", id="UTF-16 without a mark"),
        pytest.param(b'{"user_id":"\\ud800","item_id":"i1","clicked_at_ms":1}', "encoding", id="half a surrogate"),
        pytest.param(raw_with('"x":"\\ud800"'), "encoding", id="half a surrogate in an unknown field"),
        pytest.param(b"[]", "type", id="array"),
        pytest.param(b'"click"', "type", id="string"),
        pytest.param(b"5", "type", id="number"),
        pytest.param(b"null", "type", id="null"),
        pytest.param(raw_with('"user_id":"u1"'), "duplicate_key", id="a key twice"),
        pytest.param(raw_with('"user_\\u0069d":"u2"'), "duplicate_key", id="a key twice, once escaped"),
        pytest.param(raw_with('"x":1,"x":1'), "duplicate_key", id="an unknown key twice"),
        pytest.param(raw_with('"profile":{"a":1,"a":2}'), "duplicate_key", id="an attribute twice"),
        pytest.param(raw_with('"x":' + "[" * 1_000 + "]" * 1_000), "depth", id="1,000 arrays deep"),
        pytest.param(raw_with('"x":' + "[" * 30_000 + "]" * 30_000), "depth", id="30,000 arrays deep"),
        pytest.param(b"[" * 60_000, "depth", id="60,000 arrays deep and cut off"),
        pytest.param(raw_with('"x":' + '{"a":' * 9_000 + "1" + "}" * 9_000), "depth", id="9,000 objects deep"),
        pytest.param(raw_with('"weight":NaN'), "number", id="NaN"),
        pytest.param(raw_with('"weight":Infinity'), "number", id="Infinity"),
        pytest.param(raw_with('"weight":-Infinity'), "number", id="-Infinity"),
        pytest.param(raw_with('"weight":1e999'), "number", id="1e999"),
        pytest.param(raw_with('"profile":{"age":1e999}'), "number", id="1e999 in the profile"),
    ],
)
def test_what_is_not_one_sound_json_object_is_refused(value: bytes, reason: str) -> None:
    assert reason_of(value) == reason


@pytest.mark.parametrize("field", ["user_id", "item_id", "clicked_at_ms"])
def test_a_missing_field_is_named(field: str) -> None:
    fields = json.loads(GOOD)
    del fields[field]

    with pytest.raises(MalformedEvent, match=f"missing: .*{field}"):
        decode(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": 5},
        {"item_id": 85123},
        {"item_id": None},
        {"item_id": True},
        {"clicked_at_ms": "now"},
        {"clicked_at_ms": 1.0},
        {"clicked_at_ms": 1.5},
        {"clicked_at_ms": True},
        {"clicked_at_ms": None},
        {"event_id": 7},
        {"event_id": None},
        {"event_type": None},
        {"weight": "1"},
        {"weight": True},
        {"weight": None},
        {"profile": []},
        {"profile": None},
        {"profile": {"a": None}},
        {"profile": {"a": True}},
        {"profile": {"a": {"b": 1}}},
        {"profile": {"a": ["b"]}},
    ],
    ids=str,
)
def test_nothing_is_coerced(fields: dict[str, object]) -> None:
    assert reason_of(click_with(**fields)) == "type"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"clicked_at_ms": -1}, "range"),
        ({"clicked_at_ms": 2**63}, "range"),
        ({"clicked_at_ms": 2**64}, "range"),
        ({"clicked_at_ms": 10**400}, "range"),
        ({"weight": -0.1}, "range"),
        ({"weight": 1_000_001}, "range"),
    ],
    ids=str,
)
def test_numbers_have_a_range(fields: dict[str, object], reason: str) -> None:
    assert reason_of(click_with(**fields)) == reason


def test_a_number_of_5000_digits_is_refused() -> None:
    assert reason_of(GOOD.replace(b"1291204800000", b"9" * 5_000)) == "range"
    assert reason_of(raw_with('"weight":' + "9" * 5_000)) == "number"
    assert decode(raw_with('"x":' + "9" * 5_000)) == make_click()


@pytest.mark.parametrize("bad", ["", " ", "   ", "x" * 257, "é" * 129, "a\x00b", "a\nb", "\x1b[31m", "a\x7f", "a\x85"])
@pytest.mark.parametrize("field", ["user_id", "item_id", "event_id"])
def test_ids_are_1_to_256_bytes_without_control_characters(field: str, bad: str) -> None:
    assert reason_of(click_with(**{field: bad}), key=bad.encode()) == field


@pytest.mark.parametrize("bad", ["", "x" * 65, "a\tb"])
def test_an_event_type_is_1_to_64_bytes(bad: str) -> None:
    assert reason_of(click_with(event_type=bad)) == "event_type"


@pytest.mark.parametrize(
    "profile",
    [
        {f"a{number}": 1 for number in range(33)},
        {"": 1},
        {"x" * 65: 1},
        {"a\x00": 1},
        {"a": "x" * 257},
        {"a": "x\x00"},
    ],
    ids=["33 attributes", "no name", "long name", "control character in a name", "long value", "control in a value"],
)
def test_a_profile_has_bounds(profile: dict[str, object]) -> None:
    assert reason_of(click_with(profile=profile)) == "profile"


def test_a_click_from_the_future_of_its_record_is_refused() -> None:
    assert reason_of(click_with(clicked_at_ms=NOON_MS + 60_001)) == "future"
    assert reason_of(click_with(clicked_at_ms=253_370_764_800_000)) == "future"


@pytest.mark.parametrize(
    ("clicked_at_ms", "unit"),
    [(NOON_MS // 1_000, "seconds"), (NOON_MS * 1_000, "microseconds"), (NOON_MS * 1_000_000, "nanoseconds")],
)
def test_a_time_in_another_unit_is_recognized(clicked_at_ms: int, unit: str) -> None:
    with pytest.raises(MalformedEvent, match=f"ts_unit: .*looks like {unit}"):
        decode(click_with(clicked_at_ms=clicked_at_ms))


def test_seconds_of_long_ago_are_taken_for_an_old_click() -> None:
    thirty_years_ms = 30 * 366 * DAY_MS

    assert decode(click_with(clicked_at_ms=(NOON_MS - thirty_years_ms) // 1_000))


def test_the_key_is_the_user_id() -> None:
    assert reason_of(GOOD, key=None) == "key"
    assert reason_of(GOOD, key=b"u2") == "key_mismatch"
    assert reason_of(GOOD, key=b"") == "key_mismatch"
    assert reason_of(click_with(user_id="é"), key=b"e\xcc\x81") == "key_mismatch"


def test_a_reason_and_its_detail_hold_nothing_that_the_sender_wrote() -> None:
    for value in (click_with(user_id="secret\x00"), raw_with('"secret":NaN'), raw_with('"profile":{"secret":null}')):
        with pytest.raises(MalformedEvent) as caught:
            decode(value)
        assert "secret" not in str(caught.value)


# --- whatever comes


def decode_or_none(value: bytes, *, key: bytes | None = b"u1") -> ClickEvent | None:
    try:
        return decode(value, key=key)
    except MalformedEvent as error:
        return None if error.reason in REASONS else decode(b"an unknown reason")


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_nothing_else_is_raised(value: bytes) -> None:
    with pytest.raises(MalformedEvent):
        decode(value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["user_id", "item_id", "clicked_at_ms", "event_id", "event_type", "weight", "profile", "other", "a:b"]
)


@given(st.dictionaries(FIELDS, JSON_VALUES, max_size=7), st.binary(max_size=6) | st.none())
@example({"user_id": "u1", "item_id": "i", "clicked_at_ms": 5, "other": float("nan")}, b"u1")
def test_mutated_clicks_are_taken_or_refused_and_nothing_else_is_raised(
    fields: dict[str, object], key: bytes | None
) -> None:
    value = json.dumps({"user_id": "u1", "item_id": "i1", "clicked_at_ms": NOON_MS} | fields).encode()
    click = decode_or_none(value, key=key)

    if click is not None:
        assert click.user_id.encode() == key
        assert decode(encode_click(click), key=key) == click


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=3))
def test_a_click_with_a_few_bytes_overwritten_is_taken_or_refused(at: int, noise: bytes) -> None:
    decode_or_none(GOOD[:at] + noise + GOOD[at + len(noise) :])


# --- items


def decode_one_item(value: bytes, *, key: bytes | None = b"i1") -> ItemEvent:
    return decode_item(value, key=key, max_message_bytes=65_536)


def test_an_item_comes_back_as_it_was() -> None:
    item = ItemEvent(
        item_id="i1",
        title="A lantern",
        category="lantern",
        brand="b",
        shop="s",
        features={"price_band": "low", "g": 2.0},
    )

    assert decode_one_item(encode_item(item)) == item
    assert decode_one_item(b'{"item_id":"i1","removed":true}') == ItemEvent(item_id="i1", removed=True)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "empty"),
        (b"{}", "missing"),
        (b'{"item_id":""}', "item_id"),
        (b'{"item_id":"i1","title":""}', "text"),
        (b'{"item_id":"i1","title":"' + b"x" * 1_025 + b'"}', "text"),
        (b'{"item_id":"i1","brand":null}', "type"),
        (b'{"item_id":"i1","removed":1}', "type"),
        (b'{"item_id":"i1","features":{"a":{}}}', "type"),
        (b'{"item_id":"i1","features":{"":1}}', "features"),
        (b'{"item_id":"i1","item_id":"i1"}', "duplicate_key"),
        (b'{"item_id":"i2"}', "key_mismatch"),
    ],
)
def test_a_bad_item_is_refused(value: bytes, reason: str) -> None:
    with pytest.raises(MalformedEvent) as caught:
        decode_one_item(value)

    assert caught.value.reason == reason


def test_every_reason_is_explained_in_the_page_on_events() -> None:
    page = (Path(__file__).parent.parent / "docs" / "events.md").read_text()

    assert [reason for reason in REASONS if f"| `{reason}` |" not in page] == []
