"""What stores of every format hold, byte for byte: a change of the layout reads what is out there, or refuses it.

The files in `tests/golden` were written once. Where a test here fails, don't write them again: give the new layout a
format of its own, read both or say what to do, and keep the old file. Format 1 kept negative clicks in the places of
the others, so that windows had lost clicks which format 2 keeps: no reading makes them right, and the log does.
Format 2 had a key for every dirty mark; a store of it is written anew when it is opened.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StoreFormatError
from engine.events import ClickEvent
from engine.store import codec
from engine.store.codec import CLICKS, DERIVED, OLD_MARKS, PROFILES, DerivedRow, Mark, ProfileValue
from engine.store.header import first_difference
from engine.store.rocksdb import open_for_writing, scan
from engine.store.windows import PartitionStore
from tests.store.stores import HEADER

GOLDEN = Path(__file__).parent.parent / "golden"


def stored_by(store_format: int) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((GOLDEN / f"store-format-{store_format}.json").read_text())
    return held


STORED = stored_by(codec.STORE_FORMAT)


def raw(entry: dict[str, Any]) -> tuple[bytes, bytes]:
    return bytes.fromhex(entry["key"]), bytes.fromhex(entry["value"])


def test_values_have_the_format_that_is_written() -> None:
    assert STORED["format"] == codec.FORMAT


@pytest.mark.parametrize("entry", STORED["clicks"], ids=lambda entry: entry["click"]["item_id"])
def test_clicks(entry: dict[str, Any]) -> None:
    (key, value), click = raw(entry), ClickEvent(**entry["click"])
    prefix = codec.user_prefix(CLICKS, click.user_id.encode())

    assert (prefix + codec.click_order(click), codec.encode_click(click)) == (key, value)
    assert codec.decode_click(click.user_id, key[len(prefix) :], value) == click


@pytest.mark.parametrize("entry", STORED["profiles"], ids=lambda entry: entry["name"])
def test_profiles(entry: dict[str, Any]) -> None:
    (key, value), row = raw(entry), ProfileValue(entry["clicked_at_ms"], entry["identity"].encode(), entry["held"])

    assert codec.user_prefix(PROFILES, b"u1") + entry["name"].encode() == key
    assert codec.encode_profile(row) == value
    assert codec.decode_profile(value) == row


@pytest.mark.parametrize("entry", STORED["marks"], ids=lambda entry: str(entry["number"]))
def test_marks(entry: dict[str, Any]) -> None:
    (key, value), number, marks = raw(entry), entry["number"], [Mark(*mark) for mark in entry["marks"]]

    assert (codec.marks_key(number), codec.encode_marks(marks)) == (key, value)
    assert codec.decode_marks_key(key) == number
    assert codec.decode_marks(value) == marks


@pytest.mark.parametrize("entry", STORED["derived"], ids=lambda entry: str(entry["row"]))
def test_derived_rows(entry: dict[str, Any]) -> None:
    (key, value), row = raw(entry), DerivedRow(*entry["row"])

    assert (DERIVED + b"u1", codec.encode_derived(row)) == (key, value)
    assert codec.decode_derived(value) == row


def test_offset_and_place_of_erasures() -> None:
    offset, erased = STORED["offset"], STORED["erased"]

    assert raw(offset) == (codec.OFFSET_KEY, codec.encode_offset(offset["offset"]))
    assert codec.decode_offset(raw(offset)[1]) == offset["offset"]
    assert raw(erased) == (codec.ERASED_KEY, codec.encode_erased(erased["place"], erased["topic_id"]))
    assert codec.decode_erased(raw(erased)[1]) == (erased["place"], erased["topic_id"])


def write_store(path: Path, stored: dict[str, Any], *, store_format: int) -> None:
    db = open_for_writing(path)
    for kind in ("clicks", "profiles", "marks", "derived"):
        for entry in stored[kind]:
            db.put(*raw(entry))
    db.put(*raw(stored["offset"]))
    db.put(codec.HEADER_KEY, json.dumps(asdict(HEADER) | {"format": store_format}).encode())
    db.close()


@pytest.mark.parametrize(("store_format", "waiting"), [(2, 1), (3, 2)])
def test_a_store_that_holds_them_opens_with_its_windows_marks_and_lists(
    tmp_path: Path, store_format: int, waiting: int
) -> None:
    stored = stored_by(store_format)
    write_store(tmp_path / "store", stored, store_format=store_format)

    store = PartitionStore.open(tmp_path / "store", HEADER)

    clicks = [ClickEvent(**entry["click"]) for entry in stored["clicks"]]
    assert store.applied_offset == stored["offset"]["offset"]
    assert store.read_window("u1").clicks == tuple(clicks[:2])
    assert store.read_window(clicks[2].user_id).clicks == (clicks[2],)
    assert store.read_profile("u1") == {"age": 41.0, "country": "FR"}
    assert store.count_dirty() == waiting
    store.close()


def test_a_store_of_format_2_keeps_its_marks_until_they_are_settled(tmp_path: Path) -> None:
    write_store(tmp_path / "store", stored_by(2), store_format=2)
    PartitionStore.open(tmp_path / "store", HEADER).close()

    store = PartitionStore.open(tmp_path / "store", HEADER)
    batch = store.take_dirty(10)
    waited = [(user.user_id, user.accepted_at_ms) for user in batch.users]
    store.settle(batch, [])
    store.close()

    last = PartitionStore.open(tmp_path / "store", HEADER)
    assert waited == [("u1", 1_291_189_560_100)]
    assert last.count_dirty() == 0
    assert not list(scan(last._db.iter(), OLD_MARKS))
    last.close()


def test_a_store_of_a_later_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write_store(tmp_path / "store", STORED, store_format=codec.STORE_FORMAT + 1)

    with pytest.raises(StoreFormatError, match=r"has format 4, this process expects 3; .*the release that wrote it"):
        PartitionStore.open(tmp_path / "store", HEADER)


@pytest.mark.parametrize(("store_format", "is_read"), [(1, False), (2, True), (3, True), (4, False)])
def test_a_checkpoint_is_taken_where_its_store_can_be_opened(store_format: int, is_read: bool) -> None:
    found = first_difference(asdict(HEADER) | {"format": store_format}, HEADER)

    assert found == (None if is_read else "format")
