from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from engine.errors import SourceError
from engine.sources import open_source


def test_each_line_is_a_user_of_its_own_and_order_is_kept(tmp_path: Path):
    (tmp_path / "sessions.txt").write_text("3 1 2\n\n9 9\n")

    source = open_source(tmp_path / "sessions.txt")
    clicks = list(source.clicks())

    assert [(click.user_id, click.item_id) for click in clicks] == [
        ("s0", "3"),
        ("s0", "1"),
        ("s0", "2"),
        ("s1", "9"),
        ("s1", "9"),
    ]
    assert source.click_count == 5
    assert [click.clicked_at_ms for click in clicks] == sorted({click.clicked_at_ms for click in clicks})
    assert len({click.event_id for click in clicks}) == 5


def test_folder_holds_train_then_test_sessions_and_a_catalog(tmp_path: Path):
    (tmp_path / "test_sessions.txt.gz").write_bytes(gzip.compress(b"5 1\n"))
    (tmp_path / "train_sessions.txt.gz").write_bytes(gzip.compress(b"1 2\n"))
    (tmp_path / "items.tsv.gz").write_bytes(
        gzip.compress(b"item_id\tcategory_id\tseller_id\tbrand_id\n1\t42\t7\t\n8\t43\t7\t9\n")
    )

    source = open_source(tmp_path)

    assert [click.item_id for click in source.clicks()] == ["1", "2", "5", "1"]
    items = {item.item_id: item for item in source.items()}
    assert sorted(items) == ["1", "2", "5", "8"]
    assert (items["1"].category, items["1"].shop, items["1"].brand) == ("42", "7", None)
    assert items["8"].brand == "9"


def test_word_that_is_no_id_is_skipped_and_counted(tmp_path: Path):
    (tmp_path / "sessions.txt").write_text(f"1 {'x' * 300} 2\n")

    source = open_source(tmp_path / "sessions.txt")

    assert [click.item_id for click in source.clicks()] == ["1", "2"]
    assert source.dropped == {"item": 1}


def test_empty_file_is_our_error(tmp_path: Path):
    (tmp_path / "sessions.txt").write_text("\n")

    with pytest.raises(SourceError, match=r"sessions\.txt: holds no session; write one per line"):
        open_source(tmp_path / "sessions.txt")


@pytest.mark.parametrize(
    ("name", "content"), [("s.txt", b"1 \xff\n"), ("s.txt.gz", b"no gzip"), ("s.txt.gz", b"\x1f\x8b")]
)
def test_unreadable_file_is_our_error(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(SourceError, match=r"s\.txt.*can't be read"):
        open_source(tmp_path / name)


def test_folder_with_nothing_in_it_is_our_error(tmp_path: Path):
    with pytest.raises(SourceError, match="holds no data set"):
        open_source(tmp_path)
