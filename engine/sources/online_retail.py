"""Online Retail: a British gift wholesaler's invoice lines, read as clicks and a catalog.

One line is one click: the customer is the user, the stock code the item, the invoice's time (taken as UTC) the event
time, the quantity the weight, the country a profile attribute. Lines that are no interest of a known customer are left
out: cancellations, lines without a customer, service codes, quantities or prices that aren't positive. The catalog is
the items that remain; an item's category and price band come from the rules below, which docs/data.md repeats.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import SourceError
from engine.events import ClickEvent, ItemEvent

FILE_NAME = "online_retail.parquet"
COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
SERVICE_CODE = re.compile(r"(?!\d{5}|DCGS)|DCGS$", re.IGNORECASE)
"""Goods are numbered with five digits and at most a few letters, or DCGS and a number; any other code is a service:
POST, D, M, C2, S, B, DOT, CRUK, PADS, BANK CHARGES, AMAZONFEE, gift vouchers (gift_0001_...), and whatever comes."""
TIME_FORMATS = ("%m/%d/%y %H:%M", "%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M")
PRICE_BANDS = ((1.0, "under-1"), (2.0, "1-to-2"), (4.0, "2-to-4"), (8.0, "4-to-8"))
"""Upper edges in pounds, exclusive, of the median unit price; dearer items are `TOP_BAND`."""
TOP_BAND = "8-and-over"
CATEGORIES_KEPT = 60
OTHER = "other"

TAIL = re.compile(r"\b(?:with|w|in|for|on|by)\b", re.IGNORECASE)
"""What follows one of these words says more about the item, not what it is."""
_QUALIFIERS = """
    amber amethyst aqua beige black blue bronze brown champagne copper coral cream crystal fuschia fuchsia gold green
    grey ivory jade lilac lime mint multi multicol multicolour natural orange pastel peach pearl pink purple red ruby
    sage silver topaz turq turquoise violet white wht yellow
    big feet giant large medium mini narrow pack piece pieces set size sizes small square tall tier tiers wide
    baroque cotton edwardian felt floral flock folkart gingham glass gems lace metal paisley paper patch polkadot
    plastic retro retrospot round rustic skull skulls spot spots stripe stripes suki vintage wicker wood wooden woodland
    zinc spaceboy
    and asst assorted boy boys christmas colour colours design designs diamante easter empire finish font garden girl
    girls hanging home london mixed one painted pattern print printed style the this two vers union flag
"""
NOT_NOUNS = frozenset(_QUALIFIERS.split())
"""Colors, sizes, materials, patterns and words that name no thing: an item's head noun is none of them."""


class _Line(NamedTuple):
    """One kept invoice line."""

    clicked_at_ms: int
    user_id: str
    item_id: str
    event_id: str
    quantity: float
    country: str | None
    description: str | None
    unit_price: float


class OnlineRetail:
    """The data set in one Parquet file, as events; read whole when it is opened (about a second)."""

    name = "online-retail"
    simulated = False

    def __init__(self, path: Path) -> None:
        file = path / FILE_NAME if path.is_dir() else path
        self.dropped: Counter[str] = Counter()
        """Lines left out, by reason."""
        # The sort is stable: lines of one minute keep the order of the file.
        self._lines = sorted(self._kept(_read_columns(file)), key=lambda line: line.clicked_at_ms)
        if not self._lines:
            raise SourceError(file, problem=f"no line is left, dropped {dict(self.dropped)}", remedy="fetch it again")

    @property
    def click_count(self) -> int:
        """How many clicks `clicks` yields."""
        return len(self._lines)

    def clicks(self) -> Iterator[ClickEvent]:
        """Yield every kept line as a click, in time order; lines of one minute in the order of the file."""
        for line in self._lines:
            yield ClickEvent(
                user_id=line.user_id,
                item_id=line.item_id,
                clicked_at_ms=line.clicked_at_ms,
                event_id=line.event_id,
                weight=line.quantity,
                profile={"country": line.country} if line.country else None,
            )

    def items(self) -> Iterator[ItemEvent]:
        """Yield the catalog by ascending item id: every item that a kept line names."""
        titles: dict[str, Counter[str]] = defaultdict(Counter)
        prices: dict[str, list[float]] = defaultdict(list)
        for line in self._lines:
            titles[line.item_id][" ".join((line.description or "").split())] += 1
            prices[line.item_id].append(line.unit_price)
        chosen = {item_id: _commonest(counts) for item_id, counts in titles.items()}
        categories = assign_categories(chosen)
        for item_id in sorted(chosen):
            yield ItemEvent(
                item_id=item_id,
                title=chosen[item_id] or None,
                category=categories[item_id],
                features={"price_band": price_band(median(prices[item_id]))},
            )

    def _kept(self, columns: Mapping[str, Sequence[Any]]) -> Iterator[_Line]:
        line_numbers: Counter[str] = Counter()
        for values in zip(*(columns[name] for name in COLUMNS), strict=True):
            row = dict(zip(COLUMNS, values, strict=True))
            invoice = str(row["InvoiceNo"] or "").strip()
            line_numbers[invoice] += 1
            reason = _reason_to_drop(row, invoice)
            clicked_at_ms = None if reason else parse_time_ms(row["InvoiceDate"])
            if reason or clicked_at_ms is None:
                self.dropped[reason or "unreadable time"] += 1
                continue
            yield _Line(
                clicked_at_ms=clicked_at_ms,
                user_id=_customer(row["CustomerID"]),
                item_id=str(row["StockCode"]).strip(),
                # Zero-padded, so that the window's bytewise order of ties is the order of the invoice.
                event_id=f"{invoice}:{line_numbers[invoice]:04d}",
                quantity=float(row["Quantity"]),
                country=row["Country"],
                description=row["Description"],
                unit_price=float(row["UnitPrice"]),
            )


