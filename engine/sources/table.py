"""Tables on disk: CSV, TSV and Parquet, plain or gzipped, read into columns and written from events.

Text files are read as text throughout, so an id keeps its leading zeros; a TSV has no quoting. A row with the wrong
number of fields is skipped and counted, never fatal: one broken line does not hold up a million good ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from engine.errors import SourceError
from engine.events import ClickEvent

SUFFIXES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")
READABLE = ", ".join(SUFFIXES)


@dataclass(frozen=True, slots=True)
class Table:
    """A table's columns, each a list of one length; None where a field is empty."""

    path: Path
    columns: Mapping[str, Sequence[Any]]
    rows: int
    broken_rows: int
    """Rows left out because they have another number of fields than the header."""
    first_broken: str | None
    """Which row that was first, and what was wrong with it."""

    def find(self, named: str | None, usual: Iterable[str]) -> str | None:
        """Return the column to read: the one *named*, or the first of the *usual* names that is there.

        Raises:
            SourceError: the column named isn't there.
        """
        if named is not None and named not in self.columns:
            raise SourceError(
                self.path, problem=f"has no column {named!r}", remedy=f"name one of {', '.join(self.columns)}"
            )
        return named or next((name for name in usual if name in self.columns), None)


def is_table(path: Path) -> bool:
    """Return whether the name of *path* is that of a table."""
    return path.name.lower().endswith(SUFFIXES)


def find_table(folder: Path, stem: str) -> Path | None:
    """Return the table called *stem* in *folder*, whatever its format."""
    return next((path for suffix in SUFFIXES if (path := folder / (stem + suffix)).is_file()), None)


def read_table(path: Path) -> Table:
    """Return the table at *path*.

    Raises:
        SourceError: there is no such file, or it isn't a table of the format that its name says.
    """
    if not path.is_file():
        raise SourceError(path, problem="no such file", remedy="give the path of a data set")
    broken: list[str] = []
    try:
        table = _read_parquet(path) if path.name.lower().endswith(".parquet") else _read_text(path, broken)
    except (pa.ArrowException, OSError) as error:
        problem = f"can't be read: {str(error).splitlines()[0]}"
        raise SourceError(path, problem=problem, remedy=f"give a table in UTF-8 as {READABLE}") from error
    columns = {name: table.column(place).to_pylist() for place, name in enumerate(table.column_names)}
    return Table(path, columns, table.num_rows, len(broken), broken[0] if broken else None)


def write_clicks(path: Path, clicks: Iterable[ClickEvent]) -> int:
    """Write *clicks* as CSV, TSV or Parquet, as the name says, and return how many; `read_table` reads them back.

    A profile attribute becomes a column `profile.NAME`.
    """
    rows = list(clicks)
    attributes = sorted({name for click in rows for name in click.profile or {}})
    columns: dict[str, list[Any]] = {
        name: [getattr(click, name) for click in rows]
        for name in ("user_id", "item_id", "clicked_at_ms", "event_id", "event_type", "weight")
    }
    for name in attributes:
        columns[f"profile.{name}"] = [(click.profile or {}).get(name) for click in rows]
    _write(path, pa.table(columns))
    return len(rows)


def _write(path: Path, table: Any) -> None:
    if path.suffix not in (".csv", ".tsv", ".parquet"):
        raise SourceError(path, problem="can't be written", remedy="end the name in .csv, .tsv or .parquet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(table, path, compression="zstd")
        else:
            _write_text(path, table)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(path, problem=f"can't be written: {error}", remedy="choose another place") from error


def _write_text(path: Path, table: Any) -> None:
    tabs = path.suffix == ".tsv"
    delimiter = "\t" if tabs else ","
    # pyarrow quotes every header, which a TSV has no notion of.
    style = pa_csv.WriteOptions(include_header=False, delimiter=delimiter, quoting_style="none" if tabs else "needed")
    with path.open("wb") as file:
        file.write((delimiter.join(table.column_names) + "\n").encode())
        pa_csv.write_csv(table, file, style)


def _read_parquet(path: Path) -> Any:
    return pq.read_table(path)


def _read_text(path: Path, broken: list[str]) -> Any:
    def note(row: Any) -> str:
        broken.append(f"row {row.number}: {row.actual_columns} fields, the header has {row.expected_columns}")
        return "skip"

    tabs = ".tsv" in path.name.lower()
    parse = pa_csv.ParseOptions(delimiter="\t" if tabs else ",", quote_char=False if tabs else '"')
    parse.invalid_row_handler = note
    # One thread, so that the handler is told the numbers of the rows.
    read = pa_csv.ReadOptions(use_threads=False)
    with pa_csv.open_csv(path, read_options=read, parse_options=parse) as opening:
        names = opening.schema.names
    broken.clear()
    # An empty field alone is no value: "NA" is a country, and "null" may be an id.
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    return pa_csv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert)
