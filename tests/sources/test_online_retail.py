from __future__ import annotations

import os
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import SourceError
from engine.events import ClickEvent, decode_click, encode_click
from engine.sources import OnlineRetail, open_source
from engine.sources.online_retail import COLUMNS, head_noun, parse_time_ms, price_band

GOOD_LINE: dict[str, Any] = {
    "InvoiceNo": "536365",
    "StockCode": "85123A",
    "Description": "WHITE HANGING HEART T-LIGHT HOLDER",
    "Quantity": 6,
    "InvoiceDate": "12/1/10 8:26",
    "UnitPrice": 2.55,
    "CustomerID": 17850,
    "Country": "United Kingdom",
}


def write_lines(folder: Path, *changes: dict[str, Any]) -> Path:
    lines = [GOOD_LINE | change for change in changes]
    path = folder / "online_retail.parquet"
    pq.write_table(pa.table({name: [line[name] for line in lines] for name in COLUMNS}), path)
    return path


def test_line_becomes_a_click_with_quantity_as_weight_and_country_as_profile(tmp_path: Path):
    source = OnlineRetail(write_lines(tmp_path, {}))

    (click,) = source.clicks()

    assert (click.user_id, click.item_id, click.weight) == ("17850", "85123A", 6.0)
    assert click.clicked_at_ms == int(datetime(2010, 12, 1, 8, 26, tzinfo=UTC).timestamp()) * 1_000
    assert click.profile == {"country": "United Kingdom"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"InvoiceNo": "C536379"}, "cancellation"),
        ({"CustomerID": None}, "no customer"),
        ({"StockCode": "POST"}, "service code"),
        ({"StockCode": "D"}, "service code"),
        ({"StockCode": "m"}, "service code"),
        ({"StockCode": "C2"}, "service code"),
        ({"StockCode": "DOT"}, "service code"),
        ({"StockCode": "PADS"}, "service code"),
        ({"StockCode": "BANK CHARGES"}, "service code"),
        ({"StockCode": "AMAZONFEE"}, "service code"),
        ({"StockCode": "gift_0001_40"}, "service code"),
        ({"Quantity": 0}, "quantity not positive"),
        ({"Quantity": -3}, "quantity not positive"),
        ({"UnitPrice": 0.0}, "price not positive"),
        ({"InvoiceDate": "yesterday"}, "unreadable time"),
    ],
)
def test_line_that_is_no_interest_is_dropped_and_counted(tmp_path: Path, change: dict[str, Any], reason: str):
    source = OnlineRetail(write_lines(tmp_path, {}, change))

    assert source.dropped == {reason: 1}
    assert source.click_count == len(list(source.clicks())) == 1


@pytest.mark.parametrize("stock_code", ["71053", "84406B", "16156L", "15056BL", "DCGS0003", "DCGSSBOY"])
def test_goods_are_kept(tmp_path: Path, stock_code: str):
    source = OnlineRetail(write_lines(tmp_path, {"StockCode": stock_code}))

    assert [item.item_id for item in source.items()] == [stock_code]


def test_clicks_come_in_time_order_and_lines_of_one_minute_in_file_order(tmp_path: Path):
    later, earlier = {"InvoiceNo": "2", "InvoiceDate": "12/2/10 9:00"}, {"InvoiceNo": "1"}
    path = write_lines(tmp_path, later, *({**earlier, "StockCode": f"1000{place}"} for place in range(3)))

    clicks = list(OnlineRetail(path).clicks())

    assert [click.item_id for click in clicks] == ["10000", "10001", "10002", "85123A"]
    assert clicks == sorted(clicks, key=lambda click: (click.clicked_at_ms, click.identity))


def test_event_id_tells_lines_of_one_invoice_and_item_apart(tmp_path: Path):
    source = OnlineRetail(write_lines(tmp_path, {}, {}, {"InvoiceNo": "536366"}))

    assert [click.event_id for click in source.clicks()] == ["536365:0001", "536365:0002", "536366:0001"]


def test_item_has_its_commonest_title_and_the_band_of_its_median_price(tmp_path: Path):
    wrong = {"Description": "wrongly  marked", "UnitPrice": 50.0}
    right = {"Description": "  RED  RETROSPOT MUG ", "UnitPrice": 1.25}
    source = OnlineRetail(write_lines(tmp_path, wrong, right, right))

    (item,) = source.items()

    assert (item.title, item.category, item.features) == ("RED RETROSPOT MUG", "mug", {"price_band": "1-to-2"})


