"""Any table of clicks: a user, an item and a time in named columns, and whatever else the columns hold.

A folder may hold the clicks as `interactions.*`, the catalog as `items.*` and profiles as `users.*`. A row that can't
be a click is counted and skipped, and the first one is named. Clicks come in time order, rows of one moment in the
order of the file: the row number is the event id unless a column gives one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import structlog

from engine.errors import SourceError
from engine.events import (
    MAX_ATTRIBUTES,
    MAX_ID_BYTES,
    MAX_NAME_BYTES,
    MAX_TEXT_BYTES,
    MAX_WEIGHT,
    ClickEvent,
    ItemEvent,
)
from engine.sources.table import Table, find_table, read_table

USUAL_USERS = ("user_id", "user", "userId", "userid", "visitorid", "customer_id", "CustomerID", "session_id")
USUAL_ITEMS = ("item_id", "item", "itemId", "itemid", "product_id", "movieId", "StockCode")
USUAL_TIMES = ("clicked_at_ms", "timestamp", "time", "ts", "event_time", "date")
USUAL_CATEGORIES = ("category", "category_id", "categoryId", "genres", "genre")
USUAL_BRANDS = ("brand", "brand_id")
USUAL_SHOPS = ("shop", "shop_id", "seller_id")
MILLISECONDS_FROM = 100_000_000_000
"""A number from here on is milliseconds, below it seconds: the border is the year 5138 in seconds, 1973 in ms."""
MAX_PROFILE_VALUES = 200
"""A column of `users.*` with more distinct values than this (a name, a postcode) is no profile attribute."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""What no id of the contract holds."""

TimeUnit = Literal["auto", "s", "ms", "iso"]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what; None looks for the usual names."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    time_unit: TimeUnit = "auto"
    """Unix seconds, milliseconds, or ISO 8601 (UTC where it names no zone); auto tells by the first value."""
    event_id: str | None = None
    event_type: str | None = None
    weight: str | None = None
    profile: Sequence[str] = ()
    """Columns sent as the user's profile; columns called `profile.NAME` are sent in any case."""
    title: str | None = None
    category: str | None = None
    brand: str | None = None
    shop: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    clicked_at_ms: int
    user_id: str
    item_id: str
    event_id: str
    event_type: str
    weight: float
    profile: dict[str, str | float] = field(default_factory=dict)


class BadRow(Exception):
    """One row can't be a click; *reason* is a word, *detail* names the value."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(detail)


class TabularClicks:
    """A table of clicks, or a folder with `interactions.*`, read whole when it is opened."""

    simulated = False

    def __init__(self, path: Path, columns: Columns | None = None) -> None:
        columns = columns or Columns()
        file = find_table(path, "interactions") if path.is_dir() else path
        if file is None:
            raise SourceError(path, problem="holds no data set", remedy="give a file, or see docs/data.md")
        folder = path if path.is_dir() else None
        self.name = (folder or file).resolve().name.split(".")[0]
        self.dropped: Counter[str] = Counter()
        """Rows left out, by reason."""
        self.first_dropped: str | None = None
        """Which row was left out first, and why."""
        table = read_table(file)
        users = find_table(folder, "users") if folder else None
        profiles = read_profiles(users, columns.profile) if users else {}
        self._rows = sorted(self._kept(table, columns, profiles), key=lambda row: row.clicked_at_ms)
        items = find_table(folder, "items") if folder else None
        self._items = self._known(read_table(items) if items else table, columns)
        self._tell(file)

    @property
    def click_count(self) -> int:
        """How many clicks `clicks` yields."""
        return len(self._rows)

    def clicks(self) -> Iterator[ClickEvent]:
        """Yield the clicks in time order; those of one moment in the order of the file."""
        for row in self._rows:
            yield ClickEvent(
                user_id=row.user_id,
                item_id=row.item_id,
                clicked_at_ms=row.clicked_at_ms,
                event_id=row.event_id,
                event_type=row.event_type,
                weight=row.weight,
                profile=row.profile or None,
            )

    def items(self) -> Iterator[ItemEvent]:
        """Yield the catalog by ascending item id: every item of the catalog's table and of the clicks."""
        for item_id in sorted({row.item_id for row in self._rows} | self._items.keys()):
            yield self._items.get(item_id) or ItemEvent(item_id=item_id)

    def _kept(self, table: Table, columns: Columns, profiles: Mapping[str, dict[str, str | float]]) -> Iterator[_Row]:
        reader = _RowReader(table, columns)
        for place in range(table.rows):
            try:
                row = reader.read(place)
            except BadRow as bad:
                self.dropped[bad.reason] += 1
                self.first_dropped = self.first_dropped or f"row {place + 2}: {bad.detail}"
                continue
            row.profile.update(profiles.get(row.user_id, {}))
            yield row
        if table.broken_rows:
            self.dropped["number of fields"] += table.broken_rows
            self.first_dropped = self.first_dropped or table.first_broken

    def _known(self, table: Table, columns: Columns) -> dict[str, ItemEvent]:
        return read_catalog(table, columns) if self._rows else {}

    def _tell(self, file: Path) -> None:
        if not self._rows:
            raise SourceError(
                file,
                problem=f"no row is a click; {self.first_dropped or 'it is empty'}",
                remedy="name the columns and the time unit with the options",
            )
        if self.dropped:
            log.warning("rows_dropped", file=file.name, **self.dropped, first=self.first_dropped)


