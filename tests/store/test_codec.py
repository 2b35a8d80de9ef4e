from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import WindowDecodeError
from engine.events import ClickEvent
from engine.store import codec
from engine.store.codec import DerivedRow, Mark, ProfileValue
from tests.builders import make_click

IDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)
TIMES = st.integers(min_value=0, max_value=codec.GREATEST_MS)


@given(first=st.tuples(TIMES, IDS), second=st.tuples(TIMES, IDS))
def test_keys_sort_the_newest_click_first_and_of_one_millisecond_the_greatest_identity(
    first: tuple[int, str], second: tuple[int, str]
) -> None:
    earlier, later = sorted([first, second], key=lambda order: (order[0], order[1].encode()))

    keys = [codec.click_order(make_click(clicked_at_ms=at, event_id=name)) for at, name in (later, earlier)]

    assert keys == sorted(keys)
    assert (keys[0] == keys[1]) == (first == second)


@given(at=TIMES, item_id=IDS, event_id=st.none() | IDS, event_type=IDS, weight=st.floats(0, 1e6, allow_subnormal=False))
def test_a_click_comes_back_as_it_was(
    at: int, item_id: str, event_id: str | None, event_type: str, weight: float
) -> None:
    click = make_click(item_id=item_id, clicked_at_ms=at, event_id=event_id, event_type=event_type[:16], weight=weight)

    stored = codec.decode_click("u1", codec.click_order(click), codec.encode_click(click))

    assert stored == click


PLAIN = st.builds(make_click, item_id=IDS, clicked_at_ms=TIMES, event_id=IDS)
ANY = PLAIN | st.builds(
    make_click,
    item_id=IDS,
    clicked_at_ms=TIMES,
    event_id=st.none() | IDS,
    event_type=st.sampled_from(["click", "hide", "buy"]),
    weight=st.sampled_from([1.0, 2.0]),
)


@given(clicks=st.lists(PLAIN, max_size=12) | st.lists(ANY, max_size=12))
def test_many_clicks_come_back_as_each_does(clicks: list[ClickEvent]) -> None:
    orders, values = [*map(codec.click_order, clicks)], [*map(codec.encode_click, clicks)]

    assert codec.decode_clicks("u1", orders, values) == clicks


def test_a_format_of_a_newer_build_is_refused_among_many_clicks_too() -> None:
    clicks = [make_click(clicked_at_ms=at, event_id=f"e{at}") for at in range(20)]
    orders, values = [*map(codec.click_order, clicks)], [*map(codec.encode_click, clicks)]
    values[11] = bytes([codec.FORMAT + 1]) + values[11][1:]

    with pytest.raises(WindowDecodeError):
        codec.decode_clicks("u1", orders, values)


@given(negative=st.tuples(TIMES, IDS), positive=st.tuples(TIMES, IDS))
def test_negative_clicks_lie_before_all_others_of_their_user_and_behind_the_prefix(
    negative: tuple[int, str], positive: tuple[int, str]
) -> None:
    clicks = [
        make_click(clicked_at_ms=at, event_id=name, event_type=kind)
        for (at, name), kind in ((negative, "hide"), (positive, "click"))
    ]

    first, second = (codec.user_prefix(codec.CLICKS, b"u1") + codec.click_order(click) for click in clicks)

    assert codec.user_prefix(codec.CLICKS, b"u1") < first < codec.clicks_range(b"u1")[1] <= second
    assert second < codec.after_user(codec.CLICKS, b"u1")


def test_one_users_keys_never_run_into_the_next_users() -> None:
    click = make_click(clicked_at_ms=0, item_id="z" * 256)
    key = codec.user_prefix(codec.CLICKS, b"ann") + codec.click_order(click)

    assert key < codec.after_user(codec.CLICKS, b"ann") < codec.user_prefix(codec.CLICKS, b"ann ")


def test_stored_bytes_of_format_1_stay_what_they_are() -> None:
    click = make_click(clicked_at_ms=1_000, item_id="i1", event_id="e1", event_type="buy", weight=2.5)

    assert codec.click_order(click).hex() == "fffffffffffffc179aceff"
    assert codec.encode_click(click) == b"\x01\x01" + struct.pack(">d", 2.5) + b"\x03buyi1"
    assert codec.encode_marks([Mark("u1", 7, None)]) == b"\x01\x91\x93\xa2u1\x07\xc0"
    assert codec.marks_key(7) == b"m" + struct.pack(">Q", 7)


@pytest.mark.parametrize("decode", [codec.decode_profile, codec.decode_marks, codec.decode_derived])
def test_a_value_of_a_format_from_the_future_is_refused_by_number(decode: object) -> None:
    with pytest.raises(WindowDecodeError, match="format 9; this build reads 1"):
        decode(b"\x09" + bytes(30))  # type: ignore[operator]


def test_profile_marks_and_derived_row_come_back_as_they_were() -> None:
    profile, derived = ProfileValue(5, "é".encode(), "FR"), DerivedRow(1, 2, 3)

    assert codec.decode_profile(codec.encode_profile(profile)) == profile
    assert codec.decode_profile(codec.encode_profile(profile._replace(value=2.5))).value == 2.5
    assert codec.decode_derived(codec.encode_derived(derived)) == derived
    assert codec.decode_marks(codec.encode_marks([Mark("é", 2**40, None)])) == [Mark("é", 2**40, None)]
    assert codec.decode_marks_key(codec.marks_key(2**40)) == 2**40
