"""Vocabulary: from keys and values, as events spell them, to rows of the model's tables.

Row 0 always means "nothing": padding for items, an absent or unseen value for item fields and profile attributes.
Item fields are the category, brand, shop and each named feature. Numbers among the item features fall into ten bands
of equal share; numbers in the profile are standardized. The vocabulary is fixed by a training run and travels with the
weights as plain JSON values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

from engine.errors import InvalidInput

MAX_FIELDS = 32
"""Item fields and profile attributes beyond the commonest 32 of each are ignored."""
MAX_VALUES = 10_000
"""Values of one field beyond the commonest 10,000 count as unseen."""
BANDS = 10
FARTHEST = 4.0
"""A standardized number is held within this many deviations."""

LARGEST = 1e15
"""Numbers are held within this: one of 1e200 would make a deviation that is infinite."""

Value = str | float


@dataclass(frozen=True, slots=True)
class ItemInput:
    """What the catalog says of one item."""

    item_id: str
    category: str | None = None
    brand: str | None = None
    shop: str | None = None
    features: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Field:
    """One named text or number, and what training saw of it."""

    name: str
    values: tuple[str, ...] = ()
    """Known texts; value i has row i + 1. Empty for a number."""
    edges: tuple[float, ...] = ()
    """Inner edges of a number's bands, ascending; band i has row i + 1."""
    mean: float = 0.0
    deviation: float = 1.0
    is_number: bool = False

    @classmethod
    def of(cls, name: str, seen: Sequence[Value]) -> Self:
        """Return the field that training saw as *seen*; it is a number where most of the values are.

        Raises:
            InvalidInput: one of the numbers is NaN.
        """
        for value in seen:
            _check_value(name, value)
        numbers = np.array([value for value in seen if not isinstance(value, str)], dtype=np.float64)
        numbers = numbers.clip(-LARGEST, LARGEST)
        if len(numbers) * 2 > len(seen):
            edges = np.unique(np.quantile(numbers, np.arange(1, BANDS) / BANDS))
            deviation = float(numbers.std()) or 1.0
            return cls(
                name, edges=tuple(edges.tolist()), mean=float(numbers.mean()), deviation=deviation, is_number=True
            )
        counts = Counter(value for value in seen if isinstance(value, str))
        commonest = sorted(counts, key=lambda value: (-counts[value], value))[:MAX_VALUES]
        return cls(name, values=tuple(commonest))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {value: row for row, value in enumerate(self.values, start=1)}

    @property
    def row_count(self) -> int:
        """Rows above 0."""
        return len(self.edges) + 1 if self.is_number else len(self.values)

    def row(self, value: Value | None) -> int:
        """Return the row of *value*; 0 where it is absent, unseen or of the other kind.

        Raises:
            InvalidInput: *value* is NaN, or neither text nor number.
        """
        if value is None:
            return 0
        _check_value(self.name, value)
        if isinstance(value, str):
            return 0 if self.is_number else self._rows.get(value, 0)
        if not self.is_number:
            return 0
        return 1 + int(np.searchsorted(self.edges, value, side="right"))

    def standardize(self, value: float) -> float:
        """Return a number in deviations from the mean, held within `FARTHEST`.

        Raises:
            InvalidInput: *value* is NaN.
        """
        _check_value(self.name, value)
        return min(max((value - self.mean) / self.deviation, -FARTHEST), FARTHEST)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        if self.is_number:
            return {"name": self.name, "edges": list(self.edges), "mean": self.mean, "deviation": self.deviation}
        return {"name": self.name, "values": list(self.values)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the field that `to_dict` wrote."""
        name = str(values["name"])
        if "edges" in values:
            edges = tuple(float(edge) for edge in values["edges"])
            return cls(
                name,
                edges=edges,
                mean=float(values["mean"]),
                deviation=float(values["deviation"]),
                is_number=True,
            )
        return cls(name, values=tuple(str(value) for value in values["values"]))


@dataclass(frozen=True)
class Vocabulary:
    """The items, item fields and profile attributes that a model knows."""

    item_ids: tuple[str, ...]
    """Item i has row i + 1."""
    item_fields: tuple[Field, ...] = ()
    profile_fields: tuple[Field, ...] = ()

    @classmethod
    def build(
        cls, item_ids: Iterable[str], items: Mapping[str, ItemInput], profiles: Iterable[Mapping[str, Value]]
    ) -> Self:
        """Return the vocabulary of a training run.

        Args:
            item_ids: distinct keys, in the order of their rows.
            items: what the catalog says of them; items outside *item_ids* add nothing.
            profiles: one per user.
        """
        ids = tuple(item_ids)
        described = [item_values(items[item]) for item in ids if item in items]
        return cls(ids, _fields(described), _fields(profiles))

    @cached_property
    def item_rows(self) -> dict[str, int]:
        """Item key to row, from 1."""
        return {item: row for row, item in enumerate(self.item_ids, start=1)}

    @cached_property
    def _field_starts(self) -> tuple[int, ...]:
        return tuple(np.cumsum([0, *(field.row_count for field in self.item_fields)]).tolist())

    @property
    def field_row_count(self) -> int:
        """Rows of all item fields in their one table, row 0 not counted."""
        return self._field_starts[-1]

    def field_rows(self, item: ItemInput | None) -> list[int]:
        """Return the rows of *item*'s fields in the one table of all fields; 0 for each absent or unseen value."""
        values = {} if item is None else item_values(item)
        rows = [field.row(values.get(field.name)) for field in self.item_fields]
        return [row and start + row for start, row in zip(self._field_starts, rows, strict=False)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "items": list(self.item_ids),
            "item_fields": [field.to_dict() for field in self.item_fields],
            "profile_fields": [field.to_dict() for field in self.profile_fields],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the vocabulary that `to_dict` wrote; raises ValueError where an item stands twice."""
        item_ids = tuple(str(item) for item in values["items"])
        if len(set(item_ids)) < len(item_ids):
            raise ValueError(f"{len(item_ids) - len(set(item_ids))} items stand twice")
        return cls(
            item_ids,
            tuple(Field.from_dict(field) for field in values["item_fields"]),
            tuple(Field.from_dict(field) for field in values["profile_fields"]),
        )


def item_values(item: ItemInput) -> dict[str, Value]:
    """Return the fields of *item* that have a value, by name; features as `features.NAME`."""
    values: dict[str, Value | None] = {"category": item.category, "brand": item.brand, "shop": item.shop}
    values |= {f"features.{name}": value for name, value in item.features.items()}
    return {name: value for name, value in values.items() if value is not None}


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, str | int | float) or (isinstance(value, float) and math.isnan(value)):
        raise InvalidInput(f"field {name}", got=value, expected="a text or a number")


def _fields(described: Iterable[Mapping[str, Value]]) -> tuple[Field, ...]:
    seen: dict[str, list[Value]] = {}
    for values in described:
        for name, value in values.items():
            seen.setdefault(name, []).append(value)
    commonest = sorted(seen, key=lambda name: (-len(seen[name]), name))[:MAX_FIELDS]
    return tuple(Field.of(name, seen[name]) for name in sorted(commonest))
