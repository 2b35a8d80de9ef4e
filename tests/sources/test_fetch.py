from __future__ import annotations

import functools
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from engine.errors import ConfigError, SourceError
from engine.settings import Settings
from engine.sources import OnlineRetail
from engine.sources.fetch import fetch_data
from engine.sources.online_retail import COLUMNS
from tests.conftest import free_port

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
LINES: tuple[tuple[object, ...], ...] = (
    (536365, "85123A", "HEART & HOLDER", 6, 40513.35138888889, 2.55, 17850, "France"),
    ("C536379", "D", "Discount", -1, 40513.39513888889, 27.5, 14527, "France"),
    (536370, 22728, None, 24, 40513.364583333336, 3.75, None, "France"),
    (536371, 22086, "PAPER CHAIN", 80, 40513.375, 2.55, 13748, "France"),
)


def make_archive(rows: Sequence[Sequence[object]]) -> bytes:
    """Return a zip with a workbook as Excel writes one: shared strings, empty cells left out."""
    strings: list[str] = []

    def cell(place: int, line: int, value: object) -> str:
        reference = f"{chr(ord('A') + place)}{line}"
        if value is None:
            return ""
        if isinstance(value, str):
            strings.append(value)
            return f'<c r="{reference}" t="s"><v>{len(strings) - 1}</v></c>'
        return f'<c r="{reference}"><v>{value}</v></c>'

    body = "".join(
        f'<row r="{line}">{"".join(cell(place, line, value) for place, value in enumerate(row))}</row>'
        for line, row in enumerate(rows, start=1)
    )
    shared = "".join(f"<si><t>{escape(text)}</t></si>" for text in strings)
    book, archive = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(book, "w") as parts:
        parts.writestr(
            "xl/worksheets/sheet1.xml", f'<worksheet xmlns="{MAIN}"><sheetData>{body}</sheetData></worksheet>'
        )
        parts.writestr("xl/sharedStrings.xml", f'<sst xmlns="{MAIN}">{shared}</sst>')
    with zipfile.ZipFile(archive, "w") as parts:
        parts.writestr("Online Retail.xlsx", book.getvalue())
    return archive.getvalue()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[str]:
    """The address of a web server that serves `tmp_path / "home"`."""
    folder = tmp_path / "home"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/set.zip"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def settings_in(folder: Path) -> Settings:
    return Settings(cache_dir=folder / "cache", data_dir=folder / "data")


def test_workbook_becomes_a_folder_that_the_reader_opens(tmp_path: Path, home: str):
    (tmp_path / "home" / "set.zip").write_bytes(make_archive([COLUMNS, *LINES]))
    progress: list[tuple[int, int | None]] = []

    folder = fetch_data(
        settings_in(tmp_path),
        "online-retail",
        url=home,
        rows=4,
        on_bytes=lambda done, total: progress.append((done, total)),
    )
    source = OnlineRetail(folder)

    assert source.dropped == {"cancellation": 1, "no customer": 1}
    first, second = source.clicks()
    assert (first.user_id, first.item_id, first.weight, first.clicked_at_ms) == (
        "17850",
        "85123A",
        6.0,
        1_291_191_960_000,
    )
    assert (second.user_id, second.item_id) == ("13748", "22086")
    assert next(item.title for item in source.items() if item.item_id == "85123A") == "HEART & HOLDER"
    assert progress[-1][0] == progress[-1][1]
    assert [path.name for path in folder.iterdir()] == ["online_retail.parquet"]


def test_set_that_is_there_is_not_fetched_again(tmp_path: Path, home: str):
    (tmp_path / "home" / "set.zip").write_bytes(make_archive([COLUMNS, *LINES]))
    first = fetch_data(settings_in(tmp_path), "online-retail", url=home, rows=4)

    again = fetch_data(settings_in(tmp_path), "online-retail", url=f"http://127.0.0.1:{free_port()}/gone.zip")

    assert again == first


def test_unreachable_home_says_what_to_do_by_hand(tmp_path: Path):
    url = f"http://127.0.0.1:{free_port()}/set.zip"

    with pytest.raises(SourceError, match=r"can't be fetched.*refused.*; fetch http\S+ in a browser, put it at \S+zip"):
        fetch_data(settings_in(tmp_path), "online-retail", url=url)


def test_archive_put_there_by_hand_is_taken(tmp_path: Path):
    cache = tmp_path / "cache" / "online-retail"
    cache.mkdir(parents=True)
    (cache / "online_retail.zip").write_bytes(make_archive([COLUMNS, *LINES]))

    folder = fetch_data(settings_in(tmp_path), "online-retail", url="http://127.0.0.1:1/none.zip", rows=4)

    assert OnlineRetail(folder).click_count == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>sorry</html>", "is not the data set"),
        (make_archive([COLUMNS, *LINES])[:-200], "is not the data set"),
        (make_archive([COLUMNS[:-1], *LINES]), "is not the data set"),
        (make_archive([COLUMNS]), "has 0 lines, expected at least 4"),
        (make_archive([COLUMNS, *LINES[:2]]), "has 2 lines, expected at least 4"),
        (make_archive([COLUMNS, *[("x", "y", "z", "many", "when", "?", "?", "?")] * 4]), "is not the data set"),
    ],
)
def test_anything_else_that_came_is_refused_and_leaves_no_data_set(
    tmp_path: Path, home: str, content: bytes, problem: str
):
    (tmp_path / "home" / "set.zip").write_bytes(content)

    with pytest.raises(SourceError, match=problem):
        fetch_data(settings_in(tmp_path), "online-retail", url=home, rows=4)

    assert not list((tmp_path / "cache").rglob("*.parquet*"))


def test_missing_page_leaves_no_partial_file(tmp_path: Path, home: str):
    with pytest.raises(SourceError, match="404"):
        fetch_data(settings_in(tmp_path), "online-retail", url=home)

    assert not list((tmp_path / "cache").rglob("*.*"))


def test_unknown_name_is_a_wrong_setting(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"name must be online-retail, .* got 'movielens'"):
        fetch_data(settings_in(tmp_path), "movielens")
