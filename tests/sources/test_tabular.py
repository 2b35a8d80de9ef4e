from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import SourceError
from engine.sources import TabularClicks, open_source
from engine.sources.table import write_clicks
from engine.sources.tabular import BadRow, as_id
from tests.builders import NOON_MS, make_click

NOON_S = NOON_MS // 1_000


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["clicks.csv", "clicks.csv.gz", "clicks.tsv", "clicks.tsv.gz"])
def test_text_table_is_read_plain_and_gzipped(tmp_path: Path, name: str):
    mark = "\t" if ".tsv" in name else ","
    rows = [["user_id", "item_id", "timestamp"], ["007", "a", str(NOON_S)], ["u2", "b", str(NOON_S - 1)]]
    path = write(tmp_path / name, "\n".join(mark.join(row) for row in rows) + "\n")

    clicks = list(open_source(path).clicks())

    assert [(click.user_id, click.item_id, click.clicked_at_ms) for click in clicks] == [
        ("u2", "b", NOON_MS - 1_000),
        ("007", "a", NOON_MS),
    ]


def test_parquet_with_integers_gives_ids_as_text(tmp_path: Path):
    table = pa.table({"user": [1, 2], "item": [10.0, None], "time": [NOON_MS, NOON_MS]})
    pq.write_table(table, tmp_path / "c.parquet")

    source = open_source(tmp_path / "c.parquet")

    assert [(click.user_id, click.item_id) for click in source.clicks()] == [("1", "10")]
    assert source.dropped == {"item": 1}


def test_parquet_timestamps_are_event_times(tmp_path: Path):
    moment = datetime.fromtimestamp(NOON_S, tz=UTC)
    pq.write_table(pa.table({"user": ["u"], "item": ["i"], "time": [moment]}), tmp_path / "c.parquet")

    (click,) = open_source(tmp_path / "c.parquet").clicks()

    assert click.clicked_at_ms == NOON_MS


def test_columns_are_named_by_options(tmp_path: Path):
    header = "who,what,when,how,much,land,name,kind"
    path = write(tmp_path / "c.csv", f"{header}\nanna,mug,{NOON_S},cart,2.5,DE,Red mug,mugs\n")

    source = open_source(
        path,
        user_column="who",
        item_column="what",
        time_column="when",
        time_unit="s",
        event_type_column="how",
        weight_column="much",
        profile_columns=["land"],
        title_column="name",
        category_column="kind",
    )

    (click,) = source.clicks()
    (item,) = source.items()
    assert (click.user_id, click.event_type, click.weight, click.profile) == ("anna", "cart", 2.5, {"land": "DE"})
    assert (item.item_id, item.title, item.category) == ("mug", "Red mug", "mugs")


@pytest.mark.parametrize(
    ("unit", "time"),
    [
        ("auto", str(NOON_S)),
        ("auto", str(NOON_MS)),
        ("auto", "2010-12-01T12:00:00Z"),
        ("iso", "2010-12-01 12:00:00"),
        ("iso", "2010-12-01T13:00:00+01:00"),
        ("s", f"{NOON_S}.0"),
        ("ms", str(NOON_MS)),
    ],
)
def test_time_unit_is_told_or_recognized(tmp_path: Path, unit: str, time: str):
    path = write(tmp_path / "c.csv", f"user,item,time\nu,i,{time}\n")

    (click,) = open_source(path, time_unit=unit).clicks()  # type: ignore[arg-type]

    assert click.clicked_at_ms == NOON_MS


def test_bad_rows_are_skipped_counted_and_the_first_is_named(tmp_path: Path):
    rows = ["u1,i1,1000", ",i2,1001", "u3,,1002", "u4,i4,soon", "u5,i5,-4", "u6,i6", "u7,i7,1,2", "u8,i8,1003"]
    path = write(tmp_path / "c.csv", "\n".join(["user,item,time", *rows]) + "\n")

    source = TabularClicks(path)

    assert [click.user_id for click in source.clicks()] == ["u1", "u8"]
    assert source.dropped == {"user": 1, "item": 1, "time": 2, "number of fields": 2}
    assert source.first_dropped == "row 3: user None is not text of 1 to 256 bytes"


def test_user_that_can_not_be_taken_is_not_named(tmp_path: Path):
    path = write(tmp_path / "c.csv", f"user,item,time\n{'someone@example.org' * 20},i1,1000\nu2,i2,1001\n")

    source = TabularClicks(path)

    assert source.first_dropped == "row 2: user of 380 characters is not text of 1 to 256 bytes"


