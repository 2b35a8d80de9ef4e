"""What stores of every format hold, byte for byte: a change of the layout reads what is out there, or refuses it.

The files in `tests/golden` were written once. Where a test here fails, don't write them again: give the new layout a
format of its own, read both or say what to do, and keep the old file. Format 1 kept negative clicks in the places of
the others, so that windows had lost clicks which format 2 keeps: no reading makes them right, and the log does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.events import ClickEvent
from engine.store import codec
from engine.store.codec import CLICKS, DERIVED, PROFILES, DerivedRow, ProfileValue
from engine.store.rocksdb import open_for_writing
from engine.store.windows import PartitionStore
from tests.store.test_windows import HEADER

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


@pytest.mark.parametrize("entry", STORED["marks"], ids=lambda entry: str(entry["offset"]))
def test_marks(entry: dict[str, Any]) -> None:
    (key, value), offset, accepted_at_ms = raw(entry), entry["offset"], entry["accepted_at_ms"]

    assert (codec.mark_key(offset, b"u1"), codec.encode_mark(accepted_at_ms)) == (key, value)
    assert codec.decode_mark_key(key) == (offset, b"u1")
    assert codec.decode_mark(value) == accepted_at_ms


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


def test_a_store_that_holds_them_opens_with_its_windows_marks_and_lists(tmp_path: Path) -> None:
    db = open_for_writing(tmp_path / "store")
    for kind in ("clicks", "profiles", "marks", "derived"):
        for entry in STORED[kind]:
            db.put(*raw(entry))
    db.put(*raw(STORED["offset"]))
    db.close()

    store = PartitionStore.open(tmp_path / "store", HEADER)

    clicks = [ClickEvent(**entry["click"]) for entry in STORED["clicks"]]
    assert store.applied_offset == STORED["offset"]["offset"]
    assert store.read_window("u1").clicks == tuple(clicks[:2])
    assert store.read_window(clicks[2].user_id).clicks == (clicks[2],)
    assert store.read_profile("u1") == {"age": 41.0, "country": "FR"}
    assert store.count_dirty() == 1
    store.close()
