from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ConfigError, SourceError
from engine.sources import Columns
from tests.trainer.offline.builders import write
from trainer.offline.readers import find_data, read_sequences
from trainer.offline.sequences import TEST, TRAIN, VALID, Kind, Sequences

DATA = os.environ.get("MINDSTREAM_TEST_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MINDSTREAM_TEST_DATA names no folder of data sets")


def named(sequences: Sequences) -> dict[str, list[str]]:
    return {
        user: [sequences.item_ids[row - 1] for row in sequences.sequence(number).tolist()]
        for number, user in enumerate(sequences.user_ids)
    }


def test_a_parted_file_fixes_rows_and_parts_and_users_are_its_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "any.txt.gz", "train 3 1\n\nvalid 1 2\ntest 5 5 1\n")

    found = read_sequences(path)

    assert found.kind is Kind.PARTED
    assert list(found.item_ids) == ["1", "2", "3", "4", "5"]
    assert named(found) == {"1": ["3", "1"], "3": ["1", "2"], "4": ["5", "5", "1"]}
    assert found.parts is not None
    assert found.parts.tolist() == [TRAIN, VALID, TEST]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train 1 0 2", "line 2 has item row 0, expected rows from 1 to 5,000,000"),
        ("train 1 -4", "line 2 has item row -4"),
        ("train 1 99999999999", "line 2 has item row 99999999999"),
        ("train 1 nan", "line 2 has item 'nan', expected rows"),
        ("tune 1 2", "line 2 starts with 'tune', expected train, valid or test"),
    ],
)
def test_a_line_that_is_none_is_named_with_what_was_expected(tmp_path: Path, line: str, sentence: str) -> None:
    path = write(tmp_path / "any.txt", f"train 1 2\n{line}\n")

    with pytest.raises(SourceError, match=sentence.replace(".", r"\.")):
        read_sequences(path)


def test_train_sessions_come_before_the_test_sessions_with_their_catalog(tmp_path: Path) -> None:
    write(tmp_path / "train_sessions.txt.gz", "a b\nc a\n")
    write(tmp_path / "test_sessions.txt", "b c\n")
    write(tmp_path / "items.tsv", "item_id\tcategory_id\tseller_id\tbrand_id\na\t7\t8\t\n")

    found = read_sequences(tmp_path)

    assert found.kind is Kind.SESSIONS
    assert list(named(found).values()) == [["a", "b"], ["c", "a"], ["b", "c"]]
    assert found.parts is not None
    assert found.parts.tolist() == [TRAIN, TRAIN, TEST]
    assert (found.items["a"].category, found.items["a"].shop, found.items["a"].brand) == ("7", "8", None)


def test_lines_of_two_words_are_a_user_and_an_item_each(tmp_path: Path) -> None:
    found = read_sequences(write(tmp_path / "pairs.txt", "u1 a\nu1 b\nu2 a\nu1 c\n"))

    assert found.kind is Kind.USERS
    assert named(found) == {"u1": ["a", "b", "c"], "u2": ["a"]}


def test_lines_with_distinct_first_words_are_a_user_and_its_items(tmp_path: Path) -> None:
    found = read_sequences(write(tmp_path / "users.txt", "1 7 8 7\n2 8 9\n"))

    assert (found.kind, named(found)) == (Kind.USERS, {"1": ["7", "8", "7"], "2": ["8", "9"]})


def test_lines_whose_first_words_repeat_are_sessions(tmp_path: Path) -> None:
    found = read_sequences(write(tmp_path / "clicks.txt", "7 8 9\n7 9\n"))

    assert (found.kind, named(found)) == (Kind.SESSIONS, {"s0": ["7", "8", "9"], "s1": ["7", "9"]})


def test_attributes_beside_a_file_become_features_and_categories(tmp_path: Path) -> None:
    path = write(tmp_path / "Shop.txt.gz", "1 7 8 9\n2 8 9\n")
    attributes = json.dumps({"7": [1, 2, 1], "8": [2], "9": [3, 2]})
    write(tmp_path / "Shop_item2attributes.json.gz", attributes)

    found = read_sequences(path)

    assert found.categories == {"7": ("2", "1"), "8": ("2",), "9": ("2", "3")}
    assert found.items["9"].features == {"attribute_0": "2", "attribute_2": "3"}
    assert found.items["7"].features == {"attribute_0": "2", "attribute_1": "1"}


@pytest.mark.parametrize("content", ['{"7": [NaN]}', '{"7": 3}', "[1]", '{"7": [1'])
def test_attributes_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "Shop.txt", "1 7 8 9\n2 8 9\n")
    write(tmp_path / "Shop_item2attributes.json", content)

    with pytest.raises(SourceError, match="Shop_item2attributes"):
        read_sequences(path)