def test_rows_of_one_moment_keep_the_order_of_the_file_in_the_window_too(tmp_path: Path):
    rows = "".join(f"u,i{9 - place},1000\n" for place in range(10))
    clicks = list(open_source(write(tmp_path / "c.csv", "user,item,time\n" + rows)).clicks())

    assert [click.item_id for click in clicks] == [f"i{9 - place}" for place in range(10)]
    assert clicks == sorted(clicks, key=lambda click: (click.clicked_at_ms, click.identity))


def test_folder_joins_interactions_items_and_users(tmp_path: Path):
    write(tmp_path / "interactions.tsv.gz", f"user_id\titem_id\ttimestamp\n1\t10\t{NOON_S}\n2\t11\t{NOON_S}\n")
    write(tmp_path / "items.tsv.gz", 'item_id\ttitle\tgenres\n10\tThe "Best" of\tDrama|War\n12\tUnseen\t\n')
    write(tmp_path / "users.tsv.gz", "user_id\tgender\tage\n1\tF\t25\n")

    source = open_source(tmp_path)

    assert [click.profile for click in source.clicks()] == [{"gender": "F", "age": "25"}, None]
    items = {item.item_id: item for item in source.items()}
    assert (items["10"].title, items["10"].category) == ('The "Best" of', "Drama")
    assert items["11"].title is None
    assert items["12"].category is None


def test_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path):
    path = write(tmp_path / "c.csv", "user,item,time\nu,i,1\n")

    with pytest.raises(SourceError, match="has no column 'who'; name one of user, item, time"):
        open_source(path, user_column="who")


def test_table_without_a_usual_column_says_which_option_names_it(tmp_path: Path):
    path = write(tmp_path / "c.csv", "user,thing,time\nu,i,1\n")

    with pytest.raises(SourceError, match=r"has no item column, only user, thing, time; name it with --item-column"):
        open_source(path)


def test_table_with_no_good_row_is_refused_naming_the_first_bad_one(tmp_path: Path):
    path = write(tmp_path / "c.csv", "user,item,time\nu,i,never\n")

    with pytest.raises(SourceError, match="no row is a click; row 2: time 'never' is not ISO 8601"):
        open_source(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("c.csv", b"user,item,time\n\xff\xfe,i,1\n"), ("c.csv", b""), ("c.parquet", b"no"), ("c.csv.gz", b"no")],
)
def test_file_that_is_no_table_is_our_error(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError, match=r"c\.(csv|parquet).*can't be read"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["nothing.csv", "nowhere"])
def test_missing_path_is_our_error(tmp_path: Path, name: str):
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(tmp_path / name)


def test_unknown_kind_of_file_is_our_error(tmp_path: Path):
    with pytest.raises(SourceError, match="is of no known kind; give a table"):
        open_source(write(tmp_path / "clicks.docx", "?"))


@pytest.mark.parametrize("value", ["", " ", None, "x" * 257, "a\x00b", float("nan"), "é" * 129])
def test_what_the_contract_refuses_is_no_id(value: object):
    with pytest.raises(BadRow):
        as_id(value, "user")


def test_what_is_longer_than_the_contract_allows_is_cut_or_refused(tmp_path: Path):
    header = "user,item,time,event_type,profile.land,title"
    rows = [f"u1,i1,1,click,{'x' * 300},{'é' * 600}", f"u2,i2,2,{'t' * 65},DE,Mug"]
    source = open_source(write(tmp_path / "c.csv", "\n".join([header, *rows]) + "\n"))

    (click,) = source.clicks()
    (item, _) = source.items()

    assert source.dropped == {"event type": 1}
    assert click.profile == {"land": "x" * 256}
    assert item.title == "é" * 512


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.parquet"])
def test_written_clicks_are_read_back(tmp_path: Path, name: str):
    clicks = [
        make_click(user_id="u1", event_id="e1", weight=2.0, profile={"country": "FR"}),
        make_click(user_id="u2", event_id="e2", event_type="cart", clicked_at_ms=NOON_MS + 1),
    ]

    written = write_clicks(tmp_path / name, clicks)

    assert written == 2
    assert list(open_source(tmp_path / name).clicks()) == clicks


def test_clicks_are_written_to_known_formats_only(tmp_path: Path):
    with pytest.raises(SourceError, match=r"end the name in \.csv, \.tsv or \.parquet"):
        write_clicks(tmp_path / "out.json", [make_click()])


def test_only_an_empty_field_is_no_value(tmp_path: Path):
    path = write(
        tmp_path / "c.csv", f"user_id,item_id,timestamp,profile.country\nnull,NA,{NOON_S},NA\nnan,n/a,{NOON_S},\n"
    )

    clicks = list(open_source(path).clicks())

    assert [(click.user_id, click.item_id, click.profile) for click in clicks] == [
        ("null", "NA", {"country": "NA"}),
        ("nan", "n/a", None),
    ]