class _RowReader:
    """Turns rows of one table into clicks."""

    def __init__(self, table: Table, columns: Columns) -> None:
        self._users = _required(table, columns.user, USUAL_USERS, "user")
        self._items = _required(table, columns.item, USUAL_ITEMS, "item")
        self._times = _required(table, columns.time, USUAL_TIMES, "time")
        self._event_ids = _optional(table, columns.event_id, ("event_id",))
        self._event_types = _optional(table, columns.event_type, ("event_type",))
        self._weights = _optional(table, columns.weight, ("weight",))
        named = {name: name for name in columns.profile if table.find(name, ()) is not None}
        named |= {name.removeprefix("profile."): name for name in table.columns if name.startswith("profile.")}
        self._profile = {attribute: table.columns[name] for attribute, name in named.items()}
        self._unit = columns.time_unit
        self._digits = len(str(table.rows))

    def read(self, place: int) -> _Row:
        """Return the click in row *place*.

        Raises:
            BadRow: the row has no user, item or time, or one that can't be.
        """
        profile = {
            name: _attribute(values[place]) for name, values in self._profile.items() if _is_given(values[place])
        }
        event_id = self._event_ids[place] if self._event_ids else None
        given = self._event_types[place] if self._event_types else None
        return _Row(
            clicked_at_ms=self._time_ms(self._times[place]),
            user_id=as_id(self._users[place], "user"),
            item_id=as_id(self._items[place], "item"),
            event_id=as_id(event_id, "event id") if _is_given(event_id) else f"{place:0{self._digits}d}",
            event_type=as_id(given, "event type", MAX_NAME_BYTES) if _is_given(given) else "click",
            weight=self._weight(place),
            profile=profile,
        )

    def _weight(self, place: int) -> float:
        value = self._weights[place] if self._weights else None
        weight = _number(value, "weight") if _is_given(value) else 1.0
        if not 0 <= weight <= MAX_WEIGHT:
            raise BadRow("weight", f"weight {value!r} is not between 0 and {MAX_WEIGHT:g}")
        return weight

    def _time_ms(self, value: Any) -> int:
        if not _is_given(value):
            raise BadRow("time", "no time")
        if self._unit == "auto":
            self._unit = _unit_of(value)
        at_ms = _iso_ms(value) if self._unit == "iso" else _number(value, "time") * (1_000 if self._unit == "s" else 1)
        if not 0 <= at_ms < 2**53:
            raise BadRow("time", f"time {value!r} is out of range")
        return int(at_ms)