def price_band(pounds: float) -> str:
    """Return the name of the band that a unit price falls into."""
    return next((name for below, name in PRICE_BANDS if pounds < below), TOP_BAND)


def assign_categories(titles: Mapping[str, str]) -> dict[str, str]:
    """Return the category of each item: its head noun if that is among the 60 of most items, else `other`."""
    nouns = {item_id: head_noun(title) for item_id, title in titles.items()}
    counts = Counter(noun for noun in nouns.values() if noun)
    # Ties at the edge are cut alphabetically: the same data always gives the same categories.
    kept = set(sorted(counts, key=lambda noun: (-counts[noun], noun))[:CATEGORIES_KEPT])
    return {item_id: noun if noun in kept else OTHER for item_id, noun in nouns.items()}


def head_noun(title: str) -> str:
    """Return the last word of *title*, before any "with ..." or "in ...", that can name a thing, in the singular.

    Words with digits, of fewer than three letters, and colors, sizes, materials and patterns don't count; where nothing
    is left the answer is empty.
    """
    head = TAIL.split(title)[0]
    for words in (head, title):
        for word in reversed(re.findall(r"[A-Za-z0-9]+", words.lower())):
            if word.isalpha() and len(word) > 2 and word not in NOT_NOUNS:
                return _singular(word)
    return ""


@lru_cache(maxsize=65_536)  # many lines share a minute, and parsing one takes 10 microseconds
def parse_time_ms(value: object) -> int | None:
    """Return an invoice's time, taken as UTC, in milliseconds; None for one in no known format.

    Copies of the set differ: some write `12/1/10 8:26`, month first, others `2010-12-01 08:26:00`, others a timestamp.
    """
    if isinstance(value, datetime):
        return _utc_ms(value)
    for form in TIME_FORMATS:
        try:
            return _utc_ms(datetime.strptime(str(value), form))  # noqa: DTZ007 - the set names no zone; UTC is ours
        except ValueError:
            continue
    return None


def _utc_ms(moment: datetime) -> int:
    return int(moment.replace(tzinfo=UTC).timestamp()) * 1_000


def _reason_to_drop(row: Mapping[str, Any], invoice: str) -> str | None:
    if invoice.upper().startswith("C"):
        return "cancellation"
    if row["CustomerID"] is None or not _customer(row["CustomerID"]):
        return "no customer"
    if SERVICE_CODE.match(str(row["StockCode"] or "").strip()):
        return "service code"
    if not (row["Quantity"] or 0) > 0:
        return "quantity not positive"
    if not (row["UnitPrice"] or 0) > 0:
        return "price not positive"
    return None


def _customer(value: object) -> str:
    """Return a customer number as text; copies of the set hold 17850, 17850.0 or text."""
    text = str(value).strip().removesuffix(".0")
    return "" if text.lower() in ("nan", "none") else text


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda title: (-counts[title], title))


def _read_columns(file: Path) -> dict[str, list[Any]]:
    if not file.is_file():
        raise SourceError(
            file, problem="no such file", remedy="`mindstream data fetch online-retail` gets it where there is internet"
        )
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(file, problem=f"not a Parquet file ({error})", remedy="fetch it again") from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise SourceError(
            file, problem=f"lacks the columns {', '.join(missing)}", remedy="name your own columns with the options"
        )
    return {name: table[name].to_pylist() for name in COLUMNS}
