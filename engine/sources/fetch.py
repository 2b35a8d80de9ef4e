"""Public data sets, fetched from their homes into the cache directory; none is part of this project.

Online Retail comes as a zip with one Excel sheet. It is read with the standard library, a row at a time, and kept as
the Parquet file that `OnlineRetail` opens. Nothing is left half-written: files appear under their names when complete.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from engine.errors import ConfigError, SourceError
from engine.settings import Settings
from engine.sources.online_retail import COLUMNS, FILE_NAME

ONLINE_RETAIL_URL = "https://archive.ics.uci.edu/static/public/352/online+retail.zip"
ONLINE_RETAIL_ROWS = 541_909
"""Invoice lines that the published set has."""
MAX_DOWNLOAD_BYTES = 200_000_000
MAX_SHEET_BYTES = 2_000_000_000
TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 18
EXCEL_EPOCH = datetime(1899, 12, 30)  # noqa: DTZ001 - sheets hold local times with no zone
_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_SCHEMA = pa.schema(
    [
        ("InvoiceNo", pa.string()),
        ("StockCode", pa.string()),
        ("Description", pa.string()),
        ("Quantity", pa.int64()),
        ("InvoiceDate", pa.string()),
        ("UnitPrice", pa.float64()),
        ("CustomerID", pa.int64()),
        ("Country", pa.string()),
    ]
)

log = structlog.get_logger()
OnBytes = Callable[[int, int | None], None]


def run_fetch(settings: Settings, name: str) -> Path:
    """Fetch the data set *name* with a progress bar, print where it lies, and return that."""
    console = Console()
    columns = (TextColumn("Fetching"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("fetch", total=None)
        path = fetch_data(settings, name, on_bytes=lambda done, total: bar.update(task, completed=done, total=total))
    console.print(f"{name} is in {path}; use it with `mindstream up --data {path}`.", highlight=False, soft_wrap=True)
    return path


def fetch_data(
    settings: Settings,
    name: str,
    *,
    url: str = ONLINE_RETAIL_URL,
    rows: int = ONLINE_RETAIL_ROWS,
    on_bytes: OnBytes | None = None,
) -> Path:
    """Return the folder of the data set *name* in the cache directory, fetched unless it is there.

    Args:
        settings: names the cache directory.
        name: `online-retail`.
        url: the zip file's address.
        rows: lines it must have; fewer means that it was cut off.
        on_bytes: called while it is fetched with the bytes so far and, where known, in all.

    Raises:
        ConfigError: no such data set is known.
        SourceError: the home can't be reached, or what came is not the data set; says what to do by hand.
    """
    if name != "online-retail":
        raise ConfigError("name", got=name, expected="online-retail, the one data set that can be fetched")
    folder = settings.cache_dir / name
    kept = folder / FILE_NAME
    if kept.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "online_retail.zip"
    by_hand = f"fetch {url} in a browser, put it at {archive} and run this again"
    if not archive.is_file():
        _download(url, archive, on_bytes or (lambda done, total: None), by_hand)
    found = convert_online_retail(archive, kept, rows=rows)
    archive.unlink()
    log.info("data_set_fetched", name=name, rows=found, path=str(kept))
    return folder


def convert_online_retail(archive: Path, target: Path, *, rows: int) -> int:
    """Write the sheet in the zip file *archive* to *target* as Parquet; return how many lines it has.

    Raises:
        SourceError: it is no such zip, lacks a column or has fewer lines than *rows*.
    """
    remedy = f"delete {archive} and fetch it again"
    written = target.with_name(target.name + ".new")
    try:
        found = _convert(archive, written)
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, ValueError, IndexError, pa.ArrowException) as error:
        written.unlink(missing_ok=True)
        raise SourceError(archive, problem=f"is not the data set: {error!r}", remedy=remedy) from error
    if found < rows:
        written.unlink(missing_ok=True)
        raise SourceError(archive, problem=f"has {found:,} lines, expected at least {rows:,}", remedy=remedy)
    written.replace(target)
    return found


def _convert(archive: Path, written: Path) -> int:
    with zipfile.ZipFile(archive) as outer:
        sheets = [entry for entry in outer.infolist() if entry.filename.lower().endswith(".xlsx")]
        if len(sheets) != 1:
            raise ValueError(f"{len(sheets)} Excel sheets in it, expected 1")
        with outer.open(_checked_size(sheets[0])) as file, zipfile.ZipFile(file) as book:
            lines = _sheet_rows(book)
            header = next(lines, [])
            places = [header.index(name) for name in COLUMNS]
            return _write_lines(written, lines, places)


def _write_lines(written: Path, lines: Iterator[list[Any]], places: list[int]) -> int:
    found = 0
    with pq.ParquetWriter(written, _SCHEMA, compression="zstd") as writer:
        batch: list[list[Any]] = []
        for line in lines:
            batch.append(_typed([line[place] if place < len(line) else None for place in places]))
            if len(batch) == 50_000:
                found += _write_batch(writer, batch)
                batch = []
        found += _write_batch(writer, batch)
    return found


def _write_batch(writer: Any, batch: list[list[Any]]) -> int:
    if batch:
        arrays = [pa.array(column, kind.type) for column, kind in zip(zip(*batch, strict=True), _SCHEMA, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
    return len(batch)


def _typed(values: list[Any]) -> list[Any]:
    invoice, code, title, quantity, date, price, customer, country = values
    return [
        invoice,
        code,
        title,
        int(float(quantity)) if quantity else None,
        _excel_time(date) if date else None,
        float(price) if price else None,
        int(float(customer)) if customer else None,
        country,
    ]


def _excel_time(value: str) -> str:
    """Return a date cell, days since the end of 1899, as text; the fraction is rounded to the second."""
    moment = EXCEL_EPOCH + timedelta(seconds=round(float(value) * 86_400))
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _sheet_rows(book: zipfile.ZipFile) -> Iterator[list[str | None]]:
    """Yield the rows of the first sheet, each a list of cells as text, None where empty."""
    shared = _shared_texts(book)
    with book.open(_checked_size(book.getinfo("xl/worksheets/sheet1.xml"))) as file:
        for row in _elements(file, _SHEET + "row"):
            cells: list[str | None] = []
            for number, cell in enumerate(row.iterfind(_SHEET + "c")):
                place = _column_of(cell.get("r"), number)
                cells.extend([None] * (place + 1 - len(cells)))
                cells[place] = _cell_text(cell, shared)
            yield cells


def _shared_texts(book: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in book.namelist():
        return []
    with book.open(_checked_size(book.getinfo("xl/sharedStrings.xml"))) as file:
        return [
            "".join(text.text or "" for text in entry.iter(_SHEET + "t")) for entry in _elements(file, _SHEET + "si")
        ]


def _elements(file: IO[bytes], tag: str) -> Iterator[Any]:
    """Yield each element of that tag as it is read, and forget it, so that memory stays small."""
    parsed = ElementTree.iterparse(file, events=("start", "end"))
    _, root = next(iter(parsed))
    parent = root
    for event, element in parsed:
        if event == "start" and element.tag == _SHEET + "sheetData":
            parent = element
        if event == "end" and element.tag == tag:
            yield element
            parent.clear()


def _cell_text(cell: Any, shared: list[str]) -> str | None:
    if cell.get("t") == "inlineStr":
        return "".join(text.text or "" for text in cell.iter(_SHEET + "t")) or None
    value = cell.findtext(_SHEET + "v")
    if value is None:
        return None
    return shared[int(value)] if cell.get("t") == "s" else value


def _column_of(reference: str | None, number: int) -> int:
    """Return the column that a reference such as `AB12` names, from 0; without one, the cell's own place."""
    if reference is None:
        return number
    place = 0
    for letter in reference.rstrip("0123456789"):
        place = 26 * place + ord(letter) - ord("A") + 1
    if not 1 <= place <= 16_384:
        raise ValueError(f"cell {reference!r} is in no column")
    return place - 1


def _checked_size(entry: zipfile.ZipInfo) -> zipfile.ZipInfo:
    if entry.file_size > MAX_SHEET_BYTES:
        raise ValueError(f"{entry.filename} would take {entry.file_size:,} bytes, expected at most {MAX_SHEET_BYTES:,}")
    return entry


def _download(url: str, target: Path, on_bytes: OnBytes, by_hand: str) -> None:
    partial = target.with_name(target.name + ".part")
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, partial.open("wb") as file:
            length = answer.headers.get("Content-Length")
            total = int(length) if length else None
            done = 0
            while chunk := answer.read(CHUNK_BYTES):
                done += len(chunk)
                if done > MAX_DOWNLOAD_BYTES:
                    raise OSError(f"more than {MAX_DOWNLOAD_BYTES:,} bytes came")
                file.write(chunk)
                digest.update(chunk)
                on_bytes(done, total)
            if total is not None and done != total:
                raise OSError(f"{done:,} of {total:,} bytes came")
    except (http.client.HTTPException, OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise SourceError(url, problem=f"can't be fetched: {error}", remedy=by_hand) from error
    partial.replace(target)
    log.info("downloaded", url=url, bytes=done, sha256=digest.hexdigest())
