"""Atomic files: `<name>.inter`, and perhaps `.item` and `.user`, tab separated with a typed header (`age:token`).

The time orders a user's clicks; those of one second keep the order of the file. A `token_seq` is a list of words, of
which the first is the category; every other token of an item, or of a user, is a feature or a profile attribute unless
nearly each one has a value of its own (a title, a postcode).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from engine.errors import SourceError
from engine.events import ItemEvent
from trainer.offline.sequences import Kind, Sequences
from trainer.offline.text_files import lines_of

ENDINGS = (".inter", ".inter.gz")
MAX_VALUES = 200
"""A text column with more distinct values than this is no attribute."""
CATEGORIES = ("class", "genre", "genres", "category", "categories")
Columns = dict[str, list[str]]


def find_atomic(folder: Path) -> Path | None:
    """Return the file of interactions in *folder*."""
    return next((path for path in sorted(folder.iterdir()) if path.name.endswith(ENDINGS)), None)


def read_atomic(path: Path) -> Sequences:
    """Return the interactions at *path* with the items and users beside it.

    Raises:
        SourceError: a file lacks a column, or a time is no finite number.
    """
    columns = _read(path)
    users, items = _need(path, columns, "user_id"), _need(path, columns, "item_id")
    if not users:
        raise SourceError(path, problem="holds no click", remedy="give a file with interactions")
    times_ms = _times_ms(path, columns["timestamp"]) if "timestamp" in columns else None
    names, user_of = np.unique(np.array(users), return_inverse=True)
    item_ids, item_of = np.unique(np.array(items), return_inverse=True)
    order = np.lexsort((np.arange(len(users)) if times_ms is None else times_ms, user_of))
    described = _beside(path, ".item")
    profiles = _values(_beside(path, ".user"), "user_id")
    return Sequences(
        name=path.name.split(".")[0],
        kind=Kind.USERS,
        item_ids=item_ids.tolist(),
        user_ids=names.tolist(),
        rows=item_of[order].astype(np.int64) + 1,
        starts=np.append(0, np.cumsum(np.bincount(user_of))).astype(np.int64),
        times_ms=None if times_ms is None else times_ms[order],
        profiles=[profiles.get(user, {}) for user in names.tolist()] if profiles else [],
        items=_items(described),
        categories=_categories(described),
    )


def _read(path: Path) -> Columns:
    lines = lines_of(path)
    header = next(lines, "").rstrip("\n").split("\t")
    names = [column.split(":")[0] for column in header]
    columns: Columns = {name: [] for name in names}
    for number, line in enumerate(lines, start=2):
        values = line.rstrip("\n").split("\t")
        if len(values) != len(names):
            problem = f"line {number} has {len(values)} fields, the header {len(names)}"
            raise SourceError(path, problem=problem, remedy="mend that line")
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
    return columns


def _need(path: Path, columns: Columns, name: str) -> list[str]:
    if name not in columns:
        raise SourceError(path, problem=f"has no column {name}, only {', '.join(columns)}", remedy=f"add {name}:token")
    return columns[name]


def _times_ms(path: Path, values: Sequence[str]) -> np.ndarray:
    try:
        times = np.array(values, dtype=np.float64)
    except ValueError as error:
        raise SourceError(path, problem=f"has a time that is no number: {error}", remedy="mend it") from error
    if not np.isfinite(times).all():
        line = int(np.flatnonzero(~np.isfinite(times))[0]) + 2
        raise SourceError(path, problem=f"line {line} has the time {values[line - 2]!r}", remedy="give Unix seconds")
    return (times * 1_000).astype(np.int64)


def _beside(path: Path, ending: str) -> Columns:
    stem = path.name.split(".")[0]
    files = (path.parent / f"{stem}{ending}{suffix}" for suffix in ("", ".gz"))
    found = next((file for file in files if file.is_file()), None)
    return _read(found) if found else {}


def _values(columns: Mapping[str, Sequence[str]], key: str) -> dict[str, dict[str, str | float]]:
    """Return the attributes of each row by its *key*: numbers as such, texts with few distinct values."""
    kept: dict[str, Sequence[str | float]] = {}
    for name, values in columns.items():
        if name == key or name in CATEGORIES:
            continue
        numbers = _as_numbers(values)
        if numbers is not None:
            kept[name] = numbers
        elif len(set(values)) <= MAX_VALUES:
            kept[name] = values
    return {
        row: {name: values[place] for name, values in kept.items() if values[place] != ""}
        for place, row in enumerate(columns.get(key, ()))
    }


def _as_numbers(values: Sequence[str]) -> list[float] | None:
    try:
        numbers = [float(value) for value in values if value]
    except ValueError:
        return None
    if len(numbers) != len(values) or not np.isfinite(numbers).all():
        return None
    return numbers


def _items(columns: Columns) -> dict[str, ItemEvent]:
    features = _values(columns, "item_id")
    categories = _categories(columns)
    titles = dict(zip(columns.get("item_id", ()), columns.get("movie_title", ()), strict=False))
    return {
        item: ItemEvent(
            item_id=item,
            title=titles.get(item) or None,
            category=next(iter(categories.get(item, ())), None),
            features=values,
        )
        for item, values in features.items()
    }


def _categories(columns: Columns) -> dict[str, tuple[str, ...]]:
    name = next((name for name in CATEGORIES if name in columns), None)
    if name is None:
        return {}
    listed = zip(columns["item_id"], columns[name], strict=True)
    return {item: tuple(dict.fromkeys(words.split())) for item, words in listed if words}