def test_only_the_commonest_head_nouns_are_categories(tmp_path: Path):
    nouns = [f"thing{chr(97 + place // 26)}{chr(97 + place % 26)}" for place in range(61)]
    lines = [
        {"StockCode": f"{10_000 + 2 * place + twin}", "Description": noun}
        for place, noun in enumerate(nouns)
        for twin in range(1 if place == 60 else 2)
    ]

    categories = Counter(item.category for item in OnlineRetail(write_lines(tmp_path, *lines)).items())

    assert len(categories) == 61
    assert categories["other"] == 1


@pytest.mark.parametrize(
    ("title", "noun"),
    [
        ("WHITE HANGING HEART T-LIGHT HOLDER", "holder"),
        ("PICNIC BASKET WICKER LARGE", "basket"),
        ("GROW YOUR OWN FLOWERS SET OF 3", "flower"),
        ("BLUE HARMONICA IN BOX", "harmonica"),
        ("PINK GINGHAM CAT WITH SCARF", "cat"),
        ("PACK OF 6 SWEETIE GIFT BOXES", "box"),
        ("POLYESTER FILLER PAD 45x45cm", "pad"),
        ("WHITE CHERRY LIGHTS", "light"),
        ("COLOURED GLASS", "coloured"),
        ("RED", ""),
        ("", ""),
    ],
)
def test_head_noun_is_the_last_word_that_can_name_a_thing(title: str, noun: str):
    assert head_noun(title) == noun


@pytest.mark.parametrize(
    ("pounds", "band"), [(0.99, "under-1"), (1.0, "1-to-2"), (7.99, "4-to-8"), (8.0, "8-and-over")]
)
def test_price_band_includes_its_lower_edge(pounds: float, band: str):
    assert price_band(pounds) == band


@pytest.mark.parametrize(
    "text", ["12/1/10 8:26", "2010-12-01 08:26:00", "12/1/2010 8:26", datetime(2010, 12, 1, 8, 26, tzinfo=UTC)]
)
def test_time_is_read_in_every_known_format_as_utc(text: object):
    assert parse_time_ms(text) == 1_291_191_960_000


def test_customer_numbers_are_the_same_id_whatever_column_holds_them(tmp_path: Path):
    source = OnlineRetail(write_lines(tmp_path, {"CustomerID": 17850.0}))

    assert [click.user_id for click in source.clicks()] == ["17850"]


def test_missing_file_is_named_with_a_remedy(tmp_path: Path):
    with pytest.raises(SourceError, match=r"online_retail\.parquet: no such file; `mindstream data fetch"):
        OnlineRetail(tmp_path)


def test_damaged_file_is_named(tmp_path: Path):
    (tmp_path / "online_retail.parquet").write_bytes(b"PAR1 not really")

    with pytest.raises(SourceError, match="not a Parquet file"):
        open_source(tmp_path)


def test_missing_column_is_named(tmp_path: Path):
    pq.write_table(pa.table({"InvoiceNo": ["1"]}), tmp_path / "online_retail.parquet")

    with pytest.raises(SourceError, match="lacks the columns StockCode, Description"):
        open_source(tmp_path)


def test_file_with_no_good_line_is_refused(tmp_path: Path):
    with pytest.raises(SourceError, match=r"no line is left, dropped \{'service code': 1\}"):
        OnlineRetail(write_lines(tmp_path, {"StockCode": "POST"}))


@pytest.mark.skipif("MINDSTREAM_TEST_DATA" not in os.environ, reason="MINDSTREAM_TEST_DATA names no data folder")
def test_real_set_gives_the_counted_clicks_users_and_items():
    source = open_source(Path(os.environ["MINDSTREAM_TEST_DATA"]) / "online-retail")
    clicks, items = list(source.clicks()), list(source.items())

    assert len(clicks) == source.click_count == 167_977
    assert source.dropped == {
        "no customer": 66_982,
        "cancellation": 4_350,
        "service code": 685,
        "price not positive": 13,
    }
    assert len({click.user_id for click in clicks}) == 2_929
    assert len(items) == len({click.item_id for click in clicks}) == 3_259
    assert len({click.event_id for click in clicks}) == len(clicks)
    assert len({item.category for item in items}) == 61
    assert [read_back(click) for click in clicks] == clicks
    assert all(before.clicked_at_ms <= after.clicked_at_ms for before, after in pairwise(clicks))


def read_back(click: ClickEvent) -> ClickEvent:
    """Return *click* as the engine reads it from the log."""
    key, now_ms = click.user_id.encode(), click.clicked_at_ms + 60_000
    return decode_click(
        encode_click(click), key=key, recorded_at_ms=now_ms, future_tolerance_ms=0, max_message_bytes=65_536
    )
