from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from engine.errors import DamagedVersion, UnknownVersion
from engine.events import ItemEvent
from engine.model.registry import Registry
from engine.settings import Settings
from engine.snapshot import load_snapshot
from tests.builders import NOON_MS
from tests.served import ITEM_IDS, make_model
from trainer.popular import PopularItems
from trainer.publish import (
    current_manifest,
    current_version,
    list_models,
    plain,
    prepare,
    promote,
    publish,
    publish_version_zero,
    read_announced,
)

POPULAR = PopularItems(list(ITEM_IDS[:10]), {"mugs": list(ITEM_IDS[3:6])})


def parts_of(seed: int = 7, **items: ItemEvent):
    manifest = {"parent": None, "metrics": {"recall_at_50": 0.2, "popular_recall_at_50": 0.1}, "training": {}}
    return prepare(make_model(seed=seed), POPULAR, items=items, manifest=manifest, threads=1, seed=7)


def test_every_known_item_but_removed_ones_is_indexed():
    gone = ItemEvent(item_id="i003", removed=True)
    away = ItemEvent(item_id="i005", available=False)

    parts = parts_of(i003=gone, i005=away)

    assert list(parts.item_ids) == [item for item in ITEM_IDS if item != "i003"]
    ids, vectors = make_model().all_item_vectors()
    assert parts.item_vectors is not None
    np.testing.assert_array_equal(parts.item_vectors, vectors[[ids.index(item) for item in parts.item_ids]])


def test_same_model_gives_the_same_bytes():
    assert parts_of().index == parts_of().index


def test_figures_that_json_cannot_hold_become_none():
    assert plain({"a": math.nan, "b": [math.inf, 1.5], 3: ("x",)}) == {"a": None, "b": [None, 1.5], "3": ["x"]}


@pytest.mark.kafka
def test_published_version_can_be_served_and_is_announced_with_its_manifest(settings: Settings):
    announced = publish(settings, parts_of(), now_ms=NOON_MS)

    assert (announced.model_version, announced.activation) == ("0001", 0)
    assert read_announced(settings) == [announced]
    assert load_snapshot(settings, "0001", announced.activation).model is not None


@pytest.mark.kafka
def test_version_zero_is_announced_like_any_other(settings: Settings):
    announced = publish_version_zero(settings, POPULAR, now_ms=NOON_MS)

    assert announced.model_version == "0000"
    assert load_snapshot(settings, "0000", 0).popular.by_category == POPULAR.by_category
    assert current_manifest(settings) is None


@pytest.mark.kafka
def test_promoting_an_older_version_makes_it_current_again(settings: Settings):
    for seed in (1, 2):
        publish(settings, parts_of(seed), now_ms=NOON_MS)

    promoted = promote(settings, "0001", now_ms=NOON_MS + 5)

    assert promoted.activation == 2
    assert current_version(settings) == "0001"
    assert [(row.version, row.is_current, row.recall_at_50) for row in list_models(settings)] == [
        ("0001", True, 0.2),
        ("0002", False, 0.2),
    ]


@pytest.mark.kafka
def test_publishing_deletes_old_versions_but_version_zero_and_the_parent(settings: Settings):
    tight = settings.model_copy(update={"keep_versions": 2})
    publish_version_zero(tight, POPULAR, now_ms=NOON_MS)
    for _ in range(3):
        publish(tight, parts_of(), now_ms=NOON_MS)

    publish(tight, dataclasses.replace(parts_of(), manifest={"parent": "0002"}), now_ms=NOON_MS)

    assert Registry(settings.registry).list_versions() == ["0000", "0002", "0003", "0004"]


@pytest.mark.kafka
def test_version_that_is_unknown_or_damaged_is_not_promoted(settings: Settings):
    publish(settings, parts_of(), now_ms=NOON_MS)
    weights = Path(settings.registry) / "versions" / "0001" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    with pytest.raises(DamagedVersion):
        promote(settings, "0001", now_ms=NOON_MS)
    with pytest.raises(UnknownVersion):
        promote(settings, "0002", now_ms=NOON_MS)

    assert len(read_announced(settings)) == 1


@pytest.mark.kafka
def test_model_with_numbers_that_are_not_finite_is_neither_written_nor_announced(settings: Settings):
    parts = parts_of()
    name = "item_ids.weight"
    parts.tensors[name][1, 1] = np.nan

    with pytest.raises(DamagedVersion, match=name):
        publish(settings, parts, now_ms=NOON_MS)

    assert Registry(settings.registry).list_versions() == []
    assert read_announced(settings) == []


@pytest.mark.kafka
def test_damaged_version_is_listed_with_what_is_wrong_and_stops_no_training(settings: Settings):
    publish(settings, parts_of(), now_ms=NOON_MS)
    (Path(settings.registry) / "versions" / "0001" / "manifest.json").write_text("[]")

    (row,) = list_models(settings)

    assert (row.version, row.is_current, row.created_at_ms) == ("0001", True, None)
    assert row.problem is not None
    assert "manifest.json has" in row.problem
    assert current_manifest(settings) is None