def read_catalog(table: Table, columns: Columns | None = None) -> dict[str, ItemEvent]:
    """Return the items that *table* describes; of an item in several rows the first counts.

    Of a category column with lists, such as `Comedy|Drama`, the first entry is the category.
    """
    columns = columns or Columns()
    ids = _required(table, columns.item, USUAL_ITEMS, "item")
    titles = _optional(table, columns.title, ("title", "name", "Description"))
    categories = _optional(table, columns.category, USUAL_CATEGORIES)
    brands, shops = _optional(table, columns.brand, USUAL_BRANDS), _optional(table, columns.shop, USUAL_SHOPS)
    found: dict[str, ItemEvent] = {}
    for place, value in enumerate(ids):
        try:
            item_id = as_id(value, "item")
        except BadRow:
            continue
        if item_id not in found:
            category = _text_at(categories, place)
            found[item_id] = ItemEvent(
                item_id=item_id,
                title=_text_at(titles, place),
                category=category.split("|")[0] if category else None,
                brand=_text_at(brands, place),
                shop=_text_at(shops, place),
            )
    return found


def read_profiles(path: Path, attributes: Sequence[str] = ()) -> dict[str, dict[str, str | float]]:
    """Return each user's profile from the table at *path*: the columns named, or all with few distinct values."""
    table = read_table(path)
    user_column = table.find(None, USUAL_USERS)
    if user_column is None:
        raise SourceError(path, problem="has no user column", remedy=f"call it one of {', '.join(USUAL_USERS)}")
    few = [
        name
        for name, values in table.columns.items()
        if name != user_column and len({str(value) for value in values}) <= MAX_PROFILE_VALUES
    ]
    chosen = [name for name in attributes if name in table.columns] or few[:MAX_ATTRIBUTES]
    return {
        str(user): {name: str(table.columns[name][place]) for name in chosen if _is_given(table.columns[name][place])}
        for place, user in enumerate(table.columns[user_column])
    }


def as_id(value: Any, what: str, most_bytes: int = MAX_ID_BYTES) -> str:
    """Return *value* as an id of the contract: 1 to *most_bytes* bytes of UTF-8 with no control character.

    Raises:
        BadRow: it can't be one.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Parquet keeps a column of integers with gaps as floats
    text = str(value).strip() if _is_given(value) else ""
    if not text or CONTROL.search(text) or len(text.encode("utf-8", "surrogatepass")) > most_bytes:
        # The sentence goes to the log, which names no user.
        given = f"of {len(text)} characters" if text and what == "user" else repr(value)
        raise BadRow(what, f"{what} {given} is not text of 1 to {most_bytes} bytes")
    return text


def _required(table: Table, named: str | None, usual: Sequence[str], what: str) -> Sequence[Any]:
    column = table.find(named, usual)
    if column is None:
        raise SourceError(
            table.path,
            problem=f"has no {what} column, only {', '.join(table.columns)}",
            remedy=f"name it with --{what}-column",
        )
    return table.columns[column]


def _optional(table: Table, named: str | None, usual: Sequence[str]) -> Sequence[Any] | None:
    column = table.find(named, usual)
    return table.columns[column] if column else None


def _is_given(value: Any) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))


def _text_at(values: Sequence[Any] | None, place: int) -> str | None:
    value = values[place] if values else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _cut(CONTROL.sub(" ", str(value)).strip(), MAX_TEXT_BYTES) or None if _is_given(value) else None


def _cut(text: str, most_bytes: int) -> str:
    """Return as much of the beginning of *text* as *most_bytes* hold."""
    return text.encode()[:most_bytes].decode(errors="ignore")


def _attribute(value: Any) -> str | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return _cut(CONTROL.sub(" ", str(value)), MAX_ID_BYTES)


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadRow(what, f"{what} {value!r} is not a number") from None
    if not math.isfinite(number):
        raise BadRow(what, f"{what} {value!r} is not a finite number")
    return number


def _unit_of(value: Any) -> TimeUnit:
    try:
        return "ms" if float(value) >= MILLISECONDS_FROM else "s"
    except (TypeError, ValueError):
        return "iso"


def _iso_ms(value: Any) -> int:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise BadRow("time", f"time {value!r} is not ISO 8601") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000)