def test_a_table_of_ones_own_is_read_by_its_column_names(tmp_path: Path) -> None:
    path = write(tmp_path / "shop.csv", "visitor,product,at,kind\nu10,b,2,x\nu10,a,1,x\nu9,a,3,y\n")

    found = read_sequences(path, Columns(user="visitor", item="product", time="at", category="kind"))

    assert named(found) == {"u10": ["a", "b"], "u9": ["a"]}
    assert found.times_ms is not None
    assert found.times_ms.tolist() == [1_000, 2_000, 3_000]
    assert found.items["b"].category == "x"


def test_weights_of_a_table_stay_with_their_clicks(tmp_path: Path) -> None:
    path = write(tmp_path / "shop.csv", "user_id,item_id,timestamp,qty\n2,b,2,5\n2,a,1,1.5\n1,c,3,7\n")

    weighed, plain = read_sequences(path, Columns(weight="qty")), read_sequences(path)

    assert weighed.weights is not None
    assert weighed.weights.tolist() == [7.0, 1.5, 5.0]
    assert named(weighed) == {"1": ["c"], "2": ["a", "b"]}
    assert plain.weights is not None
    assert plain.weights.tolist() == [1.0, 1.0, 1.0]


def test_disliked_items_are_neither_history_nor_target(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,event_type\n1,a,1,click\n1,b,2,dislike\n1,c,3,hide\n1,d,4,click\n"
    path = write(tmp_path / "shop.csv", text)

    found = read_sequences(path, Columns(event_type="event_type"))

    assert named(found) == {"1": ["a", "d"]}
    assert [remark for remark in found.remarks if "negative" in remark] == [
        "2 rows of shop.csv left out: negative event type"
    ]


def test_atomic_files_are_ordered_by_time_and_bring_items_and_users(tmp_path: Path) -> None:
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    write(tmp_path / "ml.inter", head + "2\t10\t3\t50\n1\t11\t3\t20\n1\t10\t3\t10\n")
    write(tmp_path / "ml.item", "item_id:token\tmovie_title:token_seq\tclass:token_seq\n10\tToy Story\tComedy Drama\n")
    write(tmp_path / "ml.user", "user_id:token\tage:token\tgender:token\n1\t24\tM\n2\t30\tF\n")

    found = read_sequences(tmp_path)

    assert named(found) == {"1": ["10", "11"], "2": ["10"]}
    assert found.times_ms is not None
    assert found.times_ms.tolist() == [10_000, 20_000, 50_000]
    assert (found.items["10"].category, found.categories["10"]) == ("Comedy", ("Comedy", "Drama"))
    assert found.profile(0) == {"age": 24.0, "gender": "M"}


def test_a_time_that_is_no_number_is_refused_with_its_line(tmp_path: Path) -> None:
    head = "user_id:token\titem_id:token\ttimestamp:float\n"
    path = write(tmp_path / "ml.inter", head + "2\t10\t50\n1\t11\tnan\n")

    with pytest.raises(SourceError, match="line 3 has the time 'nan'"):
        read_sequences(path)


@pytest.mark.parametrize("name", ["empty.txt", "empty.txt.gz", "empty.inter"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"is empty|has no column"):
        read_sequences(write(tmp_path / name, ""))


def test_a_file_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.gz"
    path.write_bytes(b"train 1 2\n")

    with pytest.raises(SourceError, match="can't be read"):
        read_sequences(path)


def test_a_folder_of_several_files_asks_for_one(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "train 1 2\n")
    write(tmp_path / "b.txt", "train 1 2\n")

    with pytest.raises(SourceError, match=r"holds 2 files of sequences; name one of a\.txt, b\.txt"):
        read_sequences(tmp_path)


def test_a_name_is_looked_up_under_the_data_folder_without_its_ending(tmp_path: Path) -> None:
    path = write(tmp_path / "splits" / "beauty.txt.gz", "train 1 2\n")

    assert find_data("splits/beauty", tmp_path) == path
    assert find_data(str(path), tmp_path / "elsewhere") == path


@pytest.mark.parametrize("name", ["nothing", "../etc/passwd"])
def test_unknown_data_names_what_there_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "ml-1m").mkdir()

    with pytest.raises(ConfigError, match=r"--data must be a path, or a name under .*ml-1m"):
        find_data(name, tmp_path)


@needs_data
@pytest.mark.parametrize(
    ("name", "users", "items", "clicks"),
    [
        ("comirec-splits/beauty", 22_363, 12_101, 198_502),
        ("s3rec-amazon-yelp-lastfm/LastFM", 1_090, 3_646, 52_551),
        ("tmall-sessions-gce", 66_313, 40_727, 443_479),
        ("amazon-games-sasrec", 31_013, 23_715, 287_107),
        ("ml-100k", 943, 1_682, 100_000),
        ("online-retail", 2_929, 3_259, 167_977),
        ("amazon-clothing", 39_230, 22_948, 277_534),
    ],
)
def test_a_folder_holds_what_its_page_counts(name: str, users: int, items: int, clicks: int) -> None:
    found = read_sequences(find_data(name, Path(DATA or "")))

    assert (found.user_count, len(found.item_ids), len(found.rows)) == (users, items, clicks)
    assert len(np.unique(found.rows)) == items
