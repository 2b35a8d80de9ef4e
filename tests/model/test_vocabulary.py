from __future__ import annotations

import json
import math

import pytest

from engine.model import ItemInput, Vocabulary
from engine.model.vocabulary import MAX_FIELDS, Field


def test_a_text_field_ranks_its_values_by_count_then_name() -> None:
    field = Field.of("country", ["UK", "FR", "UK", "DE"])

    assert field.values == ("UK", "DE", "FR")
    assert [field.row(value) for value in ("UK", "FR", "??", None, 3.0)] == [1, 3, 0, 0, 0]


def test_a_number_field_has_bands_of_equal_share() -> None:
    field = Field.of("price", [float(number) for number in range(100)])

    rows = [field.row(float(number)) for number in range(100)]

    assert [rows.count(band) for band in range(1, 11)] == [10] * 10
    assert field.row(-1e9) == 1
    assert field.row(1e9) == 10
    assert field.row("9") == 0


def test_a_number_is_standardized_and_held_within_bounds() -> None:
    field = Field.of("age", [20.0, 40.0])

    assert field.standardize(30.0) == 0.0
    assert field.standardize(40.0) == 1.0
    assert field.standardize(1e12) == 4.0


def test_a_constant_number_does_not_divide_by_zero() -> None:
    field = Field.of("age", [5.0, 5.0])

    assert field.standardize(6.0) == 1.0
    assert field.row(5.0) == 2


def test_the_kind_of_a_mixed_field_is_that_of_most_values() -> None:
    assert Field.of("x", [1.0, 2.0, "a"]).is_number
    assert not Field.of("x", [1.0, "b", "a"]).is_number


def test_fields_that_no_item_has_take_no_rows() -> None:
    items = {"a": ItemInput("a", category="c1"), "b": ItemInput("b", category="c2", features={"size": "L"})}

    vocabulary = Vocabulary.build(["a", "b", "unlisted"], items, [])

    assert [field.name for field in vocabulary.item_fields] == ["category", "features.size"]
    assert vocabulary.field_row_count == 3
    assert vocabulary.field_rows(items["a"]) == [1, 0]
    assert vocabulary.field_rows(items["b"]) == [2, 3]
    assert vocabulary.field_rows(None) == [0, 0]


def test_only_the_commonest_fields_are_kept() -> None:
    items = {
        str(number): ItemInput(str(number), features={f"f{place:02d}": "v" for place in range(number)})
        for number in range(MAX_FIELDS + 5)
    }

    vocabulary = Vocabulary.build(list(items), items, [])

    assert [field.name for field in vocabulary.item_fields] == [f"features.f{place:02d}" for place in range(MAX_FIELDS)]


def test_a_vocabulary_survives_json() -> None:
    items = {"a": ItemInput("a", category="ü", features={"price": 1.5}), "b": ItemInput("b", features={"price": 2.5})}
    vocabulary = Vocabulary.build(items, items, [{"country": "FR", "age": 3.0}])

    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@pytest.mark.parametrize("huge", [1e308, -1e308])
def test_a_huge_number_leaves_a_field_that_can_be_written_and_read(huge: float):
    field = Field.of("age", [20.0, 40.0, huge])

    assert math.isfinite(field.mean)
    assert math.isfinite(field.deviation)
    assert Field.from_dict(json.loads(json.dumps(field.to_dict(), allow_nan=False))) == field
    assert all(math.isfinite(field.standardize(value)) for value in (0.0, huge))
