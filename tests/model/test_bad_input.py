"""What no model can compute with is refused with a sentence that names it, before torch meets it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.errors import ConfigError, IncompatibleVersion, InvalidInput
from engine.model import InterestModel, ItemInput, MindConfig, UserInput
from engine.model.features import WindowBatch, encode_windows
from tests.model.mind_builders import make_model

MODEL = make_model()
BATCH, _ = encode_windows([UserInput(["i1", "i2"])], MODEL.vocabulary, MODEL.config)
SHAPE = (1, MODEL.config.interests, MODEL.config.dimensions)


@pytest.mark.parametrize(
    ("users", "sentence"),
    [
        ([UserInput("i1")], "UserInput.item_ids must be a sequence of item ids, got 'i1'"),
        ([UserInput(["i1", "i2"], weights=[1.0])], "UserInput.weights must be empty or one a click, 2, got 1"),
        (
            [UserInput(["i1"], event_types=["click", "hide"])],
            "UserInput.event_types must be empty or one a click, 1, got 2",
        ),
        ([UserInput(["i1"], profile={"age": math.nan})], "field age must be a text or a number, got nan"),
        ([UserInput(["i1"], profile={"country": ["FR"]})], "field country must be a text or a number"),
    ],
)
def test_a_user_that_is_none_is_refused(users: list[UserInput], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        MODEL.interests(users)


def test_profiles_are_one_a_window() -> None:
    with pytest.raises(InvalidInput, match="profiles must be one a window, 1, got 2"):
        MODEL.user_vectors([["i1"]], [{}, {}])


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ("i1", "an item must be an ItemInput, got 'i1'"),
        (ItemInput("n", features={"price": math.nan}), "field features.price must be a text or a number, got nan"),
        (ItemInput("n", features={"price": [3]}), "field features.price must be a text or a number"),
    ],
)
def test_an_item_that_is_none_is_refused(item: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        MODEL.item_vectors([item])


def test_what_training_never_saw_is_unknown_and_no_error() -> None:
    known = MODEL.user_vectors([["i1"]])[0]

    strange = MODEL.user_vectors([["i1", "never seen"]], [{"never": "seen", "country": "never seen", "age": "a text"}])[
        0
    ]

    np.testing.assert_array_equal(strange, known)
    assert not MODEL.item_vectors([ItemInput("new", features={"never": "seen", "price": "a text"})]).any()


Change = Callable[[WindowBatch], WindowBatch]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b: replace(b, rows=b.rows.astype(np.int32)), "rows must be int64 of shape"),
        (lambda b: replace(b, rows=b.rows + 10_000), "rows must be from 0 to 20"),
        (lambda b: replace(b, rows=b.rows - 10_000), "rows must be from 0 to 20"),
        (lambda b: replace(b, rows=b.rows[0]), "rows must be int64"),
        (lambda b: replace(b, strengths=b.strengths.astype(np.float64)), "strengths must be float32 of shape"),
        (lambda b: replace(b, strengths=b.strengths * np.nan), "strengths must be finite numbers"),
        (lambda b: replace(b, strengths=b.strengths[:, 1:]), "strengths must be float32 of shape"),
        (lambda b: replace(b, counts=b.counts + 100), "counts must be from 0 to 4, got 101"),
        (lambda b: replace(b, profile_rows=b.profile_rows + 1_000), "profile_rows must be from 0 to"),
        (
            lambda b: replace(b, profile_numbers=b.profile_numbers + np.float32(np.inf)),
            "profile_numbers must be finite",
        ),
    ],
)
def test_arrays_that_are_no_windows_are_refused(change: Change, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        MODEL.extract(change(BATCH))


@pytest.mark.parametrize(
    ("previous", "sentence"),
    [
        (np.zeros((1, 2, 3), np.float32), "previous interests must be float32 of shape"),
        (np.zeros(SHAPE), "previous interests must be float32 of shape"),
        (np.full(SHAPE, np.nan, np.float32), "previous interests must be finite numbers"),
    ],
)
def test_previous_interests_fit_the_model(previous: np.ndarray, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        MODEL.extract(BATCH, previous=previous)


@pytest.mark.parametrize(
    ("part", "name", "value", "sentence"),
    [
        (0, "of_a_newer_build", 1, "a newer build wrote it, run that one"),
        (0, "interests", "4", "MindConfig.interests is 4, expected of type int"),
        (1, "items", None, "vocabulary is TypeError"),
        (1, "items", ["i1"] * 20, "vocabulary is ValueError..19 items stand twice"),
        (2, "scale", np.array(np.nan, np.float32), "tensor scale is not finite"),
        (2, "scale", np.array(1, np.float16), "tensor scale is float16 of shape .., expected float32"),
        (2, "item_field_rows", np.zeros((21, 3), np.float32), "tensor item_field_rows is float32 of shape"),
    ],
)
def test_stored_parts_that_are_none_are_refused(part: int, name: str, value: object, sentence: str) -> None:
    parts = list(MODEL.parts())
    parts[part] = {**parts[part], name: value}

    with pytest.raises(IncompatibleVersion, match=sentence):
        InterestModel.load_parts(*parts)


@pytest.mark.parametrize(
    ("name", "value"), [("dimensions", 2.5), ("interests", True), ("max_clicks", "50"), ("rounds", 0), ("hidden", (0,))]
)
def test_a_config_that_is_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"MindConfig.{name} must be"):
        MindConfig(**{name: value})
