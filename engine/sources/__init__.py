"""Data sets read as events: whatever holds clicks becomes an `EventSource`, and one way leads on from there.

`open_source` finds the reader by the path alone. pyarrow is imported in this package only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.errors import SourceError
from engine.sources.online_retail import FILE_NAME, OnlineRetail
from engine.sources.sessions import Sessions, session_files
from engine.sources.source import ChangingCatalog, EventSource
from engine.sources.table import READABLE, is_table
from engine.sources.tabular import Columns, TabularClicks, TimeUnit

__all__ = [
    "ChangingCatalog",
    "Columns",
    "EventSource",
    "OnlineRetail",
    "Sessions",
    "TabularClicks",
    "open_source",
]


def open_source(
    path: Path,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    time_unit: TimeUnit = "auto",
    event_type_column: str | None = None,
    weight_column: str | None = None,
    profile_columns: Sequence[str] = (),
    title_column: str | None = None,
    category_column: str | None = None,
) -> EventSource:
    """Return the reader for *path*, a folder or a file.

    The column options concern tables (CSV, TSV, Parquet) and are looked for under the usual names where left out.

    Raises:
        SourceError: nothing is there, nothing in it can be read, or it holds no click.
    """
    columns = Columns(
        user=user_column,
        item=item_column,
        time=time_column,
        time_unit=time_unit,
        event_type=event_type_column,
        weight=weight_column,
        profile=profile_columns,
        title=title_column,
        category=category_column,
    )
    if not path.exists():
        raise SourceError(path, problem="no such file or folder", remedy="give the path of a data set")
    if path.name == FILE_NAME or (path / FILE_NAME).is_file():
        return OnlineRetail(path)
    if path.is_dir():
        return Sessions(path) if session_files(path) else TabularClicks(path, columns)
    if is_table(path):
        return TabularClicks(path, columns)
    if path.name.endswith((".txt", ".txt.gz")):
        return Sessions(path)
    raise SourceError(
        path, problem="is of no known kind", remedy=f"give a table ({READABLE}) or a session file (.txt, .txt.gz)"
    )
